//! Where a device's DMA gets to and where not: a DMA engine that a guest aims at the host's memory.

use std::time::{Duration, Instant};

use super::address_space;
use super::reading::Statistics;
use super::vf::STATS;
use super::{Scenario, expect};
use crate::agent::{Event, Job};
use crate::cards::Iommu;
use crate::error::{Error, Result};
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "DMA outside of the guest's memory reaches nothing and is told of with device and address",
        machine: address_space::machine,
        limit: Duration::from_secs(120),
        run: |l1| stray_dma(l1, address_space::ENGINE),
    }]
}

/// A page of the host's is watched while the guest has the engine of this address write there, and read.
pub(super) fn stray_dma(l1: &Host, engine: &str) -> Result<()> {
    let page = l1.job("/lab/l2/lab-guest page", Duration::from_secs(100))?;
    let address = address_of(&page)?;
    // Past the guest's memory in its own addresses, too: 256 MiB.
    expect(
        address > 256 << 20,
        "the page is where the guest has nothing",
    )?;
    let mut guest = l1
        .viaduct(&format!(
            "run --memory 256M --vfio {engine},addr=01 --stats /run/stats.json"
        ))
        .script(&format!(
            "lab-guest edu 01.0 dma && lab-guest edu 01.0 stray {address:#x}"
        ))
        .start()?;
    let console = guest.wait_for("LAB-L2 exit 0")?;
    expect(guest.wait_for_end()? == 0, "poweroff is exit status 0")?;
    expect(
        console.contains("dma ok"),
        "DMA into the guest's own memory is right to the last byte",
    )?;
    expect(
        console.contains(&format!("read 0x00, all of it, at {address:#x}")),
        "the guest read nothing of the host's page",
    )?;
    // The kernel cannot tell a read from a write in AMD-Vi's event, and QEMU's AMD-Vi (11.1.3) reports address 0 in each.
    let is_amd = l1.iommu() == Iommu::Amd;
    let (accesses, reported) = if is_amd {
        (&["to"][..], 0)
    } else {
        (&["write to", "read from"][..], address)
    };
    for access in accesses {
        let told = format!("warn: {engine}: DMA {access} {reported:#x} refused by the IOMMU");
        expect(
            guest.errors().contains(&told),
            &format!("viaduct says: {told}"),
        )?;
    }
    let engine = Statistics::read(l1, STATS)?.device(engine)?;
    expect(
        engine.number("/refused_dma/count")? >= 2
            && engine.number("/refused_dma/last_address")? == reported,
        "the statistics have it",
    )?;
    page.close_stdin()?;
    let page = page.wait()?;
    expect(
        page.code == 0 && page.stdout.contains("page ok: the page is as it was"),
        "the host's page is untouched",
    )
}

/// Waits until the page is there, and says where.
fn address_of(page: &Job<'_>) -> Result<u64> {
    let end = Instant::now() + Duration::from_secs(20);
    let mut said = String::new();
    while !said.contains('\n') {
        match page.next(end)? {
            Some(Event::Stdout(bytes)) => said.push_str(&String::from_utf8_lossy(&bytes)),
            Some(Event::Stderr(bytes)) => said.push_str(&String::from_utf8_lossy(&bytes)),
            Some(Event::Exit(_)) | None => break,
        }
    }
    let digits = said.trim().strip_prefix("page at 0x");
    digits
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| Error::Unexpected(format!("no page of the host's to watch: {said}")))
}
