//! Addresses for BARs, as firmware would give them before the guest starts.
//!
//! Largest first, then by slot and register: the same devices get the same addresses in every run. Each memory BAR has its pages for
//! itself, so that also one smaller than a page can be mapped straight through.

use std::{cmp::Reverse, ops::Range, sync::Arc};

use super::{
    Function, Slot,
    bar::{BarKind, BarSpec},
    root::PciRoot,
    space::Windows,
};

const PAGE: u64 = 4096;

/// A BAR has no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    /// The windows of the host bridge are too small for all that is in the guest.
    #[error(
        "BAR {index} of slot {slot} needs {size:#x} of {space}: {left:#x} are left of {window:#x?}\n  \
         assign fewer devices to this guest"
    )]
    NoRoom {
        /// Whose BAR it is.
        slot: Slot,
        /// Which.
        index: usize,
        /// Its size in bytes (or ports).
        size: u64,
        /// What was short: `I/O ports`, `memory below 4 GiB` or `memory`.
        space: &'static str,
        /// How much is left, aligned as this BAR needs it.
        left: u64,
        /// The whole window.
        window: Range<u64>,
    },
    /// A guest looks for function 0 and, where there is none, for no other.
    #[error("slot {0} is in use, but its device has no function 0\n  put one at {device:02x}.0", device = .0.device)]
    NoFunctionZero(Slot),
}

/// A window, and how much of it is given away.
struct Window<'w> {
    whole: &'w Range<u64>,
    next: u64,
}

impl<'w> Window<'w> {
    fn new(whole: &'w Range<u64>) -> Self {
        // Address 0 is how a BAR says that it has none.
        let next = whole.start.max(1);
        Self { whole, next }
    }

    /// Where the next `size` (a power of two) would start, and how much there is from there on.
    fn left(&self, size: u64) -> (u64, u64) {
        let start = self.next.checked_next_multiple_of(size).unwrap_or(u64::MAX);
        (start, self.whole.end.saturating_sub(start))
    }

    fn take(&mut self, size: u64) -> Option<u64> {
        let (start, left) = self.left(size);
        (left >= size).then(|| {
            self.next = start.saturating_add(size);
            start
        })
    }
}

type Wanted = (Slot, Arc<dyn Function>, BarSpec);

impl PciRoot {
    /// Gives every BAR of every function an address in `windows`; decoding stays as it is.
    ///
    /// 64-bit BARs go high, and low when they find no room there; all others have no choice, so they are served first.
    pub fn assign_bars(&self, windows: &Windows) -> Result<(), AssignError> {
        let wanted = self.wanted()?;
        let mut io = Window::new(&windows.io);
        let mut low = Window::new(&windows.memory32);
        let mut high = Window::new(&windows.memory64);
        let is_wide = |wanted: &&Wanted| matches!(wanted.2.kind, BarKind::Memory64 { .. });
        for (slot, function, bar) in wanted.iter().filter(|wanted| !is_wide(wanted)) {
            let (window, size, space) = match bar.kind {
                BarKind::Io => (&mut io, bar.size, "I/O ports"),
                _ => (&mut low, bar.size.max(PAGE), "memory below 4 GiB"),
            };
            let address = window.take(size);
            let address = address.ok_or_else(|| no_room(*slot, bar, space, window))?;
            function.assign_bar(bar.index, address);
        }
        for (slot, function, bar) in wanted.iter().filter(is_wide) {
            let size = bar.size.max(PAGE);
            let address = high.take(size).or_else(|| low.take(size));
            let address = address.ok_or_else(|| no_room(*slot, bar, "memory", &high))?;
            function.assign_bar(bar.index, address);
        }
        Ok(())
    }

    /// Every BAR there is, largest first.
    fn wanted(&self) -> Result<Vec<Wanted>, AssignError> {
        let mut wanted = Vec::new();
        for (slot, function) in self.functions() {
            if self
                .get(Slot {
                    function: 0,
                    ..slot
                })
                .is_none()
            {
                return Err(AssignError::NoFunctionZero(slot));
            }
            let bars = function.bars().into_iter();
            wanted.extend(bars.map(|bar| (slot, function.clone(), bar)));
        }
        wanted.sort_by_key(|(slot, _, bar)| (Reverse(bar.size), *slot, bar.index));
        Ok(wanted)
    }
}

