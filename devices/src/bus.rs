//! The bus: which device answers at an address.
//!
//! A lookup takes no lock: readers load a snapshot and search it, writers publish a new one. A device removed while another
//! vCPU is inside it finishes that one access and is then dropped.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

/// What an access asks of the machine once the bus is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Nothing: go on.
    None,
    /// The guest powered off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset of the machine.
    Reset,
    /// The guest reported a panic.
    Panicked,
}

/// A device that answers reads and writes in a range of the bus.
///
/// `offset` counts from the start of the range. `data` is 1, 2, 4 or 8 bytes, little-endian, and lies within the range. The guest
/// chooses both: neither may make a device panic. Accesses can come from several vCPUs at once.
pub trait BusDevice: Send + Sync {
    /// Fills `data`. What is not there reads as all-ones.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data`, and says what the machine has to do about it.
    fn write(&self, offset: u64, data: &[u8]) -> Action;
}

/// The range asked for cannot be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Another device answers in part of the range.
    #[error("{start:#x}..{end:#x} overlaps a device at {other:#x}")]
    Overlap {
        /// First address asked for.
        start: u64,
        /// First address after the range.
        end: u64,
        /// Where the other device starts.
        other: u64,
    },
    /// The range is empty or runs past the end of the address space.
    #[error("{start:#x} + {len:#x} is not a range")]
    NotARange {
        /// First address asked for.
        start: u64,
        /// Length in bytes asked for.
        len: u64,
    },
}

#[derive(Clone)]
struct Entry {
    start: u64,
    end: u64,
    device: Arc<dyn BusDevice>,
}

/// An address space (memory or I/O ports) and the devices in it.
#[derive(Default)]
pub struct Bus {
    entries: ArcSwap<Vec<Entry>>,
    writers: Mutex<()>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Places `device` at `start..start + len` (bytes, or ports).
    pub fn insert(&self, start: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let end = start
            .checked_add(len)
            .filter(|_| len > 0)
            .ok_or(BusError::NotARange { start, len })?;
        let _one_writer = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.entries.load();
        let at = old.partition_point(|entry| entry.end <= start);
        if let Some(other) = old.get(at).filter(|entry| entry.start < end) {
            return Err(BusError::Overlap {
                start,
                end,
                other: other.start,
            });
        }
        let mut entries = Vec::clone(&old);
        entries.insert(at, Entry { start, end, device });
        self.entries.store(Arc::new(entries));
        Ok(())
    }

    /// Takes the device that was placed at `start` off the bus.
    pub fn remove(&self, start: u64) {
        let _one_writer = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::clone(&self.entries.load());
        entries.retain(|entry| entry.start != start);
        self.entries.store(Arc::new(entries));
    }

    /// Reads from whoever answers at `address`; all-ones and `false` when nobody does.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some((device, offset)) => {
                device.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes to whoever answers at `address`; `None` when nobody does.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<Action> {
        self.find(address, data.len())
            .map(|(device, offset)| device.write(offset, data))
    }

    fn find(&self, address: u64, len: usize) -> Option<(Arc<dyn BusDevice>, u64)> {
        let entries = self.entries.load();
        let at = entries.partition_point(|entry| entry.end <= address);
        let entry = entries.get(at).filter(|entry| entry.start <= address)?;
        let end = address.checked_add(len as u64)?;
        (end <= entry.end).then(|| (entry.device.clone(), address - entry.start))
    }
}
