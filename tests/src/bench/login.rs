//! `cargo lab bench login`: how long a Debian takes to ask who is there, on a virtio disk of Viaduct's and on one of QEMU's microvm, in one
//! L1. Interleaved, each time on a fresh copy of the disk.

use super::start::{Start, print_table, until};
use crate::error::Result;
use crate::host::Host;
use crate::progress::step;

const RUNS: usize = 5;
const DISK: &str = "/run/system.img";
const QEMU_DISK: &str =
    "-drive if=none,id=root,format=raw,file=/run/system.img -device virtio-blk-pci,drive=root";
/// What agetty prints before it asks: the system, its name, and the line.
const ASKS: &str = "debian ttyS0";

/// Runs it in this L1 and prints the table.
pub(crate) fn run(host: &Host) -> Result<i32> {
    host.debian("/run/pristine.img")?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 1..=RUNS {
        let viaduct = host.viaduct(&format!("run --cpus 2 --memory 512M --disk {DISK}"));
        let qemu = host.reference(2, "512M", &[]).reference_words(QEMU_DISK);
        let both = [("viaduct", viaduct, &mut ours), ("QEMU", qemu, &mut theirs)];
        for (name, plan, starts) in both {
            host.sh(&format!("cp --sparse=always /run/pristine.img {DISK}"))?;
            let plan = plan.kernel_words("root=/dev/vda rw");
            let start = || until(host, &plan, ASKS);
            let start: Start = step(&format!("Run {number} of {RUNS}: {name}"), start)?;
            starts.push(start);
        }
    }
    print_table("login prompt", &ours, &theirs);
    Ok(0)
}
