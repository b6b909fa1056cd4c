//! What a machine says of itself, and what people are told about it.

use crate::host::{
    BindOptions, Danger, GroupError, ResolveError,
    fixture::{Fixture, Function, bdf, function},
};

/// The card of the lab: a physical function with two of its eight virtual ones enabled, and its interface.
fn card(fixture: &Fixture) {
    let physical = fixture.add(Function {
        driver: Some("igb"),
        group: Some(7),
        ..function("03:00.1")
    });
    let first = fixture.add(function("03:10.1"));
    let second = fixture.add(Function {
        group: Some(9),
        ..function("03:10.3")
    });
    fixture.virtual_functions(physical, &[first, second], 8);
    fixture.interface("eth2", physical);
}

fn resolve_error(fixture: &Fixture, name: &str) -> String {
    fixture.host().resolve(name).unwrap_err().to_string()
}

#[test]
fn a_device_says_what_it_is() {
    let fixture = Fixture::new();
    card(&fixture);
    let dir = "sys/bus/pci/devices/0000:03:10.3";
    fixture.file(&format!("{dir}/reset_method"), "flr bus\n");
    let device = fixture.host().device(bdf("03:10.3")).unwrap();
    assert_eq!((device.vendor, device.device), (0x8086, 0x10ca));
    assert_eq!((device.class, device.header_type), (0x02_0000, 0));
    assert_eq!(device.driver.as_deref(), Some("igbvf"));
    assert_eq!(device.iommu_group, Some(9));
    assert_eq!(device.numa_node, None);
    assert_eq!(device.virtual_function_of, Some((bdf("03:00.1"), 1)));
    assert_eq!(device.reset_methods, ["flr", "bus"]);
    assert!(!device.is_bridge() && !device.boot_vga && device.sriov.is_none());

    let physical = fixture.host().device(bdf("03:00.1")).unwrap();
    let sriov = physical.sriov.unwrap();
    assert_eq!((sriov.total, sriov.functions.len()), (8, 2));
    assert_eq!(physical.interfaces[0].name, "eth2");
    let mac = physical.interfaces[0].mac.unwrap();
    assert_eq!(mac.to_string(), "52:54:00:01:02:03");
}

#[test]
fn a_device_has_four_kinds_of_name() {
    let fixture = Fixture::new();
    card(&fixture);
    let host = fixture.host();
    for (name, address) in [
        ("03:10.3", "03:10.3"),
        ("0000:03:10.3", "03:10.3"),
        ("eth2", "03:00.1"),
        ("eth2/vf1", "03:10.3"),
        ("03:00.1/vf0", "03:10.1"),
    ] {
        assert_eq!(host.resolve(name), Ok(bdf(address)), "{name}");
    }
}

#[test]
fn a_sloppy_address_is_answered_with_what_was_meant() {
    let fixture = Fixture::new();
    card(&fixture);
    assert_eq!(
        resolve_error(&fixture, "3:10"),
        "'3:10' is not a PCI address: two digits of bus, two of device, one of function, \
         such as 03:10.3\n  did you mean:  03:10.1 03:10.3"
    );
    for name in ["3:10.3", "0:3:10.3", "03:10.3 ", "03:20.9"] {
        let error = fixture.host().resolve(name).unwrap_err();
        assert!(matches!(error, ResolveError::Malformed { .. }), "{name}");
    }
    assert!(resolve_error(&fixture, "0:3:10.3").ends_with("did you mean:  03:10.3"));
}

#[test]
fn names_of_nothing_are_answered_with_names_of_something() {
    let fixture = Fixture::new();
    card(&fixture);
    assert_eq!(
        resolve_error(&fixture, "03:10.5"),
        "0000:03:10.5: no such device on this host\n  \
         on the same bus there is:  03:00.1 03:10.1 03:10.3"
    );
    assert!(resolve_error(&fixture, "04:00.0").ends_with("see what there is:  viaduct list"));
    assert!(resolve_error(&fixture, "eth3").ends_with("interfaces on PCI devices:  eth2"));
    for name in [
        "",
        ".",
        "..",
        "../..",
        "/",
        "eth2/",
        "eth2/vf",
        "eth2/vf+1",
        "eth2/vf-1",
        "eth2/1",
    ] {
        assert!(fixture.host().resolve(name).is_err(), "{name}");
    }
}