fn no_room(slot: Slot, bar: &BarSpec, space: &'static str, window: &Window<'_>) -> AssignError {
    let &BarSpec { index, size, .. } = bar;
    AssignError::NoRoom {
        slot,
        index,
        size,
        space,
        left: window.left(size).1,
        window: window.whole.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Card, Random};

    const IO: BarKind = BarKind::Io;
    const LOW: BarKind = BarKind::Memory32 {
        prefetchable: false,
    };
    const HIGH: BarKind = BarKind::Memory64 { prefetchable: true };

    fn windows() -> Windows {
        Windows {
            io: 0x1000..0x2000,
            memory32: 0xe000_0000..0xe100_0000,
            memory64: 0x10_0000_0000..0x20_0000_0000,
        }
    }

    fn bar(index: usize, kind: BarKind, size: u64) -> BarSpec {
        BarSpec { index, kind, size }
    }

    fn root(cards: &[(&str, Arc<Card>)]) -> PciRoot {
        let root = PciRoot::new();
        for (slot, card) in cards {
            root.add(slot.parse().unwrap(), card.clone()).unwrap();
        }
        root
    }

    #[test]
    fn each_kind_goes_to_its_window_the_largest_first() {
        let bars = [
            bar(0, LOW, 256),
            bar(1, IO, 32),
            bar(2, HIGH, 0x4000),
            bar(4, LOW, 0x10_0000),
        ];
        let card = Card::new(1, &bars);
        root(&[("03", card.clone())])
            .assign_bars(&windows())
            .unwrap();
        assert_eq!(card.address(4), 0xe000_0000);
        assert_eq!(card.address(0), 0xe010_0000);
        assert_eq!(card.address(1), 0x1000);
        assert_eq!(card.address(2), 0x10_0000_0000);
    }

    #[test]
    fn two_small_bars_do_not_share_a_page() {
        let card = Card::new(1, &[bar(0, LOW, 128), bar(1, LOW, 128)]);
        root(&[("03", card.clone())])
            .assign_bars(&windows())
            .unwrap();
        assert_eq!(
            (card.address(0), card.address(1)),
            (0xe000_0000, 0xe000_1000)
        );
    }

    #[test]
    fn wide_bars_go_low_when_there_is_no_room_high() {
        let card = Card::new(1, &[bar(0, HIGH, 0x1000), bar(2, LOW, 0x1000)]);
        let windows = Windows {
            memory64: 0..0,
            ..windows()
        };
        root(&[("03", card.clone())]).assign_bars(&windows).unwrap();
        assert_eq!(
            (card.address(2), card.address(0)),
            (0xe000_0000, 0xe000_1000)
        );
    }

    #[test]
    fn what_was_short_is_named() {
        let card = Card::new(1, &[bar(2, LOW, 0x200_0000)]);
        let error = root(&[("03", card)]).assign_bars(&windows()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "BAR 2 of slot 03.0 needs 0x2000000 of memory below 4 GiB: 0x1000000 are left of \
             0xe0000000..0xe1000000\n  assign fewer devices to this guest"
        );
        let cards: Vec<_> = (1..4).map(|n| Card::new(n, &[bar(0, IO, 0x800)])).collect();
        let names = ["01", "02", "03"];
        let root = root(&names.into_iter().zip(cards).collect::<Vec<_>>());
        let error = root.assign_bars(&windows()).unwrap_err().to_string();
        assert!(
            error.contains("slot 03.0 needs 0x800 of I/O ports: 0x0 are left"),
            "{error}"
        );
    }

    #[test]
    fn a_device_without_function_zero_is_refused() {
        let root = root(&[("03.1", Card::new(1, &[]))]);
        let error = root.assign_bars(&windows()).unwrap_err();
        assert_eq!(error, AssignError::NoFunctionZero("03.1".parse().unwrap()));
    }

    #[test]
    fn no_two_bars_overlap_and_each_is_aligned_and_inside() {
        let mut random = Random::new(4);
        for _ in 0..500 {
            let cards: Vec<_> = (1..20).map(|_| random_card(&mut random)).collect();
            let root = PciRoot::new();
            for (device, card) in (1..).zip(&cards) {
                let slot = Slot {
                    device,
                    function: 0,
                };
                root.add(slot, card.clone()).unwrap();
            }
            root.assign_bars(&windows()).unwrap();
            let bars = cards
                .iter()
                .flat_map(|card| card.bars().into_iter().map(|b| (card.address(b.index), b)));
            let mut taken: Vec<_> = bars.map(|(at, bar)| check(at, &bar)).collect();
            taken.sort_by_key(|range| range.start);
            assert!(taken.windows(2).all(|pair| pair[0].end <= pair[1].start));
        }
    }

    fn random_card(random: &mut Random) -> Arc<Card> {
        let specs = [
            bar(0, LOW, 16 << random.within(0..14)),
            bar(1, IO, 4 << random.within(0..5)),
            bar(2, HIGH, 16 << random.within(0..26)),
            bar(4, HIGH, 16 << random.within(0..10)),
        ];
        Card::new(1, &specs)
    }

    /// Asserts that a BAR is aligned and in its window; answers with what nobody else may have.
    fn check(at: u64, bar: &BarSpec) -> Range<u64> {
        let window = match bar.kind {
            BarKind::Io => windows().io,
            BarKind::Memory32 { .. } => windows().memory32,
            BarKind::Memory64 { .. } => windows().memory64,
        };
        assert!(at.is_multiple_of(bar.size) && window.start <= at && at + bar.size <= window.end);
        let own = if bar.kind.is_memory() {
            bar.size.max(PAGE)
        } else {
            bar.size
        };
        at..at + own
    }
}
