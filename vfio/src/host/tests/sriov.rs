//! Virtual functions made, removed, set and made ready, on a machine whose kernel and network are made of files.

use std::{
    io,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use devices::pci::Bdf;

use crate::host::{
    BindOptions, Host, Mac, NetlinkError, Taken,
    fixture::{Fixture, Function, bdf, function},
    netlink::{Link, Links},
    sriov::{FunctionSettings, NumberOptions, Setting, SriovError},
};

/// The network side of the card: `eth2`, which is down, and what was done to it.
struct Card {
    up: Mutex<bool>,
    done: Mutex<Vec<String>>,
    /// The address of the second function.
    second: Mutex<[u8; 6]>,
    /// What setting anything is answered with.
    refuses: Option<i32>,
}

const PHYSICAL_MAC: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);

fn settings(mac: [u8; 6]) -> FunctionSettings {
    FunctionSettings {
        mac: Some(Mac(mac)),
        spoof_check: Some(true),
        ..FunctionSettings::default()
    }
}

impl Card {
    fn new(refuses: Option<i32>) -> Arc<Self> {
        Arc::new(Self {
            up: Mutex::new(false),
            done: Mutex::default(),
            second: Mutex::new([2, 0, 0, 0, 0, 9]),
            refuses,
        })
    }

    fn note(&self, what: String) -> Result<(), NetlinkError> {
        if let Some(errno) = self.refuses {
            let cause = io::Error::from_raw_os_error(errno);
            return Err(NetlinkError::Refused { what, cause });
        }
        self.done.lock().unwrap().push(what);
        Ok(())
    }

    fn done(&self) -> Vec<String> {
        std::mem::take(&mut self.done.lock().unwrap())
    }
}

impl Links for Card {
    fn link(&self, name: &str) -> Result<Link, NetlinkError> {
        assert_eq!(name, "eth2");
        let second = *self.second.lock().unwrap();
        Ok(Link {
            index: 4,
            up: *self.up.lock().unwrap(),
            mac: Some(PHYSICAL_MAC),
            functions: vec![(0, settings([0; 6])), (1, settings(second))],
        })
    }

    fn set_up(&self, link: &Link) -> Result<(), NetlinkError> {
        self.note(format!("{} up", link.index))?;
        *self.up.lock().unwrap() = true;
        Ok(())
    }

    fn set(&self, link: &Link, function: u32, setting: Setting) -> Result<(), NetlinkError> {
        self.note(format!("{} vf {function} {setting}", link.index))?;
        if let (1, Setting::Mac(mac)) = (function, setting) {
            *self.second.lock().unwrap() = mac.0;
        }
        Ok(())
    }
}

const PF: &str = "03:00.1";

/// A physical function on igb with eight virtual ones, none of them enabled.
fn machine(card: &Arc<Card>) -> (Fixture, Host) {
    let fixture = Fixture::new();
    let physical = fixture.add(Function {
        driver: Some("igb"),
        group: Some(7),
        ..function(PF)
    });
    fixture.driver("igbvf");
    fixture.virtual_functions(physical, &[], 8);
    let attribute = format!("sys/bus/pci/devices/{physical}/sriov_drivers_autoprobe");
    fixture.file(&attribute, "1\n");
    fixture.interface("eth2", physical);
    let host = Host {
        links: card.clone(),
        ..fixture.host()
    };
    (fixture, host)
}

fn usual() -> NumberOptions {
    NumberOptions::default()
}

fn addresses(host: &Host) -> Vec<String> {
    let functions = host.physical(bdf(PF)).unwrap().functions;
    functions.iter().map(|one| one.bdf.to_string()).collect()
}

/// As if a guest had the group of `device` open.
fn give_to_a_guest(fixture: &Fixture, device: Bdf) {
    let groups = "sys/kernel/iommu_groups/9/devices";
    let group = format!("sys/bus/pci/devices/{device}/iommu_group");
    fixture.link(&group, "../../../../kernel/iommu_groups/9");
    let dir = fixture.path(&format!("sys/bus/pci/devices/{device}"));
    fixture.link(&format!("{groups}/{device}"), dir);
    fixture.process(4711, "viaduct");
    fixture.open(4711, "vfio/9");
}