#[test]
fn an_interface_that_stands_on_no_device_is_told_from_one_that_is_not_there() {
    let fixture = Fixture::new();
    fixture.link("sys/class/net/br0", "../../devices/virtual/net/br0");
    let error = fixture.host().resolve("br0").unwrap_err();
    assert_eq!(error, ResolveError::NotPci("br0".into()));
}

#[test]
fn virtual_functions_that_are_not_there_come_with_the_command_that_makes_them() {
    let fixture = Fixture::new();
    card(&fixture);
    assert_eq!(
        resolve_error(&fixture, "eth2/vf5"),
        "0000:03:00.1: has no virtual function 5: 2 of 8 are enabled\n  \
         enable as many as you need:  viaduct sriov 03:00.1 --vfs 6"
    );
    assert!(resolve_error(&fixture, "eth2/vf8").contains("it can have 8, vf0 to vf7\n"));
    assert!(resolve_error(&fixture, "03:10.3/vf0").contains("has no SR-IOV capability"));
}

#[test]
fn a_group_with_a_driver_of_the_host_in_it_is_refused_with_both_ways_out() {
    let fixture = Fixture::new();
    let (one, other) = (
        fixture.add(function("03:10.3")),
        fixture.add(function("03:10.1")),
    );
    let bridge = Function {
        driver: Some("pcieport"),
        header_type: 1,
        ..function("00:1c.0")
    };
    fixture.add(bridge);
    let host = fixture.host();
    assert_eq!(
        host.viability(one, &[one]).unwrap_err().to_string(),
        "0000:03:10.3: IOMMU group 8 is not usable: 0000:03:10.1 in the same group is bound to igbvf\n  \
         give the whole group to the guest:  viaduct run --vfio 03:10.3 --vfio 03:10.1\n  \
         or detach it from its driver:       viaduct bind 03:10.1"
    );
    assert!(host.take(&[one], &BindOptions::default()).is_err());
    assert_eq!(fixture.driver_of(one).as_deref(), Some("igbvf"));
    host.viability(one, &[one, other]).unwrap();
    // What is detached, for us or for nobody, is no obstacle.
    host.bind(&[other], &BindOptions::default()).unwrap();
    host.viability(one, &[one]).unwrap();
}

#[test]
fn a_device_that_keeps_its_driver_is_refused_unless_that_is_one_of_vfios() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let host = fixture.host();
    assert_eq!(
        host.check_free(&[device]).unwrap_err().to_string(),
        "0000:03:10.3: is bound to igbvf, and managed=off does not rebind it\n  \
         bind it first:  viaduct bind 03:10.3"
    );
    host.bind(&[device], &BindOptions::default()).unwrap();
    host.check_free(&[device]).unwrap();
}

#[test]
fn several_obstacles_in_a_group_are_all_named() {
    let fixture = Fixture::new();
    for name in ["03:10.1", "03:10.3", "03:10.5"] {
        fixture.add(function(name));
    }
    let error = fixture.host().viability(bdf("03:10.3"), &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "0000:03:10.3: IOMMU group 8 is not usable: still bound in the same group: \
         0000:03:10.1 (igbvf), 0000:03:10.5 (igbvf)\n  \
         give the whole group to the guest:  viaduct run --vfio 03:10.3 --vfio 03:10.1 --vfio 03:10.5\n  \
         or detach them from their drivers:  viaduct bind 03:10.1 03:10.5"
    );
}

