//! The address spaces behind the PCI root, where functions place their BARs.

use std::sync::Arc;

use crate::{
    bus::{Bus, BusDevice},
    mapping::{HostMapping, Memslots},
};

/// The memory and I/O address spaces behind the root.
#[derive(Clone)]
pub struct PciSpace {
    /// Guest-physical memory.
    pub memory: Arc<Bus>,
    /// I/O ports.
    pub io: Arc<Bus>,
    /// Where directly mapped parts go.
    pub memslots: Arc<dyn Memslots>,
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
