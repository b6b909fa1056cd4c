//! The regions of one function's BARs, and where each of them is now.

use std::fmt;

use super::{PciSpace, Region, claims::Owner};
use crate::pci::bar::{Decoded, REGISTERS};

/// The regions of one function's BARs, and where each of them is now. Dropping it takes them all away.
pub struct Placements {
    space: PciSpace,
    owner: Owner,
    regions: [Option<Region>; REGISTERS],
    // Whether it has its place or waits for it.
    claimed: [Option<Decoded>; REGISTERS],
}

impl fmt::Debug for Placements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.claimed.iter().flatten())
            .finish()
    }
}

impl Placements {
    /// `regions` by BAR index (`bar::ROM_INDEX` for the ROM); nothing is placed yet.
    pub fn new(space: PciSpace, regions: [Option<Region>; REGISTERS]) -> Self {
        Self {
            owner: space.new_owner(),
            space,
            regions,
            claimed: [None; REGISTERS],
        }
    }

    /// Takes away what `wanted` does not have, or has elsewhere. To be called before the hardware stops decoding.
    pub fn retain(&mut self, wanted: &[Decoded]) {
        let before = self.claimed;
        for claimed in &mut self.claimed {
            claimed.take_if(|decoded| !wanted.contains(decoded));
        }
        if self.claimed != before {
            self.space
                .release(self.owner, |decoded| wanted.contains(decoded));
        }
    }

    /// Places what `wanted` has and is not placed. To be called once the hardware decodes. What cannot go where the guest put it
    /// stays unplaced until it can: the guest finds nothing there, as behind a real bridge.
    pub fn fill(&mut self, wanted: &[Decoded]) {
        let mut new = Vec::new();
        for &decoded in wanted {
            let region = self.regions.get(decoded.index).and_then(Option::as_ref);
            if let (Some(region), Some(claimed @ None)) =
                (region, self.claimed.get_mut(decoded.index))
            {
                *claimed = Some(decoded);
                new.push((decoded, region.clone()));
            }
        }
        if !new.is_empty() {
            self.space.claim(self.owner, new.into_iter());
        }
    }

    /// Both: first what left or moved goes, then what is new comes, so that BARs may swap places.
    pub fn reconcile(&mut self, wanted: &[Decoded]) {
        self.retain(wanted);
        self.fill(wanted);
    }

    /// Takes everything away.
    pub fn clear(&mut self) {
        self.retain(&[]);
    }

    /// Where BAR `index` answers now.
    pub fn address(&self, index: usize) -> Option<u64> {
        let decoded = self.claimed.get(index)?.as_ref()?;
        let is_placed = self.space.has_placed(self.owner, decoded);
        is_placed.then_some(decoded.address)
    }
}

impl Drop for Placements {
    fn drop(&mut self) {
        self.clear();
    }
}
