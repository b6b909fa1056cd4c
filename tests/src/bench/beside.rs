//! A guest of Viaduct's and one of QEMU's microvm that run beside each other in one L1, all the time, and are measured in turn, so that
//! what the machine does besides disturbs both alike. Medians, of which in emulation only the ratio means anything.

use crate::error::Result;
use crate::guest::{Guest, Plan};
use crate::host::Host;
use crate::progress::step;

/// How often each thing is measured.
const ROUNDS: usize = 5;

/// One of the two.
#[derive(Debug)]
pub(super) struct Side<'a> {
    /// The VMM's process, as pgrep knows it.
    process: &'static str,
    pub(super) guest: Guest<'a>,
}

/// Both, Viaduct's first.
pub(super) type Sides<'a> = [Side<'a>; 2];

/// What was measured of both, Viaduct's first.
pub(super) type Both<T> = [Vec<T>; 2];

/// Starts both; `ready` is called when one runs, and waits for what is to be measured.
pub(super) fn start<'a>(
    viaduct: Plan<'a>,
    qemu: Plan<'a>,
    ready: impl Fn(&mut Guest<'a>) -> Result<()>,
) -> Result<Sides<'a>> {
    let start = |process, plan: Plan<'a>| {
        let guest = step(&format!("Starting {process}"), || {
            let mut guest = plan.start()?;
            ready(&mut guest)?;
            Ok(guest)
        })?;
        Ok(Side { process, guest })
    };
    // Names of processes have 15 bytes.
    Ok([start("viaduct", viaduct)?, start("qemu-system-x86", qemu)?])
}

/// Measures one thing of both in turn. `measure` gets which of them it is, 0 or 1.
pub(super) fn in_turn<'a, T>(
    what: &str,
    sides: &mut Sides<'a>,
    mut measure: impl FnMut(usize, &mut Side<'a>) -> Result<T>,
) -> Result<Both<T>> {
    let mut both = [Vec::new(), Vec::new()];
    step(what, || {
        for _ in 0..ROUNDS {
            for (number, (side, measured)) in sides.iter_mut().zip(&mut both).enumerate() {
                measured.push(measure(number, side)?);
            }
        }
        Ok(both)
    })
}

impl Side<'_> {
    /// The same in a second, after one in which what runs in the guest has begun.
    pub(super) fn exits_in_a_second(&self, host: &Host) -> Result<u64> {
        host.sh("sleep 1.5")?;
        let before = self.exits(host)?;
        host.sh("sleep 1")?;
        Ok(self.exits(host)?.saturating_sub(before))
    }

    /// The guest's exits by I/O and MMIO, as KVM has counted them, whatever VMM it is.
    pub(super) fn exits(&self, host: &Host) -> Result<u64> {
        let counters = "{io,mmio}_exits";
        let said = host.sh(&format!(
            "mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug; \
             cat /sys/kernel/debug/kvm/$(pgrep -x {})-*/{counters}",
            self.process
        ))?;
        let counts = said.lines().filter_map(|line| line.parse::<u64>().ok());
        Ok(counts.sum())
    }
}

/// Above the rows.
pub(super) fn print_head(title: &str) {
    println!(
        "\n{title:48}{:>10}{:>10}{:>8}",
        "viaduct", "microvm", "ratio"
    );
}

/// The medians of what `of` tells of each. Of nothing there is no ratio: a data path may well be without an exit.
pub(super) fn print_row<T>(name: &str, both: &Both<T>, of: impl Fn(&T) -> f64) {
    let medians = both.each_ref();
    let [ours, theirs] = medians.map(|runs| median(runs.iter().map(&of).collect()));
    let ratio = if theirs > 0.0 {
        format!("{:.2}", ours / theirs)
    } else {
        "-".into()
    };
    println!("{name:48}{ours:>10.2}{theirs:>10.2}{ratio:>8}");
}

/// The middle one; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_numbers_is_the_middle_one_whatever_the_order() {
        assert!((median(vec![9.0, 1.5, 5.0]) - 5.0).abs() < f64::EPSILON);
        assert!(median(Vec::new()).abs() < f64::EPSILON);
    }
}