#[test]
fn functions_are_made_with_the_physical_one_up_and_are_on_their_driver() {
    let card = Card::new(None);
    let (_fixture, host) = machine(&card);
    host.set_number(bdf(PF), 2, usual()).unwrap();
    assert_eq!(card.done(), ["4 up"]);
    let facts = host.physical(bdf(PF)).unwrap();
    assert_eq!(
        (facts.total, facts.up, facts.functions.len()),
        (8, Some(true), 2)
    );
    assert_eq!(addresses(&host), ["0000:03:10.1", "0000:03:10.3"]);
    let second = &facts.functions[1];
    assert_eq!(second.driver.as_deref(), Some("igbvf"));
    assert_eq!(second.settings, settings([2, 0, 0, 0, 0, 9]));
    // The same again changes nothing.
    assert!(host.number_plan(bdf(PF), 2, usual()).unwrap().is_empty());
}

#[test]
fn another_number_goes_by_way_of_none() {
    let (_fixture, host) = machine(&Card::new(None));
    host.set_number(bdf(PF), 2, usual()).unwrap();
    let attribute = "/sys/bus/pci/devices/0000:03:00.1/sriov_numvfs";
    assert_eq!(
        host.number_plan(bdf(PF), 3, usual()).unwrap(),
        [
            format!("echo 0 > {attribute}"),
            format!("echo 3 > {attribute}")
        ]
    );
    host.set_number(bdf(PF), 3, usual()).unwrap();
    assert_eq!(addresses(&host).len(), 3);
    host.set_number(bdf(PF), 0, usual()).unwrap();
    assert!(addresses(&host).is_empty());
}

#[test]
fn drivers_of_the_host_leave_new_functions_alone_if_told_so() {
    let (_fixture, host) = machine(&Card::new(None));
    let options = NumberOptions {
        probe: Some(false),
        force: false,
    };
    let plan = host.number_plan(bdf(PF), 1, options).unwrap();
    let attribute = "/sys/bus/pci/devices/0000:03:00.1/sriov_drivers_autoprobe";
    assert_eq!(plan[0], format!("echo 0 > {attribute}"));
    assert_eq!(plan[1], "ip link set eth2 up");
    host.set_number(bdf(PF), 1, options).unwrap();
    let facts = host.physical(bdf(PF)).unwrap();
    assert_eq!(
        (facts.probe, facts.functions[0].driver.as_deref()),
        (Some(false), None)
    );
}

#[test]
fn functions_of_a_guest_are_not_removed_and_the_guest_is_named() {
    let (fixture, host) = machine(&Card::new(None));
    host.set_number(bdf(PF), 2, usual()).unwrap();
    give_to_a_guest(&fixture, bdf("03:10.3"));
    for number in [0, 1, 3] {
        let error = host.set_number(bdf(PF), number, usual()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "0000:03:00.1: its virtual functions cannot be removed: 0000:03:10.3 (vf1) is in use by process 4711 (viaduct)\n  \
             shut that guest down, or end the process:  kill 4711"
        );
    }
    assert_eq!(addresses(&host).len(), 2);
    assert!(host.set_number(bdf(PF), 2, usual()).is_ok());
    let facts = host.physical(bdf(PF)).unwrap();
    assert_eq!(facts.functions[1].holders[0].pid, 4711);
}

#[test]
fn functions_that_a_guest_has_taken_but_not_opened_are_not_removed_either() {
    let (fixture, host) = machine(&Card::new(None));
    host.set_number(bdf(PF), 1, usual()).unwrap();
    let group = "sys/bus/pci/devices/0000:03:10.1/iommu_group";
    fixture.link(group, "../../../../kernel/iommu_groups/9");
    let taken = host
        .take(&[bdf("03:10.1")], &BindOptions::default())
        .unwrap();
    let error = host.set_number(bdf(PF), 0, usual()).unwrap_err();
    assert!(matches!(error, SriovError::InUse { .. }), "{error}");
    taken.give_back().unwrap();
    host.set_number(bdf(PF), 0, usual()).unwrap();
}

