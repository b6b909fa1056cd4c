//! The guest's serial port: without input, on a terminal, on a pseudoterminal, in a file.

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
        Scenario {
            name: "a serial port on a pseudoterminal takes typing, and files get all that a serial port or a console prints",
            machine: Machine::example,
            limit: Duration::from_secs(90),
            run: pseudoterminal_and_files,
        },
    ]
}

fn nobody_types(l1: &Host) -> Result<()> {
    // Closed, at its end at once, and a pipe that nobody writes to any more.
    let inputs = ["<&-", "< /dev/null", "< <(true)"];
    let start = |stdin| {
        let plan = l1.viaduct("run --memory 256M").redirect(stdin);
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

/// Without an initrd the kernel panics and reboots, which ends the machine after a few seconds.
const TO_FILE: &str = "viaduct run --kernel /lab/l2/vmlinuz --cmdline 'console=ttyS0 panic=-1' --memory 128M --no-reboot \
    --serial /run/serial.log < /dev/null && tr -d '\\r' < /run/serial.log";

fn pseudoterminal_and_files(l1: &Host) -> Result<()> {
    // The files are truncated.
    l1.sh("for file in serial hvc0; do echo stale > /run/$file.log; done")?;
    let mut guest = l1
        .viaduct("run --memory 256M --serial pty --console /run/hvc0.log")
        .script("echo == up; read -r word; echo heard $word; seq 300 > /dev/hvc0; echo == printed; read -r order")
        .on_its_own_terminal()
        .start()?;
    guest.wait_for("== up")?;
    guest.type_in("typed there\n")?;
    guest.wait_for("heard typed there")?;
    guest.wait_for("== printed")?;
    guest.type_in("\n")?;
    expect(guest.wait_for_end()? == 0, "the guest ends well")?;
    let numbers: String = (1..=300).map(|number| format!("{number}\n")).collect();
    let printed = l1.sh("tr -d '\\r' < /run/hvc0.log")?;
    expect(
        printed == numbers,
        "the console's file has what was printed, whole and nothing else",
    )?;
    let said = l1.sh(TO_FILE)?;
    expect(
        said.contains("Linux version") && said.contains("VFS: Unable to mount root fs"),
        "so has the serial port's",
    )?;
    expect(!said.contains("stale"), "nothing else is in it")
}
