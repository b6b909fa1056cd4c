//! All cards in one guest with two processors, at work at the same time.

use std::time::Duration;

use super::alone::OBEY;
use super::table::{CARDS, machine};
use super::{Scenario, echo_serial, expect, expect_works, expect_written};
use crate::error::Result;
use crate::guest::Guest;
use crate::host::Host;

/// The slot of the first; the others follow.
const FIRST_SLOT: usize = 8;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "all cards work in one guest, and again after each of several reboots",
            machine,
            limit: Duration::from_secs(600),
            run: |l1| work_through_reboots(l1, l1.amount(2, 5)),
        },
        Scenario {
            name: "all cards work after their drivers were unloaded and loaded again and again",
            machine,
            limit: Duration::from_secs(400),
            run: work_after_reloads,
        },
    ]
}

/// A guest with all of them, which uses each after `reloads` unloads and loads of its driver.
fn start(l1: &Host, reloads: Option<usize>) -> Result<Guest<'_>> {
    echo_serial(l1)?;
    let places = CARDS.iter().zip(FIRST_SLOT..);
    let assigned: String = places
        .clone()
        .map(|(card, slot)| format!(" --vfio {},addr={slot:02x}", card.at))
        .collect();
    let times = reloads
        .map(|times| format!(" reload {times}"))
        .unwrap_or_default();
    let uses: String = places
        .map(|(card, slot)| format!("lab-card {} {slot:x}{times} & ", card.used_as))
        .collect();
    l1.viaduct(&format!("run --force --cpus 2 --memory 384M{assigned}"))
        .script(&format!("{uses} wait; {OBEY}"))
        .deadline_s(600)
        .start()
}

fn expect_all_work(l1: &Host, said: &str) -> Result<()> {
    for (card, slot) in CARDS.iter().zip(FIRST_SLOT..) {
        expect_works(l1, said, card, slot)?;
    }
    Ok(())
}

fn end(l1: &Host, guest: Guest<'_>) -> Result<()> {
    guest.type_in("exit\n")?;
    let console = guest.succeeds()?;
    for (card, slot) in CARDS.iter().zip(FIRST_SLOT..) {
        let used = expect_works(l1, &console, card, slot)?;
        expect_written(l1, card, &used)?;
    }
    Ok(())
}

pub(in crate::scenarios) fn work_through_reboots(l1: &Host, reboots: usize) -> Result<()> {
    let before = l1.bindings()?;
    let mut guest = start(l1, None)?;
    for boot in 0..=reboots {
        guest.wait_for("LAB-L2 init")?;
        let said = guest.wait_for("== used")?;
        expect_all_work(l1, &said)?;
        if boot < reboots {
            guest.type_in("reboot\n")?;
        }
    }
    end(l1, guest)?;
    expect(l1.bindings()? == before, "all cards are given back")
}

fn work_after_reloads(l1: &Host) -> Result<()> {
    let mut guest = start(l1, Some(l1.amount(5, 20)))?;
    let said = guest.wait_for("== used")?;
    expect_all_work(l1, &said)?;
    end(l1, guest)
}
