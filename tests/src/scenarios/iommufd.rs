//! The host whose kernel has what no distribution's has: iommufd, a character device for each VFIO device, and a mediated device
//! without hardware.

use std::time::Duration;

use super::vf::{FIRST, expect_back, vf_works};
use super::{Scenario, expect};
use crate::cards::{HostKernel, Machine};
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "a host with iommufd has it, and a character device for what is on vfio-pci",
            machine,
            limit: Duration::from_secs(60),
            run: character_devices,
        },
        Scenario {
            name: "a host with iommufd makes a mediated device, which is a VFIO device in a group of its own",
            machine,
            limit: Duration::from_secs(60),
            run: mediated_device,
        },
        Scenario {
            name: "a VF works in a guest on a host with iommufd",
            machine,
            limit: Duration::from_secs(150),
            run: vf_works,
        },
    ]
}

/// The example machine with the lab's own kernel.
fn machine() -> Machine {
    Machine::example().kernel(HostKernel::Iommufd)
}

fn character_devices(l1: &Host) -> Result<()> {
    l1.sh("test -c /dev/iommu && test -c /dev/vfio/vfio && test -c /dev/kvm")?;
    l1.bind_to_vfio(FIRST)?;
    let name = l1.sh(&format!("ls /sys/bus/pci/devices/{FIRST}/vfio-dev"))?;
    expect(
        name.starts_with("vfio"),
        "the kernel says which VFIO device it is",
    )?;
    l1.sh(&format!("test -c /dev/vfio/devices/{}", name.trim()))?;
    l1.give_back(FIRST)?;
    expect_back(l1, FIRST)?;
    l1.sh("modprobe vfio-pci && modprobe igbvf")?;
    let vga = l1.sh("zcat /proc/config.gz | grep CONFIG_VFIO_PCI_VGA=")?;
    expect(vga.trim() == "CONFIG_VFIO_PCI_VGA=y", "VGA can be assigned")
}

const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

fn mediated_device(l1: &Host) -> Result<()> {
    let types = "/sys/devices/virtual/mtty/mtty/mdev_supported_types";
    l1.sh(&format!("echo {UUID} > {types}/mtty-1/create"))?;
    let device = format!("/sys/bus/mdev/devices/{UUID}");
    let group = l1.sh(&format!("basename $(readlink {device}/iommu_group)"))?;
    l1.sh(&format!("test -c /dev/vfio/{}", group.trim()))?;
    let name = l1.sh(&format!("ls {device}/vfio-dev"))?;
    l1.sh(&format!("test -c /dev/vfio/devices/{}", name.trim()))?;
    l1.sh(&format!("echo 1 > {device}/remove"))?;
    let gone = l1.output(&format!("test -e {device}"), Duration::from_secs(10))?;
    expect(gone.code == 1, "it is gone when it was removed")
}
