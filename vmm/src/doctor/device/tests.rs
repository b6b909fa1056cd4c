//! A machine with a card that has two virtual functions, and two cards in one group.

use std::{
    fs::Permissions,
    os::unix::fs::{PermissionsExt, symlink},
};

use super::super::{
    recorded::Recorded,
    report::{Check, Verdict},
    system::User,
};
use super::*;
use vfio::host::{
    Mac,
    recorded::{AMD, INTEL, MANY_FUNCTIONS, NO_IOMMU, VMD},
};

const VF: &str = "0000:03:10.3";
const PF: &str = "0000:03:00.1";

fn function(machine: &Recorded, bdf: &str, driver: &str, group: u32) {
    let dir = format!("sys/bus/pci/devices/{bdf}");
    for (name, text) in [
        ("vendor", "0x8086\n"),
        ("device", "0x10ca\n"),
        ("class", "0x020000\n"),
        ("numa_node", "-1\n"),
        ("reset_method", "flr bus\n"),
        ("power_state", "D0\n"),
    ] {
        machine.file(&format!("{dir}/{name}"), text);
    }
    let mut config = [0; 256];
    (config[0], config[1]) = (0x86, 0x80);
    machine.file(&format!("{dir}/config"), config);
    machine.folder(&format!("sys/bus/pci/drivers/{driver}"));
    let link = |path: &str, target: &str| {
        let _was = std::fs::remove_file(machine.path(path));
        machine.folder(path.rsplit_once('/').unwrap().0);
        symlink(machine.path(target), machine.path(path)).unwrap();
    };
    link(
        &format!("{dir}/driver"),
        &format!("sys/bus/pci/drivers/{driver}"),
    );
    let folder = format!("sys/kernel/iommu_groups/{group}");
    link(&format!("{folder}/devices/{bdf}"), &dir);
    link(&format!("{dir}/iommu_group"), &folder);
}

/// The virtual function is the second of two; the other is `other`'s.
fn card(machine: &Recorded, other: &str) {
    let other_function = "0000:03:10.1";
    function(machine, PF, "igb", 7);
    function(machine, other_function, other, 8);
    function(machine, VF, "igbvf", 9);
    let dir = format!("sys/bus/pci/devices/{PF}");
    machine.file(&format!("{dir}/sriov_totalvfs"), "8\n");
    for (index, bdf) in [other_function, VF].iter().enumerate() {
        let link = |path: String, target: String| symlink(target, machine.path(&path)).unwrap();
        link(format!("{dir}/virtfn{index}"), format!("../{bdf}"));
        link(
            format!("sys/bus/pci/devices/{bdf}/physfn"),
            format!("../{PF}"),
        );
    }
}

/// An interface of the physical function's, switched on or not.
fn interface(machine: &Recorded, flags: &str) {
    let path = format!("sys/devices/pci0000:00/{PF}/net/eth1");
    machine.file(&format!("{path}/address"), "52:54:00:01:02:03\n");
    machine.file(&format!("{path}/flags"), flags);
    machine.folder("sys/class/net");
    let target = format!("../../devices/pci0000:00/{PF}/net/eth1");
    symlink(target, machine.path("sys/class/net/eth1")).unwrap();
}

/// A process that has the file open.
fn holder(machine: &Recorded, pid: u32, file: &str) {
    machine.file(file, "");
    machine.file(&format!("proc/{pid}/comm"), "viaduct\n");
    machine.folder(&format!("proc/{pid}/fd"));
    let fd = machine.path(&format!("proc/{pid}/fd/9"));
    symlink(machine.path(file), fd).unwrap();
}

fn checks(machine: &Recorded, named: &[&str], user: &User) -> Vec<Check> {
    let files = machine.files();
    let host = machine.host();
    let named: Vec<Bdf> = named.iter().map(|name| name.parse().unwrap()).collect();
    let mut sections = sections(&host, &files, &named, user).unwrap();
    sections.remove(0).checks
}

fn named<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    let found = checks.iter().find(|check| check.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {checks:?}"))
}

fn command(check: &Check) -> &str {
    check.fixes[0].command.as_deref().unwrap()
}

#[test]
fn a_function_alone_in_its_group_is_ready() {
    let machine = Recorded::new();
    card(&machine, "igbvf");
    interface(&machine, "0x1003\n");
    let checks = checks(&machine, &[VF], &User::root());
    let bad = [Verdict::Failure, Verdict::Warning];
    assert!(
        !checks.iter().any(|check| bad.contains(&check.verdict)),
        "{checks:?}"
    );
    assert_eq!(named(&checks, "IOMMU group").what, "9, alone");
    let of = "03:00.1, of which this is function 1; on igb";
    assert_eq!(named(&checks, "physical function").what, of);
    assert_eq!(named(&checks, "its interface").what, "eth1 is up");
}

#[test]
fn a_group_that_is_shared_names_who_is_in_the_way_and_both_ways_out() {
    let machine = Recorded::new();
    for bdf in ["0000:05:01.0", "0000:05:02.0"] {
        function(&machine, bdf, "e1000", 4);
    }
    let alone = checks(&machine, &["05:01.0"], &User::root());
    let group = named(&alone, "IOMMU group");
    assert_eq!(group.what, "4, shared with 05:02.0 on e1000");
    let commands: Vec<_> = group
        .fixes
        .iter()
        .filter_map(|fix| fix.command.as_deref())
        .collect();
    assert_eq!(
        commands,
        ["viaduct bind 05:02.0", "viaduct doctor 05:01.0 05:02.0"]
    );
    let together = checks(&machine, &["05:01.0", "05:02.0"], &User::root());
    assert_eq!(named(&together, "IOMMU group").verdict, Verdict::Good);
}

