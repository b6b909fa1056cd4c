//! The bus: which device answers at an address.
//!
//! A lookup takes no lock: readers load a snapshot and search it, writers publish a new one. A device removed while another
//! vCPU is inside it finishes that one access and is then dropped.
//!
//! The snapshot is held, not cloned, while the device runs. That keeps writers from nothing: a device may change the bus from within
//! its own access (a function that places its BARs does), and finds the change with its next one.

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
        let entries = self.entries.load();
        match find(&entries, address, data.len()) {
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
        let entries = self.entries.load();
        let (device, offset) = find(&entries, address, data.len())?;
        Some(device.write(offset, data))
    }
}

/// The device that answers all of `address..address + len`, and where in its range that is.
fn find(entries: &[Entry], address: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
    let at = entries.partition_point(|entry| entry.end <= address);
    let entry = entries.get(at).filter(|entry| entry.start <= address)?;
    let end = address.checked_add(len as u64)?;
    (end <= entry.end).then(|| (&*entry.device, address - entry.start))
}

#[cfg(test)]
mod tests {
    use std::{sync::Weak, thread};

    use super::*;
    use crate::testing::{Random, Scratch};

    fn byte(bus: &Bus, address: u64) -> Option<u8> {
        let mut data = [0];
        bus.read(address, &mut data).then_some(data[0])
    }

    #[test]
    fn a_device_answers_in_its_range_and_only_there() {
        let bus = Bus::new();
        let device = Scratch::new(7, Action::Reset);
        bus.insert(0x100, 0x10, device.clone()).unwrap();
        assert_eq!(byte(&bus, 0xff), None);
        assert_eq!(byte(&bus, 0x100), Some(7));
        assert_eq!(byte(&bus, 0x10f), Some(7));
        assert_eq!(byte(&bus, 0x110), None);
        assert_eq!(bus.write(0x104, &[1, 2]), Some(Action::Reset));
        assert_eq!(*device.written.lock().unwrap(), [(4, vec![1, 2])]);
    }

    #[test]
    fn an_access_across_the_end_of_a_range_is_nobodys() {
        let bus = Bus::new();
        bus.insert(0x100, 4, Scratch::new(1, Action::None)).unwrap();
        bus.insert(0x104, 4, Scratch::new(2, Action::None)).unwrap();
        let mut data = [0; 4];
        assert!(!bus.read(0x102, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert_eq!(bus.write(0x106, &[0; 4]), None);
        assert!(!bus.read(u64::MAX, &mut data));
    }

    #[test]
    fn what_is_no_range_or_overlaps_is_refused() {
        let bus = Bus::new();
        let insert = |start, len| bus.insert(start, len, Scratch::new(0, Action::None));
        assert_eq!(insert(1, 0), Err(BusError::NotARange { start: 1, len: 0 }));
        assert!(matches!(
            insert(u64::MAX, 2),
            Err(BusError::NotARange { .. })
        ));
        insert(0x100, 0x10).unwrap();
        let overlap = BusError::Overlap {
            start: 0xf8,
            end: 0x101,
            other: 0x100,
        };
        assert_eq!(insert(0xf8, 9), Err(overlap));
        insert(0xf8, 8).unwrap();
        insert(0x110, 8).unwrap();
    }

    /// Takes itself off the bus, and puts itself elsewhere, in its own write.
    struct Mover {
        bus: Weak<Bus>,
        this: Weak<Self>,
    }

    impl BusDevice for Mover {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.fill(0x55);
        }

        fn write(&self, _offset: u64, _data: &[u8]) -> Action {
            let bus = self.bus.upgrade().unwrap();
            bus.remove(0x100);
            bus.insert(0x200, 1, self.this.upgrade().unwrap()).unwrap();
            Action::None
        }
    }

    #[test]
    fn a_device_may_change_the_bus_from_within_its_access() {
        let bus = Arc::new(Bus::new());
        let mover = Arc::new_cyclic(|this| Mover {
            bus: Arc::downgrade(&bus),
            this: this.clone(),
        });
        bus.insert(0x100, 1, mover).unwrap();
        assert_eq!(bus.write(0x100, &[0]), Some(Action::None));
        assert_eq!((byte(&bus, 0x100), byte(&bus, 0x200)), (None, Some(0x55)));
    }

    #[test]
    fn a_removed_device_is_dropped_once_its_last_access_is_over() {
        let bus = Bus::new();
        let device = Scratch::new(0, Action::None);
        let weak = Arc::downgrade(&device);
        bus.insert(0, 1, device).unwrap();
        let held = bus.entries.load();
        bus.remove(0);
        assert!(weak.upgrade().is_some());
        drop(held);
        assert!(weak.upgrade().is_none());
    }

    // The naive model: for each address, the start of the device that answers there.
    #[test]
    fn any_sequence_of_changes_leaves_who_a_map_of_addresses_would() {
        let mut random = Random::new(5);
        let (bus, mut naive) = (Bus::new(), [None; 256]);
        for _ in 0..100_000 {
            let start = random.within(0..256);
            let at = usize::try_from(start).unwrap();
            match random.within(0..4) {
                0 => {
                    let end = (at + usize::try_from(random.within(1..32)).unwrap()).min(256);
                    let device = Scratch::new(at.try_into().unwrap(), Action::None);
                    let is_free = naive[at..end].iter().all(Option::is_none);
                    assert_eq!(
                        bus.insert(start, (end - at) as u64, device).is_ok(),
                        is_free
                    );
                    if is_free {
                        naive[at..end].fill(Some(at));
                    }
                }
                1 => {
                    bus.remove(start);
                    let kept = |device: Option<usize>| device.filter(|&device| device != at);
                    naive.iter_mut().for_each(|device| *device = kept(*device));
                }
                _ => {
                    let expected = naive[at].map(|device| device.try_into().unwrap());
                    assert_eq!(byte(&bus, start), expected);
                    let whole = naive.get(at..at + 4).is_some_and(|all| {
                        all[0].is_some() && all.iter().all(|device| *device == all[0])
                    });
                    assert_eq!(bus.write(start, &[0; 4]).is_some(), whole);
                }
            }
        }
    }

    #[test]
    fn readers_on_other_threads_see_a_whole_bus_while_it_changes() {
        let bus = Bus::new();
        bus.insert(0, 1, Scratch::new(1, Action::None)).unwrap();
        thread::scope(|scope| {
            let reader = || (0..50_000).all(|_| byte(&bus, 0) == Some(1));
            let readers = [scope.spawn(reader), scope.spawn(reader)];
            for _ in 0..5_000 {
                bus.insert(8, 8, Scratch::new(2, Action::None)).unwrap();
                bus.remove(8);
            }
            assert!(readers.into_iter().all(|reader| reader.join().unwrap()));
        });
    }
}
