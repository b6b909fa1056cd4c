//! `cargo lab bench bind`: binding devices and putting them back, beside the same writes to sysfs from a shell in the same L1.
//! Interleaved; medians, of which in emulation only the ratio means anything.

use std::time::Duration;

use super::ratio;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::progress::step;

const RUNS: usize = 11;
/// One round in L1.
const MEASURE: &str = include_str!("../../../resources/lab/l1-bench-bind");
/// Numbers of devices, from the four of the example machine.
const DEVICES: [&str; 4] = [
    "0000:03:10.1",
    "0000:03:10.3",
    "0000:05:01.0",
    "0000:05:02.0",
];
const NUMBERS: [usize; 2] = [1, DEVICES.len()];

/// Runs it in this L1 and prints the table.
pub(crate) fn run(host: &Host) -> Result<i32> {
    // On a disk of L1's own, as where it is installed: from the share each start of a program takes as long as binding does.
    host.sh("cp /lab/bin/viaduct /usr/local/bin/")?;
    // Whoever comes first would load the modules for both.
    host.sh("viaduct bind 03:10.1 && viaduct restore")?;
    let mut rows = Vec::new();
    for number in NUMBERS {
        let what = format!("{RUNS} rounds with {number} devices");
        rows.push((number, step(&what, || rounds(host, &DEVICES[..number]))?));
    }
    let title = "bound and back, ms a device";
    println!(
        "\n{title:38}{:>10}{:>10}{:>8}",
        "viaduct", "by hand", "ratio"
    );
    for (number, times) in &rows {
        print_row(&format!("{number} at once"), *number, *times);
    }
    // What is paid once, whatever is bound, is the start of the program, which in emulation takes as long as binding a device.
    if let [(fewer, before), .., (more, after)] = rows[..] {
        let further = (
            after.0.saturating_sub(before.0),
            after.1.saturating_sub(before.1),
        );
        print_row("each further one", more - fewer, further);
    }
    Ok(0)
}

fn print_row(name: &str, devices: usize, (ours, theirs): (u64, u64)) {
    let ms = |us: u64| ratio(us, 1000) / ratio(devices as u64, 1);
    println!(
        "{name:38}{:>10.1}{:>10.1}{:>8.2}",
        ms(ours),
        ms(theirs),
        ratio(ours, theirs)
    );
}

/// The medians of both, in microseconds.
fn rounds(host: &Host, devices: &[&str]) -> Result<(u64, u64)> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let script = format!("set -- {}\n{MEASURE}", devices.join(" "));
        let output = host.output(&script, Duration::from_secs(60))?;
        let numbers = output.stdout.split_whitespace().map(str::parse);
        let numbers: std::result::Result<Vec<u64>, _> = numbers.collect();
        let Ok(&[viaduct, by_hand]) = numbers.as_deref() else {
            let said = format!("{}{}", output.stdout, output.stderr);
            return Err(Error::Unexpected(said));
        };
        ours.push(viaduct);
        theirs.push(by_hand);
    }
    Ok((median(ours), median(theirs)))
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_times_is_the_middle_one() {
        assert_eq!(median(vec![9, 1, 5]), 5);
        assert_eq!(median(Vec::new()), 0);
    }
}
