//! How a machine ends: by a signal at any time, and by the guest's own death; what the exit status says, and whose the devices
//! are then.

use std::time::Duration;

use super::vf::{FIRST, SECOND, expect_back};
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::guest::Guest;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "SIGTERM, SIGINT, SIGHUP and SIGQUIT end a guest in good order and give its VF back",
            machine: Machine::example,
            limit: Duration::from_secs(150),
            run: signals_give_back,
        },
        Scenario {
            name: "SIGTERM while a guest is being set up gives its VF back",
            machine: Machine::example,
            limit: Duration::from_secs(90),
            run: signal_in_set_up,
        },
        Scenario {
            name: "after SIGKILL viaduct restore gives the VF back",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: restore_after_kill,
        },
        Scenario {
            name: "the exit status says whether the guest died or rebooted, and its VF is given back",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: guest_ends_itself,
        },
    ]
}

/// Begins a guest with a VF, and a script for it.
fn begin<'a>(l1: &'a Host, vf: &str) -> Result<Guest<'a>> {
    let plan = l1.viaduct(&format!("run --memory 256M --vfio {vf}"));
    plan.script("ip link set eth0 up; echo == up; sleep 100")
        .start()
}

/// Waits until the guest's driver is up.
fn wait_until_busy(l1: &Host, guest: &mut Guest<'_>, vf: &str) -> Result<()> {
    guest.wait_for("== up")?;
    let taken = l1.driver(vf)?.as_deref() == Some("vfio-pci");
    expect(taken, &format!("{vf} is on vfio-pci while the guest runs"))
}

fn signals_give_back(l1: &Host) -> Result<()> {
    let before = l1.bindings()?;
    let guests = [begin(l1, FIRST)?, begin(l1, SECOND)?];
    let signals = [(libc::SIGTERM, FIRST), (libc::SIGINT, SECOND)];
    for (mut guest, (signal, vf)) in guests.into_iter().zip(signals) {
        wait_until_busy(l1, &mut guest, vf)?;
        expect(guest.ended_by(signal)? == 0, "the exit status is 0")?;
        expect_back(l1, vf)?;
    }
    // These take the same path in the VMM: a guest that has just started is enough.
    let early = |vf| {
        l1.viaduct(&format!("run --memory 256M --vfio {vf}"))
            .start()
    };
    let guests = [early(FIRST)?, early(SECOND)?];
    for (mut guest, (signal, vf)) in guests
        .into_iter()
        .zip([(libc::SIGHUP, FIRST), (libc::SIGQUIT, SECOND)])
    {
        guest.wait_for("LAB-L2 init")?;
        let status = guest.ended_by(signal)?;
        let what = format!("signal {signal} ends in status 0, not {status}");
        expect(status == 0, &what)?;
        expect_back(l1, vf)?;
    }
    expect(
        l1.bindings()? == before,
        "reservations and journal are as before",
    )
}

/// Starts a guest, and ends it so many seconds after its VF was taken.
const END_EARLY: &str = "viaduct run --kernel /lab/l2/vmlinuz --initrd /lab/l2/initrd --memory 512M --vfio 03:10.3 \
    > /dev/null < /dev/null & \
    until grep -qs 0000:03:10.3 /run/viaduct/bindings.json; do :; done; sleep $delay; kill -TERM $!; wait $!; echo status $?";

fn signal_in_set_up(l1: &Host) -> Result<()> {
    let before = l1.bindings()?;
    let usual = vec![0.0, 0.2, 0.7, 1.5];
    let every_tenth = (0..20_u8).map(|tenths| f32::from(tenths) / 10.0);
    for delay in l1.amount(usual, every_tenth.collect()) {
        let said = l1.sh(&format!("delay={delay}; {END_EARLY}"))?;
        let what = format!("{delay} s after the VF was taken, SIGTERM ends in status 0");
        expect(said.contains("status 0"), &what)?;
        expect(l1.bindings()? == before, "the host is as before")?;
    }
    expect_back(l1, SECOND)
}

fn restore_after_kill(l1: &Host) -> Result<()> {
    let before = l1.bindings()?;
    let mut guest = begin(l1, SECOND)?;
    wait_until_busy(l1, &mut guest, SECOND)?;
    let status = guest.ended_by(libc::SIGKILL)?;
    expect(status == 128 + libc::SIGKILL, "it was killed")?;
    expect(
        l1.driver(SECOND)?.as_deref() == Some("vfio-pci"),
        "the VF is where the guest left it",
    )?;
    l1.sh("group=$(readlink /sys/bus/pci/devices/0000:03:10.3/iommu_group); : <> /dev/vfio/${group##*/}")?;
    let said = l1.sh("viaduct restore")?;
    expect(
        said.contains("0000:03:10.3: back on igbvf"),
        "restore says what it did",
    )?;
    expect_back(l1, SECOND)?;
    expect(
        l1.bindings()? == before,
        "reservations and journal are as before",
    )?;
    expect(
        l1.sh("viaduct restore")?.contains("nothing to restore"),
        "there is nothing left to restore",
    )
}

/// The guest's last words are found by what its kernel says of itself, which the host's tool does not know otherwise.
fn expect_remains(l1: &Host) -> Result<()> {
    let said = l1.sh("makedumpfile --dump-dmesg /run/core /run/dmesg > /run/said 2>&1 || cat /run/said; cat /run/dmesg; \
        set -- $(stat -c '%a %s %b' /run/core); echo mode $1 holes $(($2 > $3 * 512)); rm /run/core")?;
    let found = said.contains("] last words\n") && said.contains("sysrq triggered crash");
    expect(
        found,
        &format!("what is left of the guest can be read: {said}"),
    )?;
    let kept = said.contains("mode 600 holes 1");
    expect(
        kept,
        "nobody else can, and it is no larger than it has to be",
    )
}

fn guest_ends_itself(l1: &Host) -> Result<()> {
    let mut faulting = l1
        .viaduct("run --memory 256M --vfio 03:10.1")
        .kernel_words("reboot=t")
        .script("reboot")
        .start()?;
    let mut panicking = l1
        .viaduct("run --memory 256M --vfio 03:10.3 --core /run/core")
        .script(
            "modprobe qemu_fw_cfg || exit; echo last words > /dev/kmsg; echo c > /proc/sysrq-trigger; sleep 9",
        )
        .panics()
        .start()?;
    let mut rebooting = l1
        .viaduct("run --memory 256M --no-reboot")
        .script("reboot")
        .start()?;
    expect(faulting.wait_for_end()? == 3, "a triple fault is status 3")?;
    expect(
        faulting.errors().contains("triple-faulted"),
        "it says that the guest triple-faulted",
    )?;
    expect(panicking.wait_for_end()? == 3, "a panic is status 3")?;
    expect(
        panicking.errors().contains("panicked"),
        "it says that the guest panicked",
    )?;
    expect_remains(l1)?;
    expect(
        rebooting.wait_for_end()? == 0,
        "a reboot under --no-reboot is status 0",
    )?;
    let boots = rebooting.console().matches("LAB-L2 init").count();
    expect(boots == 1, "it booted once")?;
    expect_back(l1, FIRST)?;
    expect_back(l1, SECOND)
}
