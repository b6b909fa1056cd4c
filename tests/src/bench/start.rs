//! `cargo lab bench`: Viaduct beside QEMU's microvm in one L1, with the same kernel, initial file system, memory, processor and VF.
//! Interleaved, so that what the machine does besides disturbs both alike; medians, of which in emulation only the ratio means
//! anything.

use std::fs;
use std::time::Duration;

use super::ratio;
use crate::error::{Doing, Error, Result};
use crate::guest::Plan;
use crate::host::Host;
use crate::paths;
use crate::progress::step;

const RUNS: usize = 5;
const DEVICE: &str = "0000:03:10.3";
/// What is measured, in L1.
const MEASURE: &str = include_str!("../../../resources/lab/l1-bench");
/// What the guest does once its init is there: nothing.
const IDLE: &str = "sleep 1000";

/// What one start took.
#[derive(Debug)]
pub(crate) struct Start {
    pub(super) ms: u64,
    exits: u64,
    outside_kib: u64,
}

/// Runs it in this L1 and prints the table.
pub(crate) fn run(host: &Host) -> Result<i32> {
    // Beforehand and for both: QEMU does not take devices from their drivers.
    host.sh("viaduct bind 03:10.3")?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 1..=RUNS {
        let viaduct = host.viaduct("run --cpus 1 --memory 512M --vfio 03:10.3,addr=06");
        let qemu = host.reference(1, "512M", &[DEVICE]);
        let both = [("viaduct", viaduct, &mut ours), ("QEMU", qemu, &mut theirs)];
        for (name, plan, starts) in both {
            let what = format!("Run {number} of {RUNS}: {name}");
            starts.push(step(&what, || once(host, plan))?);
        }
    }
    print_table("init", &ours, &theirs);
    let binary = paths::target().join("release/viaduct");
    let size = fs::metadata(&binary).doing(|| format!("looking at {}", binary.display()))?;
    println!("\nsize of the binary: {} KiB", size.len() / 1024);
    Ok(0)
}

/// Starts a guest until its init says that it is there.
pub(super) fn once(host: &Host, plan: Plan<'_>) -> Result<Start> {
    until(host, &plan.script(IDLE), "LAB-L2 init")
}

/// Starts a guest until a line of its console has `text`.
pub(super) fn until(host: &Host, plan: &Plan<'_>, text: &str) -> Result<Start> {
    let command = plan.command()?;
    let quoted = command.replace('\'', "'\\''");
    let script = format!("set -- '{quoted}' '{text}'\n{MEASURE}");
    let output = host.output(&script, Duration::from_secs(120))?;
    let numbers = output.stdout.split_whitespace().map(str::parse);
    match numbers
        .collect::<std::result::Result<Vec<u64>, _>>()
        .as_deref()
    {
        Ok(&[ms, io, mmio, outside_kib]) => Ok(Start {
            ms,
            exits: io + mmio,
            outside_kib,
        }),
        _ => Err(Error::Program {
            command,
            status: output.code.to_string(),
            tail: [output.stdout, output.stderr].concat(),
        }),
    }
}

/// Of what `of` tells of each.
pub(super) fn median(starts: &[Start], of: impl Fn(&Start) -> u64) -> u64 {
    let mut values: Vec<u64> = starts.iter().map(of).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

pub(super) fn print_table(what: &str, ours: &[Start], theirs: &[Start]) {
    println!(
        "\n{:38}{:>10}{:>10}{:>8}",
        "", "viaduct", "microvm", "ratio"
    );
    let row = |name: &str, of: fn(&Start) -> u64| {
        let (ours, theirs) = (median(ours, of), median(theirs, of));
        println!(
            "{name:38}{ours:>10}{theirs:>10}{:>8.2}",
            ratio(ours, theirs)
        );
    };
    row(&format!("exec to the guest's {what}, ms"), |start| start.ms);
    row("exits by I/O and MMIO until then", |start| start.exits);
    row("resident outside guest RAM, KiB", |start| start.outside_kib);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_whatever_the_order() {
        let start = |ms| Start {
            ms,
            exits: 0,
            outside_kib: 0,
        };
        assert_eq!(median(&[start(9), start(1), start(5)], |start| start.ms), 5);
    }
}