#[test]
fn functions_that_the_host_stands_on_are_removed_only_by_force() {
    let (fixture, host) = machine(&Card::new(None));
    host.set_number(bdf(PF), 1, usual()).unwrap();
    fixture.interface("eth5", bdf("03:10.1"));
    let route = "Iface Destination Gateway Flags RefCnt Use Metric Mask\neth5 00000000 0102000A 0003 0 0 0 00000000\n";
    fixture.file("proc/net/route", route);
    let error = host
        .set_number(bdf(PF), 0, usual())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("0000:03:10.1 (vf0): this host's default route goes through eth5"),
        "{error}"
    );
    assert!(
        error.ends_with("viaduct sriov 03:00.1 --vfs 0 --force"),
        "{error}"
    );
    let force = NumberOptions {
        force: true,
        ..usual()
    };
    host.set_number(bdf(PF), 0, force).unwrap();
}

#[test]
fn what_was_bound_before_is_forgotten_with_the_function() {
    let (fixture, host) = machine(&Card::new(None));
    host.set_number(bdf(PF), 1, usual()).unwrap();
    let group = "sys/bus/pci/devices/0000:03:10.1/iommu_group";
    fixture.link(group, "../../../../kernel/iommu_groups/9");
    host.bind(&[bdf("03:10.1")], &BindOptions::default())
        .unwrap();
    host.set_number(bdf(PF), 0, usual()).unwrap();
    assert!(host.restore().unwrap().is_empty());
}

#[test]
fn more_than_there_can_be_and_fewer_than_asked_for_are_told() {
    let (fixture, host) = machine(&Card::new(None));
    let error = host.set_number(bdf(PF), 9, usual()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "0000:03:00.1: can have 8 virtual functions, not 9\n  take what it has:  viaduct sriov 03:00.1 --vfs 8"
    );
    fixture.kernel.most_functions.store(1, SeqCst);
    let host = Host {
        patience: Duration::from_millis(100),
        ..host
    };
    let error = host.set_number(bdf(PF), 3, usual()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "0000:03:00.1: 3 virtual functions were asked for and igb made 1\n  see what it said:  dmesg | tail"
    );
}

#[test]
fn only_a_physical_function_has_virtual_ones() {
    let (fixture, host) = machine(&Card::new(None));
    host.set_number(bdf(PF), 1, usual()).unwrap();
    let error = host.physical(bdf("03:10.1")).unwrap_err().to_string();
    assert!(
        error.ends_with("name the physical one:  viaduct sriov 03:00.1"),
        "{error}"
    );
    let plain = fixture.add(function("04:00.0"));
    let error = host.physical(plain).unwrap_err().to_string();
    assert!(error.contains("no SR-IOV capability"), "{error}");
}

#[test]
fn a_setting_goes_through_the_physical_function_or_is_blamed_on_its_driver() {
    let card = Card::new(None);
    let (_fixture, host) = machine(&card);
    host.set_number(bdf(PF), 2, usual()).unwrap();
    card.done();
    let trust = Setting::Trust(true);
    host.set_function(bdf(PF), 1, trust).unwrap();
    assert_eq!(card.done(), ["4 vf 1 trust on"]);
    let plan = host.set_function_plan(bdf(PF), 1, None, trust).unwrap();
    assert_eq!(plan, "ip link set eth2 vf 1 trust on");
    let error = host
        .set_function(bdf(PF), 2, trust)
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("viaduct sriov 03:00.1 --vfs 3"), "{error}");
    assert!(host.set_function_plan(bdf(PF), 2, None, trust).is_err());
    assert!(host.set_function_plan(bdf(PF), 2, Some(3), trust).is_ok());

    let host = Host {
        links: Card::new(Some(libc::EOPNOTSUPP)),
        ..host
    };
    let error = host
        .set_function(bdf(PF), 1, trust)
        .unwrap_err()
        .to_string();
    assert!(error.contains("igb cannot set this"), "{error}");
}