#[test]
fn nobody_is_told_to_give_a_bridge_to_a_guest() {
    let fixture = Fixture::new();
    let (device, other) = (
        fixture.add(function("03:10.3")),
        fixture.add(function("03:10.1")),
    );
    fixture.add(Function {
        driver: Some("shpchp"),
        header_type: 1,
        ..function("00:1c.0")
    });
    let by_hand = "detach 0000:00:1c.0 by hand, as root:  \
         echo 0000:00:1c.0 > /sys/kernel/iommu_groups/8/devices/0000:00:1c.0/driver/unbind";
    let said = |taking: &[_]| {
        let refused = fixture.host().viability(device, taking);
        refused.unwrap_err().to_string()
    };
    assert_eq!(
        said(&[device, other]),
        format!(
            "0000:03:10.3: IOMMU group 8 is not usable: 0000:00:1c.0 in the same group is bound to shpchp\n  {by_hand}"
        )
    );
    assert_eq!(
        said(&[device]),
        format!(
            "0000:03:10.3: IOMMU group 8 is not usable: still bound in the same group: \
             0000:00:1c.0 (shpchp), 0000:03:10.1 (igbvf)\n  {by_hand}\n  \
             give the whole group to the guest:  viaduct run --vfio 03:10.3 --vfio 03:10.1\n  \
             or detach it from its driver:       viaduct bind 03:10.1"
        )
    );
}

#[test]
fn an_obstacle_that_is_no_pci_function_is_detached_by_hand() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let member = "sys/kernel/iommu_groups/8/devices/INTC1056:00";
    fixture.link(
        &format!("{member}/driver"),
        "../../../../bus/platform/drivers/gpio",
    );
    let error = fixture.host().viability(device, &[device]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "0000:03:10.3: IOMMU group 8 is not usable: INTC1056:00 in the same group is bound to gpio\n  \
         detach INTC1056:00 by hand, as root:  echo INTC1056:00 > /sys/kernel/iommu_groups/8/devices/INTC1056:00/driver/unbind"
    );
}

#[test]
fn without_an_iommu_the_text_depends_on_what_the_firmware_has() {
    let without = |files: &[(&str, &str)]| {
        let fixture = Fixture::new();
        let device = fixture.add(Function {
            group: None,
            ..function("03:10.3")
        });
        std::fs::remove_dir_all(fixture.path("sys/class/iommu")).unwrap();
        for (path, text) in files {
            fixture.file(path, text);
        }
        let error = fixture.host().viability(device, &[]).unwrap_err();
        assert!(matches!(error, GroupError::NoIommu(_)));
        error.to_string()
    };
    let tables = "sys/firmware/acpi/tables";
    assert_eq!(
        without(&[
            (&format!("{tables}/DMAR"), ""),
            ("proc/cpuinfo", "AuthenticAMD")
        ]),
        "0000:03:10.3: no IOMMU keeps it within the guest's memory: the machine has one but the kernel \
         does not use it (/sys/class/iommu is empty)\n  \
         boot with intel_iommu=on; how to do that on this system:  viaduct doctor"
    );
    assert!(without(&[(&format!("{tables}/IVRS"), "")]).contains("boot without amd_iommu=off"));
    assert!(without(&[("proc/cpuinfo", "vendor_id\t: GenuineIntel")]).contains("'VT-d'"));
    assert!(without(&[("proc/cpuinfo", "vendor_id\t: AuthenticAMD")]).contains("AMD-Vi"));
    assert!(without(&[]).contains("in a virtual machine, give it one"));
    assert!(without(&[("sys/class/iommu/dmar0/x", "")]).contains("not for this device"));
}

#[test]
fn what_has_a_group_open_is_found_through_the_group_and_through_its_devices() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let cdev = format!("sys/bus/pci/devices/{device}/vfio-dev/vfio3/dev");
    fixture.file(&cdev, "");
    for (pid, file) in [
        (10, "vfio/8"),
        (11, "vfio/devices/vfio3"),
        (12, "vfio/80"),
        (13, "vfio/vfio"),
    ] {
        fixture.process(pid, "vmm");
        fixture.open(pid, file);
    }
    let pids: Vec<u32> = fixture.host().holders(8).iter().map(|h| h.pid).collect();
    assert_eq!(pids, [10, 11]);
}

