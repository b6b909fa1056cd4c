//! The address spaces behind the PCI root, where functions place their BARs.
//!
//! Invariants: what is placed lies in a window of the host bridge, and never over something else; what is not placed is gone from the
//! bus and from the memslots before the call that took it away returns.

mod claims;
mod placements;
#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc};

use self::claims::Claims;
pub use self::placements::Placements;
use super::bar::BarKind;
use crate::{
    bus::{Bus, BusDevice},
    mapping::{Follower, HostMapping, Memslots},
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

/// The memory and I/O address spaces behind the root. Clones are the same spaces.
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
    // One for all functions: who came first is a question between them.
    claims: Arc<Claims>,
}

impl PciSpace {
    /// Spaces in which no function has placed anything.
    pub fn new(
        memory: Arc<Bus>,
        io: Arc<Bus>,
        memslots: Arc<dyn Memslots>,
        windows: Windows,
    ) -> Self {
        Self {
            memory,
            io,
            memslots,
            windows,
            claims: Arc::default(),
        }
    }

    fn bus(&self, kind: BarKind) -> &Bus {
        if kind.is_memory() {
            &self.memory
        } else {
            &self.io
        }
    }
}

/// A part of a BAR that the guest reaches without an exit.
#[derive(Clone)]
pub struct Direct {
    /// Where it starts in the BAR, in bytes; page-aligned.
    pub offset: u64,
    /// What is there. It may go past the end of a BAR that is smaller than a page.
    pub memory: Arc<dyn HostMapping>,
    /// Who wants to know where it is.
    pub follower: Option<Arc<dyn Follower>>,
}

impl Direct {
    /// `memory`, `offset` bytes into its BAR, followed by nobody.
    pub fn new(offset: u64, memory: Arc<dyn HostMapping>) -> Self {
        Self {
            offset,
            memory,
            follower: None,
        }
    }
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