#[test]
fn a_device_of_another_guest_is_told_with_its_process() {
    let machine = Recorded::new();
    card(&machine, "vfio-pci");
    holder(&machine, 4711, "dev/vfio/8");
    let taken = checks(&machine, &["0000:03:10.1"], &User::root());
    let used = named(&taken, "in use");
    assert_eq!(used.what, "by process 4711 (viaduct)");
    assert_eq!(command(used), "kill 4711");
    // The other function is free, and the physical one is not: it serves the guest.
    let other = checks(&machine, &[VF], &User::root());
    assert_eq!(named(&other, "in use").verdict, Verdict::Good);
    assert!(
        named(&other, "physical function")
            .what
            .contains("for process 4711")
    );
    let physical = checks(&machine, &[PF], &User::root());
    let host = named(&physical, "the host's");
    assert_eq!(host.verdict, Verdict::Failure);
    assert_eq!(command(host), "kill 4711");
}

#[test]
fn a_physical_function_that_is_down_comes_with_what_brings_it_up() {
    let machine = Recorded::new();
    card(&machine, "igbvf");
    interface(&machine, "0x1002\n");
    let checks = checks(&machine, &[VF], &User::root());
    let down = named(&checks, "its interface");
    assert_eq!(
        (down.verdict, command(down)),
        (Verdict::Warning, "ip link set eth1 up")
    );
}

#[test]
fn a_user_is_told_what_only_root_can_do_first() {
    let machine = Recorded::new();
    card(&machine, "igbvf");
    let of_host = checks(&machine, &[VF], &User::ada());
    assert_eq!(command(named(&of_host, "driver")), "viaduct bind 03:10.3");
    function(&machine, VF, "vfio-pci", 9);
    machine.file("dev/vfio/9", "");
    std::fs::set_permissions(machine.path("dev/vfio/9"), Permissions::from_mode(0o0)).unwrap();
    let bound = checks(&machine, &[VF], &User::ada());
    assert_eq!(named(&bound, "driver").verdict, Verdict::Good);
    let permission = named(&bound, "permission");
    assert_eq!(command(permission), "chown ada /dev/vfio/9");
}

#[test]
fn without_an_iommu_the_device_says_so_and_everything_else_still_comes() {
    let machine = Recorded::new();
    function(&machine, VF, "igbvf", 9);
    std::fs::remove_file(machine.path(&format!("sys/bus/pci/devices/{VF}/iommu_group"))).unwrap();
    let checks = checks(&machine, &[VF], &User::root());
    let group = named(&checks, "IOMMU group");
    assert_eq!(group.verdict, Verdict::Failure);
    assert!(group.what.starts_with("no IOMMU keeps it"), "{group:?}");
    assert_eq!(named(&checks, "reset").what, "flr, bus");
}

#[test]
fn a_bridge_is_refused_as_what_it_is() {
    let machine = Recorded::new();
    function(&machine, "0000:00:1c.0", "pcieport", 1);
    machine.file("sys/bus/pci/devices/0000:00:1c.0/class", "0x060000\n");
    let checks = checks(&machine, &["00:1c.0"], &User::root());
    assert_eq!((checks.len(), checks[0].verdict), (1, Verdict::Failure));
}

#[test]
fn a_function_without_an_address_gets_the_one_that_run_would_give_it() {
    let machine = Recorded::new();
    card(&machine, "igbvf");
    interface(&machine, "0x1003\n");
    let files = machine.files();
    let host = machine.host();
    let vf: Bdf = VF.parse().unwrap();
    let mut device = Device::read(&host, &files, &Surroundings::read(&host, &[vf]), vf).unwrap();
    device.settings = Some(FunctionSettings {
        mac: Some(Mac::default()),
        trust: Some(false),
        spoof_check: Some(true),
        ..FunctionSettings::default()
    });
    let checks = device.checks(&User::root());
    let mac = named(&checks, "MAC address");
    let derived = Mac::derived(Mac([0x52, 0x54, 0, 1, 2, 3]), 1);
    assert_eq!(mac.verdict, Verdict::Warning);
    let typed = format!("viaduct sriov 03:00.1 --vf 1 --mac {derived}");
    assert_eq!(command(mac), typed);
    assert_eq!(named(&checks, "rights").what, "trust off, spoof check on");
}

#[test]
fn every_function_of_machines_unlike_the_lab_is_looked_at() {
    for text in [AMD, INTEL, VMD, MANY_FUNCTIONS, NO_IOMMU] {
        let machine = Recorded::of(text);
        let host = machine.host();
        let all = host.functions();
        let sections = sections(&host, &machine.files(), &all, &User::root()).unwrap();
        assert!(!all.is_empty() && sections.len() == all.len());
        for (bdf, section) in all.into_iter().zip(sections) {
            let is_bridge = host.device(bdf).unwrap().is_bridge();
            assert_eq!(section.checks.len() == 1, is_bridge, "{bdf}");
            let group = section
                .checks
                .iter()
                .find(|check| check.name == "IOMMU group");
            let lacks = group.is_some_and(|group| group.what.starts_with("no IOMMU"));
            assert_eq!(lacks, text == NO_IOMMU && !is_bridge, "{bdf}: {group:?}");
        }
    }
}

#[test]
fn the_parts_of_a_chipset_are_in_each_others_way() {
    let machine = Recorded::of(AMD);
    let usb = checks(&machine, &["02:00.0"], &User::root());
    let group = named(&usb, "IOMMU group");
    assert_eq!(group.verdict, Verdict::Failure);
    assert!(group.what.contains("02:00.1 on ahci"), "{group:?}");
    let display = checks(&machine, &["2d:00.0"], &User::root());
    let host = named(&display, "the host's");
    assert!(host.what.contains("display that this host booted on"));
}
