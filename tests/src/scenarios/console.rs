//! The guest's serial port: without anybody at it, and on a terminal.

use std::time::Duration;

use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::guest::Guest;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "a guest runs on without anything to read from",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: nobody_types,
        },
        Scenario {
            name: "typing on a terminal reaches the guest, Ctrl-A x ends it, and the terminal is as before",
            machine: Machine::example,
            limit: Duration::from_secs(90),
            run: somebody_types,
        },
        Scenario {
            name: "the terminal is as before after SIGTERM",
            machine: Machine::example,
            limit: Duration::from_secs(90),
            run: terminal_after_signal,
        },
    ]
}

fn nobody_types(l1: &Host) -> Result<()> {
    // Closed, at its end at once, and a pipe that nobody writes to any more.
    let inputs = ["<&-", "< /dev/null", "< <(true)"];
    let start = |stdin| {
        let plan = l1.viaduct("run --memory 256M").stdin(stdin);
        plan.script("sleep 2; echo still here").start()
    };
    let guests = inputs.into_iter().map(start).collect::<Result<Vec<_>>>()?;
    for guest in guests {
        let said = guest.succeeds()?;
        expect(said.contains("still here"), "the guest ran to its end")?;
    }
    Ok(())
}

/// A guest with a shell, on a terminal.
fn on_terminal(l1: &Host) -> Result<Guest<'_>> {
    let mut guest = l1.viaduct("run --memory 256M").on_terminal().start()?;
    guest.wait_for("A shell in the guest")?;
    Ok(guest)
}

/// After the VMM's end: status 0, and the terminal's settings are what they were.
fn expect_terminal_as_before(mut guest: Guest<'_>) -> Result<()> {
    guest.wait_for_end()?;
    let settings: Vec<&str> = (guest.console().lines())
        .filter_map(|line| line.strip_prefix("settings "))
        .collect();
    expect(
        settings.len() == 2 && settings[0] == settings[1],
        "the terminal's settings are as before",
    )?;
    let status = guest.console().lines().any(|line| line == "status 0");
    expect(status, "the exit status is 0")
}

fn somebody_types(l1: &Host) -> Result<()> {
    let mut guest = on_terminal(l1)?;
    guest.type_in("echo sum $((40 + 2))\n")?;
    guest.wait_for("sum 42")?;
    guest.type_in("\x01x")?;
    expect_terminal_as_before(guest)
}

fn terminal_after_signal(l1: &Host) -> Result<()> {
    let guest = on_terminal(l1)?;
    l1.sh("pkill -TERM -x viaduct")?;
    expect_terminal_as_before(guest)
}
