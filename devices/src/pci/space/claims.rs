//! Who wants to be where: the BARs that decode, of all functions, in the order in which they came.
//!
//! Two BARs over each other are the guest's mistake, and what hardware does then is undefined. Here the first keeps the place, and the
//! next gets it once it is free: also when it is another function that leaves, whose thread then places what waited. That is why a
//! claim has all that is needed, and why one lock is over all of them.

use std::{
    io,
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{Direct, PciSpace, Region};
use crate::pci::bar::Decoded;

const PAGE: u64 = 4096;

/// A function, among all that place BARs. No two have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner(u64);

/// The claims of all functions.
#[derive(Default)]
pub(super) struct Claims {
    all: Mutex<Vec<Claim>>,
    owners: AtomicU64,
}

/// A BAR that decodes, whether it has its place or waits for it.
struct Claim {
    owner: Owner,
    decoded: Decoded,
    region: Region,
    is_placed: bool,
    // One for each of the region's direct parts.
    parts: Vec<Part>,
}

/// Where a direct part is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// In this memory slot.
    Mapped(u32),
    /// Not mapped, because another BAR is in its page or because its region has no place.
    Waits,
    /// Not mapped, and will not be while the region stays where it is.
    Cannot,
}

impl Claim {
    fn range(&self) -> Range<u64> {
        let start = self.decoded.address;
        // It has been in a window, which ends before numbers do.
        start..start.saturating_add(self.region.len)
    }

    /// Whether another BAR is in a page that this one's mappings would take up. Only a BAR smaller than a page has mappings that go past
    /// its end.
    fn is_crowded(&self, others: &[Self]) -> bool {
        let Range { start, end } = self.range();
        self.region.direct.iter().any(|direct| {
            let overhang = end..direct.at(start).end;
            others.iter().any(|other| {
                let is_there = other.is_placed && other.decoded.kind.is_memory();
                let range = other.range();
                is_there && overhang.start < range.end && range.start < overhang.end
            })
        })
    }
}

impl Direct {
    /// Where it is in the guest if its region is at `start`.
    fn at(&self, start: u64) -> Range<u64> {
        let start = start.saturating_add(self.offset);
        start..start.saturating_add(self.memory.len() as u64)
    }
}

impl PciSpace {
    pub(super) fn new_owner(&self) -> Owner {
        Owner(self.claims.owners.fetch_add(1, Ordering::Relaxed))
    }

    /// Adds claims of one function, and places all that have room. What is outside of the windows has none anywhere.
    pub(super) fn claim(&self, owner: Owner, new: impl Iterator<Item = (Decoded, Region)>) {
        let claims = &mut *self.claims();
        for (decoded, region) in new {
            let range = decoded.address..decoded.address.saturating_add(region.len);
            if !self.windows.forward(decoded.kind, &range) {
                log::debug!("BAR {}: no window is at {range:#x?}", decoded.index);
                continue;
            }
            claims.push(Claim {
                owner,
                decoded,
                is_placed: false,
                parts: vec![Part::Waits; region.direct.len()],
                region,
            });
        }
        self.settle(claims);
    }

    /// Takes the claims away that `owner` has and `keep` does not name. Who waited for their places gets them.
    pub(super) fn release(&self, owner: Owner, keep: impl Fn(&Decoded) -> bool) {
        let claims = &mut *self.claims();
        claims.retain_mut(|claim| {
            let stays = claim.owner != owner || keep(&claim.decoded);
            if !stays {
                self.remove(claim);
            }
            stays
        });
        self.settle(claims);
    }

    /// Whether `owner` has `decoded` in its place.
    pub(super) fn has_placed(&self, owner: Owner, decoded: &Decoded) -> bool {
        let claims = self.claims();
        let mut claims = claims.iter();
        claims.any(|c| c.is_placed && c.owner == owner && c.decoded == *decoded)
    }

    fn claims(&self) -> MutexGuard<'_, Vec<Claim>> {
        let claims = self.claims.all.lock();
        claims.unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives everyone what there is room for. First the bus, so that a vCPU finds someone at every address of a region before any of it
    /// is mapped; and what has to leave a page leaves it before another is mapped there.
    fn settle(&self, claims: &mut [Claim]) {
        for claim in claims.iter_mut().filter(|claim| !claim.is_placed) {
            let Decoded { kind, address, .. } = claim.decoded;
            let Region { len, device, .. } = &claim.region;
            claim.is_placed = self.bus(kind).insert(address, *len, device.clone()).is_ok();
        }
        let crowded: Vec<_> = claims.iter().map(|c| c.is_crowded(claims)).collect();
        for (claim, _) in claims
            .iter_mut()
            .zip(&crowded)
            .filter(|(_, crowded)| **crowded)
        {
            self.unmap(claim);
        }
        for (claim, _) in claims
            .iter_mut()
            .zip(&crowded)
            .filter(|(_, crowded)| !**crowded)
        {
            if claim.is_placed && claim.decoded.kind.is_memory() {
                self.map(claim);
            }
        }
    }

    /// Maps the parts that wait.
    fn map(&self, claim: &mut Claim) {
        let start = claim.decoded.address;
        for (part, direct) in claim.parts.iter_mut().zip(&claim.region.direct) {
            if *part == Part::Waits {
                *part = self.map_part(direct.at(start).start, direct);
            }
        }
    }

    /// A part that cannot be mapped is left to the region's device: slower, but the card works. The guest can bring that about by moving
    /// a BAR that is smaller than a page off the start of one; else it is a failure of the host.
    fn map_part(&self, guest: u64, direct: &Direct) -> Part {
        if !guest.is_multiple_of(PAGE) {
            log::debug!("{guest:#x}: a BAR that does not start a page is not mapped");
            return Part::Cannot;
        }
        match self.memslots.map(guest, direct.memory.clone()) {
            Ok(slot) => {
                direct.follower.iter().for_each(|who| who.appeared(guest));
                Part::Mapped(slot)
            }
            Err(error) => {
                failed_to_map(guest, direct.memory.len(), &error);
                Part::Cannot
            }
        }
    }

    fn unmap(&self, claim: &mut Claim) {
        let start = claim.decoded.address;
        for (part, direct) in claim.parts.iter_mut().zip(&claim.region.direct).rev() {
            if let Part::Mapped(slot) = *part {
                let guest = direct.at(start).start;
                direct.follower.iter().for_each(|who| who.leaves(guest));
                self.memslots.unmap(slot);
                *part = Part::Waits;
            }
        }
    }

    /// In the reverse order: no vCPU may find a mapping where the bus already has a hole.
    fn remove(&self, claim: &mut Claim) {
        self.unmap(claim);
        if claim.is_placed {
            self.bus(claim.decoded.kind).remove(claim.decoded.address);
        }
    }
}

/// The guest can repeat what failed as often as it likes: the more often, the less is said.
fn failed_to_map(guest: u64, len: usize, error: &io::Error) {
    static FAILURES: AtomicU64 = AtomicU64::new(0);
    let failures = FAILURES.fetch_add(1, Ordering::Relaxed) + 1;
    if failures.is_power_of_two() {
        log::error!(
            "{guest:#x} + {len:#x} cannot be mapped into the guest, every access will exit \
             (failure {failures}): {error}"
        );
    }
}
