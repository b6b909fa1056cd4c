//! Failures that a guest can bring about as often as it likes: the more there are, the less is said.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often something failed.
#[derive(Default)]
pub(super) struct Failures(AtomicU64);

impl Failures {
    /// Counts one more. Its number, if it is one to tell of: the first, the second, the fourth…
    pub(super) fn count(&self) -> Option<u64> {
        let number = self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        number.is_power_of_two().then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_failures_are_told_of_twenty_times() {
        let failures = Failures::default();
        let told: Vec<_> = (0..1_000_000).filter_map(|_| failures.count()).collect();
        assert_eq!(told[..4], [1, 2, 4, 8]);
        assert_eq!(told.len(), 20);
    }
}