#[test]
fn a_function_without_an_address_gets_one_before_a_guest_has_it_and_others_keep_theirs() {
    let card = Card::new(None);
    let (_fixture, host) = machine(&card);
    host.set_number(bdf(PF), 2, usual()).unwrap();
    card.done();
    let derived = Mac::derived(PHYSICAL_MAC, 0);
    let first = host.prepare_function(bdf("03:10.1"), None).unwrap();
    assert_eq!(first, Some(derived));
    assert_eq!(card.done(), [format!("4 vf 0 mac {derived}")]);
    let second = host.prepare_function(bdf("03:10.3"), None).unwrap();
    assert_eq!(second, Some(Mac([2, 0, 0, 0, 0, 9])));
    assert!(card.done().is_empty());
    let error = host.prepare_function(bdf(PF), second).unwrap_err();
    assert!(matches!(error, SriovError::NotVirtual(_)), "{error}");
}

#[test]
fn an_address_that_the_hosts_driver_drew_by_lot_is_none() {
    let card = Card::new(None);
    let (fixture, host) = machine(&card);
    host.set_number(bdf(PF), 2, usual()).unwrap();
    let second = bdf("03:10.3");
    fixture.interface("eth6", second);
    let attribute = "sys/class/net/eth6/addr_assign_type";
    fixture.file(attribute, "3\n");
    let set_by_someone = Some(Mac([2, 0, 0, 0, 0, 9]));
    assert_eq!(host.prepare_function(second, None).unwrap(), set_by_someone);
    fixture.file(attribute, "1\n");
    let derived = Some(Mac::derived(PHYSICAL_MAC, 1));
    assert_eq!(host.prepare_function(second, None).unwrap(), derived);
}

#[test]
fn without_the_right_to_set_an_address_a_guest_does_without_unless_it_was_asked_for() {
    let (fixture, host) = machine(&Card::new(None));
    host.set_number(bdf(PF), 2, usual()).unwrap();
    let host = Host {
        links: Card::new(Some(libc::EPERM)),
        ..fixture.host()
    };
    let one = bdf("03:10.1");
    assert_eq!(host.prepare_function(one, None).unwrap(), None);
    let asked = host.prepare_function(one, Some(PHYSICAL_MAC)).unwrap_err();
    assert!(asked.to_string().ends_with("sudo viaduct …"), "{asked}");
}

/// Both functions in a group of their own, and the second with another address for a guest.
fn take_with_mac(fixture: &Fixture, host: &Host) -> Taken {
    let group = "sys/bus/pci/devices/0000:03:10.3/iommu_group";
    fixture.link(group, "../../../../kernel/iommu_groups/9");
    let second = bdf("03:10.3");
    let options = BindOptions {
        macs: vec![(second, GUESTS_MAC)],
        ..BindOptions::default()
    };
    host.take(&[second], &options).unwrap()
}

const GUESTS_MAC: Mac = Mac([2, 0, 0, 0xaa, 0, 1]);

#[test]
fn a_function_gets_its_own_address_back_after_its_guest_also_after_a_crash() {
    for crash in [false, true] {
        let card = Card::new(None);
        let (fixture, host) = machine(&card);
        host.set_number(bdf(PF), 2, usual()).unwrap();
        card.done();
        let taken = take_with_mac(&fixture, &host);
        assert_eq!(card.done(), ["4 vf 1 mac 02:00:00:aa:00:01"]);
        if crash {
            std::mem::forget(taken);
            fixture.end_process(std::process::id());
            host.restore().unwrap();
        } else {
            taken.give_back().unwrap();
        }
        assert_eq!(
            card.done(),
            ["4 vf 1 mac 02:00:00:00:00:09"],
            "crash: {crash}"
        );
        assert_eq!(fixture.driver_of(bdf("03:10.3")).as_deref(), Some("igbvf"));
    }
}

#[test]
fn an_address_that_somebody_set_while_the_guest_ran_stays() {
    let card = Card::new(None);
    let (fixture, host) = machine(&card);
    host.set_number(bdf(PF), 2, usual()).unwrap();
    let taken = take_with_mac(&fixture, &host);
    *card.second.lock().unwrap() = [2, 0, 0, 0xbb, 0, 2];
    card.done();
    taken.give_back().unwrap();
    assert!(card.done().is_empty());
}
