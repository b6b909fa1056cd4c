//! What the driver says of a queue, until it is checked and becomes one (virtio 1.2 §2.7, split virtqueues).

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::registers::{F_EVENT_IDX, NO_VECTOR};

/// One queue's registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    /// The most entries that it can have; a power of two.
    max: u16,
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

impl QueueRegisters {
    /// At power-on, with at most `max` entries.
    pub(super) fn new(max: u16) -> Self {
        Self {
            max,
            size: max,
            vector: NO_VECTOR,
            enabled: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }

    /// The most entries that it can have.
    pub(super) fn max(&self) -> u16 {
        self.max
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max);
    }

    /// Takes a size, unless no split queue of this device can have it (§2.7: a power of two).
    pub(super) fn resize(&mut self, size: u16) {
        if size.is_power_of_two() && size <= self.max {
            self.size = size;
        }
    }

    /// The queue, if it lies in memory as it has to (alignment: §2.7).
    pub(super) fn queue(&self, memory: &GuestMemoryMmap, features: u64) -> Option<Queue> {
        let size = usize::from(self.size);
        let is_there = |at: u64, len: usize, align: u64, access| {
            let at_guest = GuestAddress(at);
            at.is_multiple_of(align) && GuestMemory::check_range(memory, at_guest, len, access)
        };
        let fits = is_there(self.descriptors, 16 * size, 16, Permissions::Read)
            && is_there(self.available, 6 + 2 * size, 2, Permissions::Read)
            && is_there(self.used, 6 + 8 * size, 4, Permissions::Write);
        let mut queue = Queue::new(self.max).ok().filter(|_| fits)?;
        queue.try_set_size(self.size).ok()?;
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors))
            .ok()?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.available))
            .ok()?;
        queue
            .try_set_used_ring_address(GuestAddress(self.used))
            .ok()?;
        queue.set_event_idx(features & F_EVENT_IDX != 0);
        queue.set_ready(true);
        Some(queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    fn good() -> QueueRegisters {
        QueueRegisters {
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
            ..QueueRegisters::new(256)
        }
    }

    #[test]
    fn a_queue_in_memory_is_taken_with_its_size_and_features() {
        let queue = good().queue(&memory(), F_EVENT_IDX).unwrap();
        assert!(queue.ready() && queue.event_idx_enabled());
        assert_eq!((queue.size(), queue.avail_ring()), (256, 0x2000));
    }

    #[test]
    fn a_queue_may_end_where_memory_does() {
        // virtio 1.2 §2.7: 16 bytes a descriptor; 6 + 2 bytes an entry of the available ring, 6 + 8 of the used one.
        for (descriptors, available, used) in [
            (0x10000 - 16 * 256, 0x2000, 0x3000),
            (0x1000, 0x10000 - 6 - 2 * 256, 0x3000),
            (0x1000, 0x2000, 0x10000 - 8 - 8 * 256),
        ] {
            let queue = QueueRegisters {
                descriptors,
                available,
                used,
                ..good()
            };
            assert!(queue.queue(&memory(), 0).is_some(), "{queue:x?}");
        }
        assert_eq!(QueueRegisters::new(64).max(), 64);
    }

    #[test]
    fn events_are_suppressed_by_index_only_where_the_driver_took_that() {
        let queue = good().queue(&memory(), !F_EVENT_IDX).unwrap();
        assert!(!queue.event_idx_enabled());
    }

    #[test]
    fn a_queue_that_is_not_aligned_or_not_in_memory_is_refused() {
        let wrong: [fn(&mut QueueRegisters); 7] = [
            |queue| queue.descriptors = 0x1008,
            |queue| queue.available = 0x2001,
            |queue| queue.used = 0x3002,
            |queue| queue.descriptors = 0xf010,
            |queue| queue.available = 0x10000 - 6 - 2 * 256 + 2,
            |queue| queue.used = 0x10000 - 6 - 8 * 256 + 2,
            |queue| queue.used = !3,
        ];
        for spoil in wrong {
            let mut queue = good();
            spoil(&mut queue);
            assert!(queue.queue(&memory(), 0).is_none(), "{queue:x?}");
        }
    }

    #[test]
    fn only_powers_of_two_up_to_the_offered_size_are_sizes() {
        let mut queue = good();
        for size in [0, 3, 512, 0x8000, 0xffff] {
            queue.resize(size);
            assert_eq!(queue.size, 256);
        }
        queue.resize(64);
        assert_eq!(queue.size, 64);
    }
}
