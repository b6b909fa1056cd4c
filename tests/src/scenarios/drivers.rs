//! `viaduct bind`, `unbind` and `restore`, and what a guest makes of their work.

use std::time::Duration;

use super::vf::{FIRST, expect_back};
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "bind takes a device from its driver, unbind and restore give it back",
            machine: Machine::example,
            limit: Duration::from_secs(60),
            run: bind_and_back,
        },
        Scenario {
            name: "a dry run says each step and takes none",
            machine: Machine::example,
            limit: Duration::from_secs(60),
            run: dry_run,
        },
        Scenario {
            name: "a device that was bound beforehand stays bound after a guest",
            machine: Machine::example,
            limit: Duration::from_secs(90),
            run: bound_beforehand,
        },
    ]
}

fn expect_bound(l1: &Host) -> Result<()> {
    let bound = l1.driver(FIRST)?.as_deref() == Some("vfio-pci");
    expect(bound, "the VF is on vfio-pci")
}

fn bind_and_back(l1: &Host) -> Result<()> {
    let before = l1.bindings()?;
    for back in ["viaduct unbind 03:10.1", "viaduct restore"] {
        l1.sh("viaduct bind 03:10.1")?;
        expect_bound(l1)?;
        l1.sh(back)?;
        expect_back(l1, FIRST)?;
        expect(l1.bindings()? == before, "the host is as before")?;
    }
    Ok(())
}

fn dry_run(l1: &Host) -> Result<()> {
    let before = l1.state()?;
    let guest = "--kernel /lab/l2/vmlinuz --initrd /lab/l2/initrd";
    for command in [
        "viaduct bind --dry-run 03:10.1".to_owned(),
        format!("viaduct run {guest} --vfio 03:10.1 --dry-run"),
    ] {
        let said = l1.sh(&command)?;
        for step in [
            "echo vfio-pci > /sys/bus/pci/devices/0000:03:10.1/driver_override",
            "echo 0000:03:10.1 > /sys/bus/pci/drivers/igbvf/unbind",
        ] {
            expect(said.contains(step), &format!("`{command}` says `{step}`"))?;
        }
    }
    l1.expect_unchanged(&before)
}

fn bound_beforehand(l1: &Host) -> Result<()> {
    l1.sh("viaduct bind 03:10.1")?;
    let mut guest = l1.viaduct("run --memory 256M --vfio 03:10.1").start()?;
    guest.wait_for("LAB-L2 init")?;
    expect(guest.ended_by(libc::SIGTERM)? == 0, "SIGTERM ends it")?;
    expect_bound(l1)?;
    l1.sh("viaduct unbind 03:10.1")?;
    expect_back(l1, FIRST)
}
