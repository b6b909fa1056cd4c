//! The address spaces behind the PCI root, where functions place their BARs.
//!
//! Invariants: what is placed lies in a window of the host bridge, and never over something else; what is not placed is gone from the
//! bus and from the memslots before the call that took it away returns.

use std::{fmt, ops::Range, sync::Arc};

use super::bar::{BarKind, Decoded, REGISTERS};
use crate::{
    bus::{Bus, BusDevice, BusError},
    mapping::{HostMapping, Memslots},
};

/// What the host bridge forwards: the only addresses where a BAR can be. Empty ranges forward nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// I/O ports.
    pub io: Range<u64>,
    /// Memory below 4 GiB.
    pub memory32: Range<u64>,
    /// Memory above 4 GiB, within the guest's physical address bits.
    pub memory64: Range<u64>,
}

impl Windows {
    /// Whether a BAR of `kind` can be at `range`.
    fn forward(&self, kind: BarKind, range: &Range<u64>) -> bool {
        let within = |window: &Range<u64>| window.start <= range.start && range.end <= window.end;
        match kind {
            BarKind::Io => within(&self.io),
            BarKind::Memory32 { .. } => within(&self.memory32),
            BarKind::Memory64 { .. } => within(&self.memory32) || within(&self.memory64),
        }
    }
}

/// The memory and I/O address spaces behind the root.
#[derive(Clone)]
pub struct PciSpace {
    /// Guest-physical memory.
    pub memory: Arc<Bus>,
    /// I/O ports.
    pub io: Arc<Bus>,
    /// Where directly mapped parts go.
    pub memslots: Arc<dyn Memslots>,
    /// Where BARs can be.
    pub windows: Windows,
}

/// A part of a BAR that the guest reaches without an exit.
#[derive(Clone)]
pub struct Direct {
    /// Where it starts in the BAR, in bytes; page-aligned.
    pub offset: u64,
    /// What is there.
    pub memory: Arc<dyn HostMapping>,
}

/// What a BAR decodes to: a device that answers all of it, and parts that go past that device.
#[derive(Clone)]
pub struct Region {
    /// Size in bytes (or ports).
    pub len: u64,
    /// Answers what is not mapped.
    pub device: Arc<dyn BusDevice>,
    /// What is mapped.
    pub direct: Vec<Direct>,
}

/// A BAR cannot be where the guest put it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// The host bridge forwards nothing there.
    #[error("{start:#x} + {len:#x} is outside the windows of the host bridge")]
    Outside {
        /// First address asked for.
        start: u64,
        /// Length in bytes (or ports).
        len: u64,
    },
    /// Something else is there.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// A region in its place. Dropping it takes the region away again.
#[must_use]
pub struct Placed {
    bus: Arc<Bus>,
    address: u64,
    memslots: Arc<dyn Memslots>,
    slots: Vec<u32>,
}

impl PciSpace {
    /// Places `region` at `address` of the space that `kind` names.
    ///
    /// A direct part that the machine cannot map (a failure of the host, which is logged) is left to the region's device: slower,
    /// but the card works.
    pub fn place(
        &self,
        kind: BarKind,
        address: u64,
        region: &Region,
    ) -> Result<Placed, PlaceError> {
        let len = region.len;
        let end = address.checked_add(len);
        if !end.is_some_and(|end| self.windows.forward(kind, &(address..end))) {
            return Err(PlaceError::Outside {
                start: address,
                len,
            });
        }
        let bus = if kind.is_memory() {
            &self.memory
        } else {
            &self.io
        };
        // The device first: from here on a vCPU finds someone at every address of the region.
        bus.insert(address, len, region.device.clone())?;
        let mut placed = Placed {
            bus: bus.clone(),
            address,
            memslots: self.memslots.clone(),
            slots: Vec::new(),
        };
        if kind.is_memory() {
            placed.map(&region.direct);
        }
        Ok(placed)
    }
}

impl Placed {
    fn map(&mut self, direct: &[Direct]) {
        for part in direct {
            let guest = self.address + part.offset;
            match self.memslots.map(guest, part.memory.clone()) {
                Ok(slot) => self.slots.push(slot),
                Err(error) => log::error!(
                    "{guest:#x} + {:#x}: cannot be mapped into the guest, every access will exit: {error}",
                    part.memory.len()
                ),
            }
        }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // The reverse order: no vCPU may find a mapping where the bus already has a hole.
        for &slot in self.slots.iter().rev() {
            self.memslots.unmap(slot);
        }
        self.bus.remove(self.address);
    }
}

/// The regions of one function's BARs, and where each of them is now.
pub struct Placements {
    space: PciSpace,
    regions: [Option<Region>; REGISTERS],
    placed: [Option<(Decoded, Placed)>; REGISTERS],
}

impl fmt::Debug for Placements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let placed = self.placed.iter().flatten().map(|(decoded, _)| decoded);
        f.debug_list().entries(placed).finish()
    }
}

impl Placements {
    /// `regions` by BAR index (`bar::ROM_INDEX` for the ROM); nothing is placed yet.
    pub fn new(space: PciSpace, regions: [Option<Region>; REGISTERS]) -> Self {
        Self {
            space,
            regions,
            placed: Default::default(),
        }
    }

    /// Takes away what `wanted` does not have, or has elsewhere. To be called before the hardware stops decoding.
    pub fn retain(&mut self, wanted: &[Decoded]) {
        for placed in &mut self.placed {
            placed.take_if(|(decoded, _)| !wanted.contains(decoded));
        }
    }

    /// Places what `wanted` has and is not placed. To be called once the hardware decodes. What cannot go where the guest put it
    /// stays unplaced: the guest finds nothing there, as behind a real bridge.
    pub fn fill(&mut self, wanted: &[Decoded]) {
        for &decoded in wanted {
            let Decoded {
                index,
                kind,
                address,
                ..
            } = decoded;
            let (Some(region), Some(None)) = (&self.regions[index], self.placed.get(index)) else {
                continue;
            };
            match self.space.place(kind, address, region) {
                Ok(placed) => self.placed[index] = Some((decoded, placed)),
                Err(error) => log::debug!("BAR {index} stays unplaced: {error}"),
            }
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
        let (decoded, _) = self.placed.get(index)?.as_ref()?;
        Some(decoded.address)
    }
}
