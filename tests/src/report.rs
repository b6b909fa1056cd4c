//! The tally of a test run: a line for everything that was checked, and the sum at the end.

use std::time::Duration;

use crate::error::{Error, Result};

/// What was counted so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
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

    /// Adds another tally.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// The last line of a test run.
    pub(crate) fn sum(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}
