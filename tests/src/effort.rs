//! How much a test run does of what could be done without end: rounds, random points.

use std::time::Duration;

/// How much a test run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// What fits into CI's time.
    Usual,
    /// Whatever it takes.
    Thorough,
}

impl Effort {
    /// What was asked for.
    pub(crate) fn of(thorough: bool) -> Self {
        if thorough {
            Self::Thorough
        } else {
            Self::Usual
        }
    }

    /// Of a usual and a thorough amount the one that is for this run.
    pub(crate) fn amount<T>(self, usual: T, thorough: T) -> T {
        match self {
            Self::Usual => usual,
            Self::Thorough => thorough,
        }
    }

    /// What a scenario may take that says this of its usual amount.
    pub(crate) fn limit(self, usual: Duration) -> Duration {
        // Two hundred rounds instead of ten, with room for a slow machine.
        self.amount(usual, usual * 40)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thorough_run_does_more_and_may_take_longer() {
        assert_eq!(Effort::Usual.amount(3, 50), 3);
        assert_eq!(Effort::Thorough.amount(3, 50), 50);
        let minute = Duration::from_secs(60);
        assert_eq!(Effort::Usual.limit(minute), minute);
        assert!(Effort::Thorough.limit(minute) > minute);
    }
}
