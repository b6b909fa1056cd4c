//! A mediated device in a guest: the PCI serial card that the kernel's sample driver (samples/vfio-mdev/mtty.c) makes of nothing,
//! which sends back what is written to it.

use std::time::Duration;

use super::{Scenario, expect};
use crate::cards::{HostKernel, Machine};
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "a mediated serial card talks to the guest's serial driver, through the container and through iommufd",
        machine: || Machine::example().kernel(HostKernel::Iommufd),
        limit: Duration::from_secs(150),
        run: serial_card,
    }]
}

const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
const OTHER: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002";
const TYPES: &str = "/sys/class/mdev_bus/mtty/mdev_supported_types";

/// Lines shorter than the card's queue of 16 bytes, which it takes for empty when it is full.
const TALK: &str = "lspci -nnks 7; stty -F /dev/ttyS1 raw -echo 115200; cat /dev/ttyS1 > /run/back & sleep 1; \
    for i in 1 2 3 4 5; do echo \"line $i comes\" > /dev/ttyS1; \
    n=0; until grep -q \"line $i comes\" /run/back; do n=$((n+1)); [ $n = 50 ] && break 2; sleep 0.2; done; done; \
    cat /run/back; grep ttyS1 /proc/interrupts; echo == end; true";

fn serial_card(l1: &Host) -> Result<()> {
    let missing = l1.output(
        &format!("viaduct run --kernel /lab/l2/vmlinuz --vfio {UUID}"),
        Duration::from_secs(20),
    )?;
    expect(
        missing.code == 1
            && missing
                .stderr
                .contains(&format!("echo {UUID} > {TYPES}/mtty-1/create")),
        "of one that is not there viaduct says how to make it",
    )?;
    // One for each guest: the card has no reset, and keeps what went wrong in the last one.
    for (uuid, backend) in [(UUID, "container"), (OTHER, "iommufd")] {
        l1.sh(&format!("echo {uuid} > {TYPES}/mtty-1/create"))?;
        talks(l1, uuid, backend)?;
        l1.sh(&format!("echo 1 > /sys/bus/mdev/devices/{uuid}/remove"))?;
    }
    Ok(())
}

fn talks(l1: &Host, uuid: &str, backend: &str) -> Result<()> {
    let path = format!("/sys/bus/mdev/devices/{uuid}");
    let guest = l1
        .viaduct(&format!(
            "run --cpus 2 --memory 256M --iommu-backend {backend} --vfio {path},addr=07"
        ))
        .script(TALK)
        .start()?;
    let console = guest.succeeds()?;
    expect(
        console.contains("[4348:3253]") && console.contains("in use: serial"),
        "the guest's serial driver has the card",
    )?;
    for line in 1..=5 {
        let line = format!("line {line} comes");
        expect(console.contains(&line), &format!("'{line}' came back"))?;
    }
    let counts = console
        .lines()
        .find(|line| line.contains("IO-APIC") && line.contains("ttyS1"));
    let counted: u64 = counts
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map_while(|word| word.parse::<u64>().ok())
        .sum();
    expect(
        counted >= 5,
        "by the card's pin, which is unmasked each time",
    )
}
