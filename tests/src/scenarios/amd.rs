//! A host with AMD-Vi in place of Intel's IOMMU. `cargo lab test --iommu amd` runs every scenario on one; these are in every run.

use std::time::Duration;

use super::cards::{CARDS, Card, EDU, RTL8139, expect_works};
use super::vf::{SECOND, expect_back};
use super::{Scenario, dma, expect};
use crate::cards::{Cards, Iommu, Machine};
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "on AMD-Vi, a VF and a card that interrupts by its pin work in one guest",
            machine,
            limit: Duration::from_secs(150),
            run: |l1| {
                let iommus = l1.sh("ls /sys/class/iommu")?;
                expect(iommus.trim() == "ivhd0", "the host's IOMMU is AMD's")?;
                vf_and_pin(l1)
            },
        },
        Scenario {
            name: "on AMD-Vi, DMA outside of the guest's memory reaches nothing and is told of with device and address",
            machine,
            limit: Duration::from_secs(120),
            run: |l1| dma::stray_dma(l1, CARDS[EDU].at),
        },
    ]
}

const PIN: &Card = &CARDS[RTL8139];

fn machine() -> Machine {
    Machine::with_cards(cards()).iommu(Iommu::Amd)
}

/// The example card, a card without messages, and a DMA engine.
pub(super) fn cards() -> Cards {
    Cards::sriov().with(PIN.plug).with(CARDS[EDU].plug)
}

pub(super) fn vf_and_pin(l1: &Host) -> Result<()> {
    let guest = l1
        .viaduct(&format!(
            "run --cpus 2 --memory 256M --vfio 03:10.3,addr=06 --vfio {},addr=08",
            PIN.at
        ))
        .script("nic=$(ls /sys/bus/pci/devices/0000:00:06.0/net); lab-dhcp $nic && ping -A -c 3 -I $nic 10.0.2.2 && lab-card nic 08")
        .start()?;
    let console = guest.succeeds()?;
    expect(
        console.contains("3 packets received"),
        "ping 3/3 through the VF",
    )?;
    expect_works(l1, &console, PIN, 8)?;
    expect_back(l1, SECOND)
}
