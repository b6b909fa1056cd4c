//! Giving devices back: groups, plans, and what one device does to the others.

use std::fs;

use crate::host::{
    BindOptions, BindingError,
    fixture::{Fixture, Function, bdf, function},
};

fn options() -> BindOptions {
    BindOptions::default()
}

#[test]
fn a_whole_group_is_all_its_functions_but_the_bridges() {
    let fixture = Fixture::new();
    let bridge = Function {
        header_type: 1,
        class: 0x06_0400,
        driver: Some("pcieport"),
        ..function("00:05.0")
    };
    fixture.add(bridge);
    let first = fixture.add(function("05:01.0"));
    let second = fixture.add(function("05:02.0"));
    fixture.add(Function {
        group: Some(9),
        ..function("06:00.0")
    });
    let all = fixture.host().whole_groups(&[second, first]).unwrap();
    assert_eq!(all, [second, first]);
    assert_eq!(
        fixture.host().whole_groups(&[second]).unwrap(),
        [second, first]
    );
}

#[test]
fn what_keeps_one_device_does_not_keep_the_others() {
    let fixture = Fixture::new();
    let devices = [
        fixture.add(function("03:10.1")),
        fixture.add(function("03:10.3")),
        fixture.add(Function {
            group: Some(9),
            ..function("03:10.5")
        }),
    ];
    let host = fixture.host();
    host.bind(&devices, &options()).unwrap();
    fixture.process(77, "qemu-system-x86");
    fixture.open(77, "vfio/9");
    let gone = bdf("03:10.7");
    let all = [gone, devices[0], devices[2], devices[1]];
    let unbound = host.unbind(&all, None).unwrap();
    let moved: Vec<bool> = unbound.iter().map(|one| one.moved.is_ok()).collect();
    assert_eq!(moved, [false, true, false, true]);
    let (before, now) = unbound[1].moved.as_ref().unwrap();
    assert_eq!(
        (before.as_deref(), now.as_deref()),
        (Some("vfio-pci"), Some("igbvf"))
    );
    let error = unbound[2].moved.as_ref().unwrap_err();
    assert!(
        matches!(error, BindingError::InUse { holders, .. } if holders[0].pid == 77),
        "{error}"
    );
}

#[test]
fn plans_of_unbind_and_restore_are_what_someone_would_type_and_change_nothing() {
    let fixture = Fixture::new();
    let device = fixture.add(function("03:10.3"));
    let host = fixture.host();
    host.bind(&[device], &options()).unwrap();
    let before = fixture.state(&[device]);
    let back = [
        "echo > /sys/bus/pci/devices/0000:03:10.3/driver_override",
        "echo 0000:03:10.3 > /sys/bus/pci/drivers/vfio-pci/unbind",
        "echo 0000:03:10.3 > /sys/bus/pci/drivers/igbvf/bind",
    ];
    let plan = host.plan_unbind(&[device, device], None).unwrap();
    assert_eq!(plan.len(), 1);
    assert_eq!(plan[0].commands.as_ref().unwrap(), &back);
    let plan = host.plan_restore().unwrap();
    assert_eq!(plan[0].commands.as_ref().unwrap(), &back);
    let plan = host
        .plan_unbind(&[device], Some("uio_pci_generic"))
        .unwrap();
    let commands = plan[0].commands.as_ref().unwrap();
    assert_eq!(
        commands[2],
        "echo 0000:03:10.3 > /sys/bus/pci/drivers/uio_pci_generic/bind"
    );
    assert_eq!(fixture.state(&[device]), before);
    fs::remove_file(fixture.path("run/viaduct/bindings.json")).unwrap();
    let plan = host.plan_unbind(&[device], None).unwrap();
    let commands = plan[0].commands.as_ref().unwrap();
    assert_eq!(
        commands[2],
        "echo 0000:03:10.3 > /sys/bus/pci/drivers_probe"
    );
}

#[test]
fn an_unbind_without_a_record_that_died_at_any_step_is_undone_or_done() {
    let mut deaths = 0;
    for step in 0.. {
        let fixture = Fixture::new();
        let device = fixture.add(function("03:10.3"));
        fixture.hand_over(device, "vfio-pci", true);
        fixture.kernel.die_at(step, true);
        let unbound = fixture.host().unbind(&[device], None);
        if !fixture.kernel.revive() {
            break;
        }
        assert!(unbound.unwrap()[0].moved.is_err());
        deaths += 1;
        fixture.host().restore().unwrap();
        let state = fixture.state(&[device]).remove(0);
        let undone = (Some("vfio-pci".into()), Some("vfio-pci".into()));
        let done = (Some("igbvf".into()), None);
        assert!(state == undone || state == done, "step {step}: {state:?}");
        assert!(fixture.host().restore().unwrap().is_empty());
    }
    // Journal, override, unbind, probe, journal.
    assert_eq!(deaths, 5);
}

#[test]
fn an_unbind_to_another_driver_that_died_leaves_no_reservation_behind() {
    for step in 0..6 {
        let fixture = Fixture::new();
        let device = fixture.add(function("03:10.3"));
        fixture.driver("uio_pci_generic");
        fixture.kernel.die_at(step, true);
        let unbound = fixture.host().unbind(&[device], Some("uio_pci_generic"));
        assert_eq!(unbound.unwrap()[0].moved.is_err(), fixture.kernel.revive());
        fixture.host().restore().unwrap();
        let (driver, reserved) = fixture.state(&[device]).remove(0);
        assert_eq!(reserved, None, "step {step}");
        assert!(["igbvf", "uio_pci_generic"].contains(&driver.unwrap().as_str()));
    }
}

#[test]
fn a_driver_that_was_unloaded_is_loaded_by_the_name_of_its_module() {
    let fixture = Fixture::new();
    let device = fixture.add(Function {
        driver: Some("xhci_hcd"),
        ..function("00:14.0")
    });
    fixture.link(
        "sys/bus/pci/drivers/xhci_hcd/module",
        "../../../../module/xhci_pci",
    );
    let host = fixture.host();
    host.bind(&[device], &options()).unwrap();
    fs::remove_dir_all(fixture.path("sys/bus/pci/drivers/xhci_hcd")).unwrap();
    fixture.file("sys/modules/xhci_pci", "xhci_hcd");
    let restored = host.restore().unwrap();
    assert_eq!(restored[0].to_string(), "0000:00:14.0: back on xhci_hcd");
}
