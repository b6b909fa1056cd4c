//! Which BAR is where: a list in the order in which they came, and every question answered by looking at all of it.

use std::{iter, ops::Range};

use devices::pci::{
    bar::{BarKind, Decoded},
    space::Windows,
};

use super::{
    card::{Card, ROM},
    hardware::host_address,
};

const PAGE: u64 = 4096;

#[derive(Default)]
pub(super) struct Places(Vec<Claim>);

#[derive(Clone, Copy)]
pub(super) struct Claim {
    pub(super) card: usize,
    pub(super) bar: Decoded,
    is_placed: bool,
}

impl Claim {
    fn range(&self) -> Range<u64> {
        self.bar.address..self.bar.address + self.bar.size
    }

    fn touches(&self, kind: BarKind, range: &Range<u64>) -> bool {
        let own = self.range();
        let same_space = self.bar.kind.is_memory() == kind.is_memory();
        self.is_placed && same_space && own.start < range.end && range.start < own.end
    }
}

impl Places {
    /// Takes away what `card` has and does not want.
    pub(super) fn retain(&mut self, card: usize, wanted: &[Decoded]) {
        self.0
            .retain(|claim| claim.card != card || wanted.contains(&claim.bar));
        self.settle();
    }

    /// Adds what `card` wants and has not.
    pub(super) fn add(&mut self, card: usize, wanted: &[Decoded], windows: &Windows) {
        for &bar in wanted.iter().filter(|bar| is_forwarded(bar, windows)) {
            if !self
                .0
                .iter()
                .any(|claim| claim.card == card && claim.bar == bar)
            {
                self.0.push(Claim {
                    card,
                    bar,
                    is_placed: false,
                });
            }
        }
        self.settle();
    }

    fn settle(&mut self) {
        for at in 0..self.0.len() {
            let Claim { bar, is_placed, .. } = self.0[at];
            let range = self.0[at].range();
            let is_free = !self.0.iter().any(|claim| claim.touches(bar.kind, &range));
            self.0[at].is_placed = is_placed || is_free;
        }
    }

    /// Who answers an access, and where in it that is.
    pub(super) fn find(&self, is_memory: bool, address: u64, len: u64) -> Option<(&Claim, u64)> {
        let mut placed = self.0.iter().filter(|claim| claim.is_placed);
        let found = placed.find(|claim| {
            let range = claim.range();
            claim.bar.kind.is_memory() == is_memory
                && range.contains(&address)
                && address + len <= range.end
        });
        found.map(|claim| (claim, address - claim.bar.address))
    }

    /// Everything that should be mapped: address in the guest, length, address here; by address.
    pub(super) fn mapped(&self, cards: &[&Card]) -> Vec<(u64, u64, u64)> {
        let memory = self
            .0
            .iter()
            .filter(|claim| claim.is_placed && claim.bar.kind.is_memory());
        let mut all: Vec<_> = memory
            .flat_map(|claim| self.parts(claim, cards[claim.card]))
            .collect();
        all.sort_unstable();
        all
    }

    fn parts(&self, claim: &Claim, card: &Card) -> Vec<(u64, u64, u64)> {
        let Decoded {
            index,
            kind,
            address,
            size,
        } = claim.bar;
        let whole_pages = address..address + size.next_multiple_of(PAGE);
        let alone = self
            .0
            .iter()
            .filter(|claim| claim.touches(kind, &whole_pages))
            .count()
            == 1;
        if !card.maps || index == ROM || !address.is_multiple_of(PAGE) || !alone {
            return Vec::new();
        }
        let mut holes = Vec::new();
        if let Some((_, msix)) = card.msix() {
            if msix.table_bar == index {
                let end = msix.table_offset + 16 * u64::from(msix.vectors);
                holes.push(msix.table_offset / PAGE..end.div_ceil(PAGE));
            }
            if msix.pba_bar == index {
                let end = msix.pba_offset + u64::from(msix.vectors).div_ceil(64) * 8;
                holes.push(msix.pba_offset / PAGE..end.div_ceil(PAGE));
            }
        }
        let withheld = card.withheld(size).into_iter();
        holes.extend(withheld.map(|bytes| bytes.start / PAGE..bytes.end / PAGE));
        holes.sort_by_key(|hole| hole.start);
        let (mut parts, mut next) = (Vec::new(), 0);
        let behind = size.div_ceil(PAGE)..u64::MAX;
        for hole in holes.into_iter().chain(iter::once(behind)) {
            if next < hole.start {
                let (at, len) = (next * PAGE, (hole.start - next) * PAGE);
                parts.push((address + at, len, host_address(claim.card, index, at)));
            }
            next = next.max(hole.end);
        }
        parts
    }
}

fn is_forwarded(bar: &Decoded, windows: &Windows) -> bool {
    let Some(end) = bar.address.checked_add(bar.size) else {
        return false;
    };
    let within = |window: &Range<u64>| window.start <= bar.address && end <= window.end;
    match bar.kind {
        BarKind::Io => within(&windows.io),
        BarKind::Memory32 { .. } => within(&windows.memory32),
        BarKind::Memory64 { .. } => within(&windows.memory32) || within(&windows.memory64),
    }
}