/// What the host would miss of the device at 03:00.1, after `prepare`.
fn dangers(prepare: impl Fn(&Fixture)) -> Vec<Danger> {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:00.1"));
    fixture.interface("eth2", device);
    let disk = format!("../../devices/pci0000:00/{device}/ata1/block/sda");
    fixture.link("sys/class/block/sda", &disk);
    fixture.link("sys/class/block/sda2", format!("{disk}/sda2"));
    let part = format!("sys/devices/pci0000:00/{device}/ata1/block/sda/sda2");
    fixture.file(&format!("{part}/dev"), "8:2\n");
    prepare(&fixture);
    let host = fixture.host();
    let dangers = host.dangers(&host.device(device).unwrap());
    let taken = host.take(&[device], &BindOptions::default());
    assert_eq!(taken.is_err(), !dangers.is_empty());
    let force = BindOptions {
        force: true,
        ..BindOptions::default()
    };
    drop(taken);
    host.take(&[device], &force).unwrap().give_back().unwrap();
    dangers
}

const ROUTES: &str = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";

#[test]
fn a_device_that_the_host_does_without_is_no_danger() {
    let found = dangers(|fixture| {
        let routes = format!(
            "{ROUTES}eth2 0002000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\neth2 00000000 00000000 0001 0 0 0 000000FF 0 0 0\neth9 00000000 0202000A 0003 0 0 0 00000000 0 0 0\n"
        );
        fixture.file("proc/net/route", routes);
        fixture.file(
            "proc/self/mountinfo",
            "22 1 8:3 / / rw - ext4 /dev/sda3 rw\n",
        );
        fixture.file(
            "proc/swaps",
            "Filename Type Size Used Priority\n/dev/sdb1 partition 1 0 -2\n",
        );
    });
    assert_eq!(found, []);
}

#[test]
fn the_default_route_is_followed_to_the_device() {
    let v4 = format!("{ROUTES}eth2 00000000 0202000A 0003 0 0 0 00000000 0 0 0\n");
    let bridged = v4.replace("eth2", "br0.7");
    let zeros = "0".repeat(32);
    let v6 = format!("{zeros} 00 {zeros} 00 fe80 00000400 1 0 00000003 eth2\n");
    let found = [
        dangers(|fixture| fixture.file("proc/net/route", &v4)),
        dangers(|fixture| fixture.file("proc/net/ipv6_route", &v6)),
        dangers(|fixture| {
            fixture.file("proc/net/route", &bridged);
            fixture.file("sys/class/net/br0.7/lower_br0", "");
            fixture.file("sys/class/net/br0/lower_eth2", "");
        }),
    ];
    for dangers in found {
        let interface = "eth2".into();
        assert_eq!(dangers, [Danger::DefaultRoute { interface }]);
    }
}

#[test]
fn a_mounted_share_of_a_virtio_device_is_found_by_its_tag() {
    let shares = |kind: &'static str, tag: &'static str| {
        dangers(move |fixture| {
            let device = "sys/bus/pci/devices/0000:03:00.1/virtio3";
            fixture.file(&format!("{device}/mount_tag"), "lab\0");
            fixture.file("sys/fs/virtiofs/1/tag", "home\n");
            fixture.link("sys/fs/virtiofs/1/device", "../../../devices/virtio3");
            fixture.file("sys/fs/virtiofs/2/tag", "other\n");
            fixture.link("sys/fs/virtiofs/2/device", "../../../devices/virtio4");
            let mounts = format!("22 1 0:40 / /lab ro - {kind} {tag} rw\n");
            fixture.file("proc/self/mountinfo", mounts);
        })
    };
    for (kind, tag) in [("9p", "lab"), ("virtiofs", "home")] {
        let (disk, at) = (format!("the share '{tag}'"), "/lab".into());
        assert_eq!(shares(kind, tag), [Danger::Mounted { disk, at }]);
    }
    for (kind, tag) in [("9p", "home"), ("virtiofs", "other"), ("nfs", "lab")] {
        assert_eq!(shares(kind, tag), []);
    }
}

