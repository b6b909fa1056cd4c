//! A virtual function in a guest of Viaduct's.

use std::time::Duration;

use super::{Scenario, expect};
use crate::cards::{Cards, Machine};
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "a VF works in a guest of viaduct and goes back to its driver",
            machine: || Machine::with_cards(Cards::sriov()),
            limit: Duration::from_secs(120),
            run: vf_works,
        },
        Scenario {
            name: "without an IOMMU viaduct says what is missing and changes nothing",
            machine: || Machine::with_cards(Cards::sriov()).without_iommu(),
            limit: Duration::from_secs(60),
            run: no_iommu,
        },
    ]
}

fn vf_works(l1: &Host) -> Result<()> {
    let guest = l1
        .viaduct("run --cpus 2 --memory 512M --vfio 03:10.3,addr=06")
        .script("lspci -nn && lab-dhcp && ping -c 3 10.0.2.2 && grep eth0 /proc/interrupts")
        .start()?;
    let console = guest.succeeds()?;
    expect(console.contains("00:06.0"), "the VF is at 00:06.0")?;
    expect(
        console.contains("[8086:10ca]"),
        "it is an 82576 virtual function",
    )?;
    expect(
        console.contains("52:54:00:03:10:03"),
        "the guest has the MAC that was set through the PF",
    )?;
    expect(
        console.contains("PCI-MSIX"),
        "the VF's interrupts are MSI-X",
    )?;
    expect(
        console.contains("3 packets received"),
        "ping 3/3 through the VF",
    )?;
    expect(
        l1.driver("0000:03:10.3")?.as_deref() == Some("igbvf"),
        "the VF is back on igbvf",
    )
}

fn no_iommu(l1: &Host) -> Result<()> {
    let mut guest = l1
        .viaduct("run --cpus 1 --memory 256M --vfio 03:10.3")
        .start()?;
    expect(guest.wait_for_end()? == 1, "the exit status is 1")?;
    expect(guest.errors().contains("IOMMU"), "it names the IOMMU")?;
    expect(
        guest.errors().contains("firmware's set-up"),
        "it says where to turn it on",
    )?;
    expect(
        l1.driver("0000:03:10.3")?.as_deref() == Some("igbvf"),
        "the VF is still on igbvf",
    )
}
