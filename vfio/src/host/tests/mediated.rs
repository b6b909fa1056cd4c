//! Mediated devices: named, found, refused.

use crate::{
    Assignable,
    host::{
        MediatedError, ResolveError,
        fixture::{Fixture, bdf, function},
    },
};

const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
const OTHER: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002";

/// A serial port that the kernel's sample driver makes, in group 9.
fn add_mediated(fixture: &Fixture, uuid: &str) {
    let dir = format!("sys/bus/mdev/devices/{uuid}");
    fixture.file(&format!("{dir}/mdev_type/device_api"), "vfio-pci\n");
    fixture.link(
        &format!("{dir}/iommu_group"),
        "../../../../kernel/iommu_groups/9",
    );
    let member = format!("sys/kernel/iommu_groups/9/devices/{uuid}");
    fixture.link(&member, fixture.path(&dir));
}

fn add_type(fixture: &Fixture, name: &str, left: u32) {
    let dir = format!("sys/class/mdev_bus/mtty/mdev_supported_types/{name}");
    fixture.file(&format!("{dir}/available_instances"), format!("{left}\n"));
}

#[test]
fn a_mediated_device_is_named_by_its_uuid_or_its_path() {
    let fixture = Fixture::new();
    add_mediated(&fixture, UUID);
    fixture.add(function("03:10.3"));
    let host = fixture.host();
    for name in [
        UUID.to_owned(),
        UUID.to_uppercase(),
        format!("/sys/bus/mdev/devices/{UUID}"),
        format!("/sys/devices/virtual/mtty/mtty/{UUID}/"),
    ] {
        let found = host.resolve_assignable(&name);
        assert_eq!(found, Ok(Assignable::Mediated(UUID.into())), "{name}");
    }
    for name in ["03:10.3", "/sys/bus/pci/devices/0000:03:10.3"] {
        let found = host.resolve_assignable(name);
        assert_eq!(found, Ok(bdf("03:10.3").into()), "{name}");
    }
}

#[test]
fn a_path_that_is_no_devices_is_refused() {
    let fixture = Fixture::new();
    for name in [
        "/",
        "/sys",
        "/sys/bus/mdev/devices/",
        "/dev/vfio/9",
        "/etc/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001",
        "/sys/../83b8f4f2-509f-382f-3c1e-e6bfe0fa1001",
        "/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa100",
        "/sys/bus/mdev/devices/83b8f4f2509f-382f-3c1e-e6bfe-0fa1001",
        "/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa100g",
    ] {
        let found = fixture.host().resolve_assignable(name);
        assert_eq!(found, Err(ResolveError::NotADevice(name.into())), "{name}");
    }
}

#[test]
fn a_uuid_of_nothing_is_answered_with_what_there_is_and_how_to_make_it() {
    let fixture = Fixture::new();
    let error = |fixture: &Fixture| {
        let found = fixture.host().resolve_assignable(OTHER);
        found.unwrap_err().to_string()
    };
    assert_eq!(
        error(&fixture),
        format!(
            "{OTHER}: no such mediated device on this host\n  \
             no driver here makes any more of them; those that could:  ls /sys/class/mdev_bus"
        )
    );
    add_mediated(&fixture, UUID);
    add_type(&fixture, "mtty-1", 0);
    add_type(&fixture, "mtty-2", 3);
    assert_eq!(
        error(&fixture),
        format!(
            "{OTHER}: no such mediated device on this host\n  \
             there is:  {UUID}\n  \
             make it, as root:  echo {OTHER} > /sys/class/mdev_bus/mtty/mdev_supported_types/mtty-2/create"
        )
    );
}

#[test]
fn a_mediated_device_that_somebody_has_or_that_is_for_another_bus_is_refused() {
    let fixture = Fixture::new();
    add_mediated(&fixture, UUID);
    let host = fixture.host();
    host.check_mediated(UUID).unwrap();
    fixture.process(4711, "qemu");
    fixture.open(4711, "vfio/9");
    let error = host.check_mediated(UUID).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{UUID}: in use by process 4711 (qemu)\n  shut that guest down, or end the process:  kill 4711"
        )
    );
    let api = format!("sys/bus/mdev/devices/{UUID}/mdev_type/device_api");
    fixture.file(&api, "vfio-ccw\n");
    assert!(matches!(
        host.check_mediated(UUID),
        Err(MediatedError::NotPci { api, .. }) if api == "vfio-ccw"
    ));
}

#[test]
fn a_mediated_device_is_held_by_who_has_its_own_file_open() {
    let fixture = Fixture::new();
    add_mediated(&fixture, UUID);
    let dir = format!("sys/bus/mdev/devices/{UUID}/vfio-dev/vfio3");
    fixture.file(&format!("{dir}/dev"), "511:3\n");
    fixture.process(4711, "qemu");
    fixture.open(4711, "vfio/devices/vfio3");
    let error = fixture.host().check_mediated(UUID).unwrap_err();
    assert!(matches!(error, MediatedError::InUse { holder, .. } if holder.pid == 4711));
}
