//! The tally of a test run: a line for everything that was checked, and the sum at the end.

use std::time::Duration;

use crate::error::{Error, Result};

/// What was counted so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    /// How many of these had failed before, and ran a second time.
    pub(crate) put_off: usize,
}

impl Tally {
    /// Counts one result and says it.
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

    /// Says how one failed that runs once more, which is what counts.
    pub(crate) fn put_off(&mut self, name: &str, took: Duration, error: &Error) {
        self.put_off += 1;
        let time = took.as_secs_f32();
        println!(
            "AGAIN   {name} ({time:.1} s): it failed, and runs once more at the end, alone\n{error}"
        );
    }

    /// Adds another tally.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.put_off += other.put_off;
    }

    /// The end of a test run; its last line is always of the same form.
    pub(crate) fn sum(&self) -> String {
        let Self {
            passed,
            failed,
            skipped,
            put_off,
        } = self;
        let sum = format!("{passed} passed, {failed} failed, {skipped} skipped");
        match put_off {
            0 => sum,
            1 => format!("1 scenario ran a second time\n{sum}"),
            _ => format!("{put_off} scenarios ran a second time\n{sum}"),
        }
    }
}
