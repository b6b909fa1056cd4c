//! What can be known of a function: its registers, interrupts, power, link, holders.

use crate::host::{
    Known,
    facts::{Bar, ConfigAccess, Mapping, Trapped},
    fixture::{Fixture, bdf, function},
};

/// Four BARs, of which one is 64 bits wide, and a ROM.
const RESOURCE: &str = "0x00000000febc0000 0x00000000febdffff 0x0000000000040200
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x000000000000c020 0x000000000000c03f 0x0000000000040101
0x0000004000000000 0x0000004000003fff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x00000000febf0100 0x00000000febf01ff 0x0000000000040200
0x00000000feb80000 0x00000000febbffff 0x0000000000046200
";

/// A function at 03:00.1 with these BARs and an MSI-X table in the third, of which a user may read `readable` bytes.
fn card(readable: usize) -> Fixture {
    let fixture = Fixture::new();
    fixture.add(function("03:00.1"));
    let dir = "sys/bus/pci/devices/0000:03:00.1";
    fixture.file(&format!("{dir}/resource"), RESOURCE);
    let mut config = vec![0; 256];
    config[0x06] = 0x10;
    config[0x34] = 0x70;
    config[0x70..0x7c].copy_from_slice(&[0x11, 0, 9, 0, 3, 0, 0, 0, 3, 0x20, 0, 0]);
    config.truncate(readable);
    fixture.file(&format!("{dir}/config"), config);
    fixture
}

#[test]
fn bars_say_how_a_guest_reaches_them() {
    let facts = card(256).host().facts(bdf("03:00.1")).unwrap();
    let seen: Vec<_> = facts.bars.iter().map(|bar| (bar.index, bar.size)).collect();
    assert_eq!(seen, [(0, 0x2_0000), (2, 0x20), (3, 0x4000), (5, 0x100)]);
    let mappings: Vec<_> = facts.bars.iter().map(|bar| bar.mapping).collect();
    let expected = [
        Mapping::Whole,
        Mapping::Trapped(Trapped::Ports),
        Mapping::AroundMsix { withheld: 0x2000 },
        Mapping::Trapped(Trapped::SharesPage),
    ];
    assert_eq!(mappings, expected.map(Known::Known));
    assert_eq!(facts.rom.unwrap().size, 0x4_0000);
    assert_eq!(facts.config, ConfigAccess::Complete);
}

#[test]
fn a_small_bar_has_its_page_to_itself_or_is_trapped() {
    let fixture = card(256);
    let line = "0x00000000febf0000 0x00000000febf00ff 0x0000000000040200\n";
    fixture.file("sys/bus/pci/devices/0000:03:00.1/resource", line);
    let mapping = || fixture.host().facts(bdf("03:00.1")).unwrap().bars[0].mapping;
    assert_eq!(mapping(), Known::Known(Mapping::Whole));
    fixture.add(function("03:00.2"));
    let line = "0x00000000febf0800 0x00000000febf0fff 0x0000000000040200\n";
    fixture.file("sys/bus/pci/devices/0000:03:00.2/resource", line);
    assert_eq!(
        mapping(),
        Known::Known(Mapping::Trapped(Trapped::SharesPage))
    );
}

#[test]
fn what_only_root_may_read_is_unknown_to_others() {
    let facts = card(64).host().facts(bdf("03:00.1")).unwrap();
    assert_eq!(facts.config, ConfigAccess::Header);
    assert_eq!(facts.interrupts.msix, Known::Unknown);
    let [memory, ports, ..] = &facts.bars[..] else {
        panic!("no BARs")
    };
    assert_eq!(memory.mapping, Known::Unknown);
    // No capability changes that.
    assert_eq!(
        ports.mapping,
        Known::Known(Mapping::Trapped(Trapped::Ports))
    );
}

#[test]
fn power_and_link_are_told_in_the_kernels_words() {
    let fixture = card(256);
    let dir = "sys/bus/pci/devices/0000:03:00.1";
    let plain = fixture.host().facts(bdf("03:00.1")).unwrap();
    assert_eq!((plain.link, plain.power.state), (None, None));
    for (attribute, text) in [
        ("power_state", "D3hot"),
        ("power/runtime_status", "suspended"),
        ("power/control", "auto"),
        ("current_link_speed", "2.5 GT/s PCIe"),
        ("current_link_width", "4"),
        ("max_link_speed", "5.0 GT/s PCIe"),
        ("max_link_width", "4"),
    ] {
        fixture.file(&format!("{dir}/{attribute}"), format!("{text}\n"));
    }
    let facts = fixture.host().facts(bdf("03:00.1")).unwrap();
    assert_eq!(facts.power.state.as_deref(), Some("D3hot"));
    assert_eq!(facts.power.control.as_deref(), Some("auto"));
    let link = facts.link.unwrap();
    assert!(link.is_below_its_best());
    assert_eq!(
        (link.speed.as_deref(), link.width),
        (Some("2.5 GT/s"), Some(4))
    );
    for attribute in ["current_link_width", "max_link_width"] {
        fixture.file(&format!("{dir}/{attribute}"), "255\n");
    }
    let link = fixture.host().facts(bdf("03:00.1")).unwrap().link.unwrap();
    assert_eq!((link.width, link.max_width), (None, None));
}

#[test]
fn an_inventory_has_every_function_and_group_and_who_holds_it() {
    let fixture = card(256);
    let other = fixture.add(function("03:10.1"));
    fixture.hand_over(other, "vfio-pci", false);
    fixture.process(10, "vmm");
    fixture.open(10, "vfio/8");
    let inventory = fixture.host().inventory();
    let found: Vec<_> = inventory.functions.iter().map(|f| f.device.bdf).collect();
    assert_eq!(found, [bdf("03:00.1"), bdf("03:10.1")]);
    assert_eq!(inventory.groups[&8].members.len(), 2);
    assert_eq!(inventory.groups[&8], fixture.host().group(8));
    let holders = inventory.holders[&8].as_ref().known().unwrap();
    assert_eq!(holders[0].pid, 10);
    assert_eq!(inventory.no_iommu, None);
}

#[test]
fn a_device_of_garbage_is_told_of_without_a_panic() {
    let mut random = crate::assigned::random::Random::new(20);
    let mut told = 0;
    for _ in 0..300 {
        let fixture = Fixture::new();
        fixture.add(function("03:00.1"));
        let dir = "sys/bus/pci/devices/0000:03:00.1";
        let config: Vec<u8> = (0..256).map(|_| random.next().to_le_bytes()[0]).collect();
        fixture.file(&format!("{dir}/config"), config);
        let line = |a: u64, b: u64, c: u64| format!("0x{a:016x} 0x{b:016x} 0x{c:016x}\n");
        let lines: String = (0..7)
            .map(|_| line(random.next(), random.next(), random.next()))
            .collect();
        fixture.file(&format!("{dir}/resource"), lines);
        let facts = fixture.host().facts(bdf("03:00.1")).unwrap();
        let sizes = facts.bars.iter().map(|bar: &Bar| bar.size);
        assert!(sizes.into_iter().all(|size| size > 0));
        told += facts.bars.len();
    }
    assert!(told > 100, "{told} BARs");
}
