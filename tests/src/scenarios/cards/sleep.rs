//! A card that its guest's driver puts to sleep when nobody needs it (runtime power management), and wakes when somebody does.

use std::time::Duration;

use serde_json::json;

use super::alone::OBEY;
use super::table::{CARDS, IGB, machine};
use super::{Scenario, expect, expect_works};
use crate::error::Result;
use crate::host::Host;

const SLOT: usize = 8;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "a card that its driver puts to sleep while it has no link is asleep, and works again with one",
        machine,
        limit: Duration::from_secs(150),
        run: sleeps_without_link,
    }]
}

/// Waits for a power state, which igb asks for five seconds after it has lost its link.
const REACH: &str = "p=/sys/bus/pci/devices/0000:00:08.0; reach() { for i in $(seq 200); do \
    grep -q $1 $p/power_state && break; usleep 200000; done; \
    echo now $(cat $p/power_state) $(cat $p/power/runtime_status); };";

fn sleeps_without_link(l1: &Host) -> Result<()> {
    let card = &CARDS[IGB];
    let mut guest = l1
        .viaduct(&format!(
            "run --force --cpus 2 --memory 256M --vfio {},addr=08",
            card.at
        ))
        .script(&format!("lab-card nic 8; {REACH} {OBEY}"))
        .start()?;
    guest.wait_for("== used")?;
    set_link(l1, false)?;
    guest.type_in("echo auto > $p/power/control; reach D3hot\n")?;
    guest.wait_for("now D")?;
    let state = guest.wait_for("\n")?;
    expect(
        state.trim() == "3hot suspended",
        &format!("the guest has it asleep: D{state}"),
    )?;
    expect_state(l1, card.at, "03")?;
    set_link(l1, true)?;
    guest.type_in("echo on > $p/power/control; reach D0; lab-card nic 8; echo == awake\n")?;
    let said = guest.wait_for("\n== awake")?;
    expect(said.contains("now D0 active"), "the guest has it awake")?;
    expect_state(l1, card.at, "00")?;
    expect_works(l1, &said, card, SLOT)?;
    guest.type_in("exit\n")?;
    guest.succeeds().map(drop)
}

/// Plugs the card's cable in, or pulls it.
fn set_link(l1: &Host, is_up: bool) -> Result<()> {
    l1.monitor("set_link", &json!({ "name": "n0", "up": is_up }))
        .map(drop)
}

/// The D-state that the card itself is in.
fn expect_state(l1: &Host, at: &str, state: &str) -> Result<()> {
    let found = l1.sh(&format!("setpci -s {at} CAP_PM+4.b"))?;
    let what = format!("the card's power state is {state}, not {found}");
    expect(found.trim() == state, &what)
}
