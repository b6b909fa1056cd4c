//! A driver that is told which kind of interrupt to use, and interrupts that are counted on the line that they came by.

use std::time::Duration;

use super::table::{CARDS, Card, E1000E, Interrupts, NVME, machine};
use super::{Scenario, expect_works};
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "an e1000e that is told to use its pin interrupts by INTx",
            machine,
            limit: Duration::from_secs(120),
            run: |l1| works_by(l1, E1000E, Interrupts::Intx, "e1000e.IntMode=0"),
        },
        Scenario {
            name: "an e1000e that is told to use messages and a table of them interrupts by MSI-X",
            machine,
            limit: Duration::from_secs(120),
            run: |l1| works_by(l1, E1000E, Interrupts::Msix, "e1000e.IntMode=2"),
        },
        Scenario {
            name: "an NVMe disk works by INTx in a guest that knows no messages",
            machine,
            limit: Duration::from_secs(120),
            run: |l1| works_by(l1, NVME, Interrupts::Intx, "pci=nomsi"),
        },
    ]
}

fn works_by(l1: &Host, card: usize, interrupts: Interrupts, words: &str) -> Result<()> {
    let card = Card {
        interrupts,
        ..CARDS[card]
    };
    let guest = l1
        .viaduct(&format!(
            "run --cpus 2 --memory 256M --vfio {},addr=08",
            card.at
        ))
        .kernel_words(words)
        .script(&format!("lab-card {} 8", card.used_as))
        .start()?;
    let console = guest.succeeds()?;
    expect_works(l1, &console, &card, 8).map(drop)
}