#[test]
fn a_mounted_file_system_is_found_by_number_by_name_and_through_a_mapping() {
    let mounted = |text: &'static str| {
        dangers(move |fixture| {
            fixture.file("sys/class/block/dm-0/dev", "253:0\n");
            fixture.file(
                "sys/devices/pci0000:00/0000:03:00.1/ata1/block/sda/sda2/holders/dm-0",
                "",
            );
            fixture.file("proc/self/mountinfo", text);
        })
    };
    for text in [
        "22 1 8:2 / /srv rw shared:1 - ext4 /dev/root rw\n",
        "22 1 0:27 /sub /srv rw - btrfs /dev/sda2 rw\n",
        "22 1 253:0 / /srv rw - xfs /dev/mapper/srv rw\n",
    ] {
        let (disk, at) = ("sda2".into(), "/srv".into());
        assert_eq!(mounted(text), [Danger::Mounted { disk, at }], "{text}");
    }
}

#[test]
fn a_path_to_a_multipath_namespace_stands_for_the_namespace() {
    let found = dangers(|fixture| {
        let path = "../../devices/pci0000:00/0000:03:00.1/nvme/nvme0/nvme0c1n1";
        fixture.link("sys/class/block/nvme0c1n1", path);
        fixture.file("sys/class/block/nvme0n1/dev", "259:0\n");
        let mounts = "22 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n";
        fixture.file("proc/self/mountinfo", mounts);
    });
    let (disk, at) = ("nvme0c1n1".into(), "/".into());
    assert_eq!(found, [Danger::Mounted { disk, at }]);
}

#[test]
fn swap_the_boot_display_and_virtual_functions_are_dangers() {
    let swap = dangers(|fixture| {
        let swaps = "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n";
        fixture.file("proc/swaps", swaps);
    });
    let disk = "sda2".into();
    assert_eq!(swap, [Danger::Swap { disk }]);
    let vga = dangers(|fixture| fixture.file("sys/bus/pci/devices/0000:03:00.1/boot_vga", "1\n"));
    assert_eq!(vga, [Danger::BootVga]);
    let functions = dangers(|fixture| {
        let function = fixture.add(function("03:10.1"));
        fixture.virtual_functions(bdf("03:00.1"), &[function], 8);
        // In a group of its own, so that only the danger speaks.
        let groups = "sys/kernel/iommu_groups/8/devices/0000:03:10.1";
        std::fs::remove_file(fixture.path(groups)).unwrap();
    });
    assert_eq!(functions, [Danger::VirtualFunctions(vec![bdf("03:10.1")])]);
}

#[test]
fn a_danger_is_explained_with_the_way_to_do_it_all_the_same() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:00.1"));
    fixture.file("sys/bus/pci/devices/0000:03:00.1/boot_vga", "1\n");
    let error = fixture.host().bind(&[device], &BindOptions::default());
    assert_eq!(
        error.unwrap_err().to_string(),
        "0000:03:00.1: not taken from this host: it is the display that this host booted on\n  \
         if that is what you want:  viaduct run --force …, or viaduct bind --force 03:00.1"
    );
}

#[test]
fn every_function_of_the_machine_that_runs_this_is_read_as_sysfs_has_it() {
    let root = std::path::Path::new("/sys/bus/pci/devices");
    let listed = std::fs::read_dir(root).into_iter().flatten();
    let mut names: Vec<_> = listed
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    if names.is_empty() {
        return println!("SKIPPED (this machine has no PCI functions)");
    }
    names.sort_unstable();
    let host = crate::host::Host::new();
    let functions = host.functions();
    let found: Vec<_> = functions.iter().map(|bdf| bdf.to_string()).collect();
    assert_eq!(found, names);
    for bdf in functions {
        let number = |attribute: &str| {
            let path = root.join(bdf.to_string()).join(attribute);
            let text = std::fs::read_to_string(path).unwrap();
            u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap()
        };
        let device = host.device(bdf).unwrap();
        assert_eq!(device.bdf, bdf);
        assert_eq!(u32::from(device.vendor), number("vendor"));
        assert_eq!(u32::from(device.device), number("device"));
        assert_eq!(device.class, number("class"));
        let boot_display = host.dangers(&device).contains(&Danger::BootVga);
        assert_eq!(boot_display, device.boot_vga);
        // Without an IOMMU there is no group to be viable.
        let viable = host.viability(bdf, &[bdf]).is_ok();
        assert!(!viable || device.iommu_group.is_some(), "{bdf}");
    }
}
