//! Addresses as devices see them: which of them can be mapped, and which cannot.

/// I/O addresses that can be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IovaRange {
    /// The first.
    pub first: u64,
    /// The last, which is in the range.
    pub last: u64,
}

impl IovaRange {
    /// What a kernel means that says nothing of ranges.
    pub(super) const ALL: Self = Self {
        first: 0,
        last: u64::MAX,
    };

    /// Ranges as the kernel tells them, in order, without those that are none.
    pub(super) fn in_order(pairs: impl IntoIterator<Item = (u64, u64)>) -> Vec<Self> {
        let mut ranges: Vec<_> = pairs
            .into_iter()
            .filter(|(first, last)| first <= last)
            .map(|(first, last)| Self { first, last })
            .collect();
        ranges.sort_by_key(|range| range.first);
        ranges
    }

    /// What is between `usable` ranges (in ascending order), and before and after them.
    pub(super) fn gaps(usable: &[Self]) -> Vec<Self> {
        let mut gaps = Vec::new();
        let mut next = Some(0);
        for range in usable {
            let first = match next {
                Some(next) => next,
                None => break,
            };
            if let Some(last) = range.first.checked_sub(1).filter(|&last| first <= last) {
                gaps.push(Self { first, last });
            }
            next = range.last.checked_add(1).map(|after| after.max(first));
        }
        gaps.extend(next.map(|first| Self {
            first,
            last: u64::MAX,
        }));
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange { first, last }
    }

    #[test]
    fn the_holes_of_an_intel_and_an_amd_host_are_reserved() {
        let usable = [range(0, 0xfedf_ffff), range(0xfef0_0000, 0xfc_ffff_ffff)];
        assert_eq!(
            IovaRange::gaps(&usable),
            [
                range(0xfee0_0000, 0xfeef_ffff),
                range(0xfd_0000_0000, u64::MAX)
            ]
        );
        assert_eq!(IovaRange::gaps(&[IovaRange::ALL]), []);
        assert_eq!(IovaRange::gaps(&[]), [IovaRange::ALL]);
        assert_eq!(
            IovaRange::gaps(&[range(5, 9), range(7, 8)])[1],
            range(10, u64::MAX)
        );
    }

    #[test]
    fn ranges_are_put_in_order_and_those_that_are_none_left_out() {
        let told = [(0x2000, 0x2fff), (5, 4), (0, 0xfff)];
        assert_eq!(
            IovaRange::in_order(told),
            [range(0, 0xfff), range(0x2000, 0x2fff)]
        );
    }
}
