//! The tally of a test run: a line for everything that was checked, the accidents, and the sum at the end.

use std::time::Duration;

use crate::error::{Error, Result};

/// What was counted so far.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    /// A line for each accident of emulation: what it happened to, and its cause.
    accidents: Vec<String>,
}

impl Tally {
    /// Counts results that another program has counted already.
    pub(crate) fn of(passed: usize, failed: usize, skipped: usize) -> Self {
        Self {
            passed,
            failed,
            skipped,
            accidents: Vec::new(),
        }
    }

    /// Counts one result and prints it.
    pub(crate) fn count(&mut self, name: &str, took: Duration, result: &Result<()>) {
        let time = took.as_secs_f32();
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("PASSED  {name} ({time:.1} s)");
            }
            Err(Error::Skipped(reason)) => {
                self.skipped += 1;
                println!("SKIPPED {name} ({reason})");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAILED  {name} ({time:.1} s)\n{error}");
            }
        }
    }

    /// Prints how a scenario failed that runs once more at the end, which is what counts.
    pub(crate) fn put_off(&mut self, name: &str, took: Duration, error: &Error) {
        let time = took.as_secs_f32();
        println!("AGAIN   {name} ({time:.1} s): runs once more at the end, alone\n{error}");
    }

    /// Keeps an accident for the end of the run.
    pub(crate) fn accident(&mut self, what: &str, cause: &str) {
        self.accidents.push(format!("ACCIDENT {what}: {cause}"));
    }

    /// Adds another tally.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.accidents.extend(other.accidents);
    }

    /// The end of a test run: the accidents, then a line that is always of the same form.
    pub(crate) fn sum(&self) -> String {
        let Self {
            passed,
            failed,
            skipped,
            accidents,
        } = self;
        let lines = accidents.iter().map(|line| format!("{line}\n"));
        let sum = format!("{passed} passed, {failed} failed, {skipped} skipped");
        lines.chain([sum]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_name_each_accident_and_the_sum_is_the_last() {
        let mut tally = Tally::of(3, 0, 1);
        tally.accident("a scenario", "the emulator did it; passed the second time");
        let mut other = Tally::of(1, 1, 0);
        other.accident("a boot of L1", "not up within 60 s");
        tally.add(other);
        assert_eq!(
            tally.sum(),
            "ACCIDENT a scenario: the emulator did it; passed the second time\n\
             ACCIDENT a boot of L1: not up within 60 s\n\
             4 passed, 1 failed, 1 skipped"
        );
    }
}
