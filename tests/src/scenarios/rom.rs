//! Expansion ROMs: the device's own, another from a file, none.

use std::time::Duration;

use super::reading::md5;
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "a guest reads a card's expansion ROM as the host does, or the file that was put in its place, or none",
        machine: Machine::example,
        limit: Duration::from_secs(150),
        run: roms,
    }]
}

/// What the guest finds: the md5 of the ROM of each function that has one.
const READ: &str = "cd /sys/bus/pci/devices; for rom in */rom; do echo 1 > $rom; \
    echo == ${rom%/rom} $(md5sum < $rom); done";

/// A ROM that is not the card's, on L1's disk.
const FILE: &str = "/usr/share/qemu/pxe-rtl8139.rom";

fn roms(l1: &Host) -> Result<()> {
    let own = l1.sh("cd /sys/bus/pci/devices/0000:05:01.0; echo 1 > rom; md5sum < rom")?;
    // As long as the images in it say, which is what the guest's kernel goes by.
    let file = l1.sh(&format!("md5sum < {FILE}"))?;
    let run = |second: &str| {
        let vfio =
            format!("run --memory 256M --vfio 05:01.0,addr=01 --vfio 05:02.0,addr=02,rom={second}");
        l1.viaduct(&vfio).script(READ).start()?.succeeds()
    };
    let console = run(FILE)?;
    expect(
        console.contains(&format!("== 0000:00:01.0 {}", md5(&own)?)),
        "the card's own, to the byte",
    )?;
    expect(
        console.contains(&format!("== 0000:00:02.0 {}", md5(&file)?)),
        "the file, to the byte",
    )?;
    let console = run("off")?;
    expect(
        console.contains(&format!("== 0000:00:01.0 {}", md5(&own)?)),
        "the card's own ROM in slot 1",
    )?;
    expect(!console.contains("== 0000:00:02.0 "), "none in slot 2")
}
