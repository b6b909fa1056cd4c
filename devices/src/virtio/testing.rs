//! What the tests of virtio share: a driver's side of a queue in memory, and fakes of what a device is connected to.

use std::{
    collections::BTreeSet,
    io::{self, PipeReader, PipeWriter, Read},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex},
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::queue::QueueRegisters;
use crate::{
    doorbell::{Doorbell, Doorbells},
    interrupt::{MsiMessage, MsiSource, MsiVectors},
    mapping::GuestRam,
};

/// Length of the memory of these tests, in bytes.
pub(super) const MEMORY_LEN: u64 = 1 << 20;
pub(super) const WRITE: u16 = 2;
pub(super) const NEXT: u16 = 1;
pub(super) const INDIRECT: u16 = 4;

pub(super) struct TestRam(pub(super) GuestMemoryMmap);

impl GuestRam for TestRam {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.0
    }
}

pub(super) fn ram() -> Arc<TestRam> {
    let len = usize::try_from(MEMORY_LEN).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap();
    Arc::new(TestRam(memory))
}

/// A queue of sixteen entries as a driver has it in memory.
pub(super) struct Driver {
    pub(super) ram: Arc<TestRam>,
    pub(super) base: u64,
    available: u16,
    used: u16,
}

impl Driver {
    pub(super) const SIZE: u16 = 16;

    pub(super) fn new(ram: Arc<TestRam>, base: u64) -> Self {
        Self {
            ram,
            base,
            available: 0,
            used: 0,
        }
    }

    pub(super) fn registers(&self) -> QueueRegisters {
        let mut registers = QueueRegisters::new(Self::SIZE);
        [registers.descriptors, registers.available, registers.used] = self.places();
        registers
    }

    /// Descriptors, available ring, used ring.
    pub(super) fn places(&self) -> [u64; 3] {
        [self.base, self.base + 0x400, self.base + 0x800]
    }

    /// Writes one descriptor: address, length, flags, next.
    pub(super) fn describe(&self, index: u16, (address, len, flags, next): (u64, u32, u16, u16)) {
        self.describe_at(self.base, index, (address, len, flags, next));
    }

    pub(super) fn describe_at(
        &self,
        table: u64,
        index: u16,
        (address, len, flags, next): (u64, u32, u16, u16),
    ) {
        let at = table + 16 * u64::from(index);
        let memory = &self.ram.0;
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Writes a chain of buffers (address, length, flags) from descriptor 0 on, and offers it.
    pub(super) fn request(&mut self, buffers: &[(u64, u32, u16)]) {
        for (index, &(address, len, flags)) in (0..).zip(buffers) {
            let is_last = usize::from(index) + 1 == buffers.len();
            let more = if is_last { 0 } else { NEXT };
            self.describe(index, (address, len, flags | more, index + 1));
        }
        self.offer(0);
    }

    /// Puts a chain's head into the available ring.
    pub(super) fn offer(&mut self, head: u16) {
        let ring = self.base + 0x400;
        let at = ring + 4 + 2 * u64::from(self.available % Self::SIZE);
        self.ram.0.write_obj(head, GuestAddress(at)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.publish(self.available);
    }

    /// Writes the available ring's index, whatever it is.
    pub(super) fn publish(&self, index: u16) {
        let at = GuestAddress(self.base + 0x402);
        self.ram.0.write_obj(index, at).unwrap();
    }

    /// The next request that was served: its head, and how much was written.
    pub(super) fn used(&mut self) -> Option<(u32, u32)> {
        let ring = self.base + 0x800;
        let index: u16 = self.ram.0.read_obj(GuestAddress(ring + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let at = ring + 4 + 8 * u64::from(self.used % Self::SIZE);
        self.used = self.used.wrapping_add(1);
        let word = |at| self.ram.0.read_obj(GuestAddress(at)).unwrap();
        Some((word(at), word(at + 4)))
    }
}

/// Vectors that are pipes, of eight bytes a signal: written as an eventfd is, and waited for without one's flags.
struct FakeVectors {
    signalled: Vec<PipeWriter>,
    heard: Arc<Heard>,
}

/// What the vectors were told.
#[derive(Default)]
struct Heard {
    /// Which have a message to go to.
    routed: Mutex<BTreeSet<usize>>,
    latched: Mutex<BTreeSet<usize>>,
}

impl MsiVectors for FakeVectors {
    fn eventfd(&self, vector: usize) -> io::Result<BorrowedFd<'_>> {
        Ok(self.signalled[vector].as_fd())
    }

    fn route(&self, changes: &[(usize, Option<MsiMessage>)]) -> io::Result<()> {
        let mut routed = self.heard.routed.lock().unwrap();
        for (vector, message) in changes {
            match message {
                Some(_) => routed.insert(*vector),
                None => routed.remove(vector),
            };
        }
        Ok(())
    }

    fn is_latched(&self, vector: usize) -> bool {
        self.heard.latched.lock().unwrap().contains(&vector)
    }

    fn clear_latched(&self) {
        self.heard.latched.lock().unwrap().clear();
    }
}

/// Hands out the vectors of one device and hears them.
#[derive(Default)]
pub(super) struct FakeMsi {
    signals: Mutex<Vec<PipeReader>>,
    heard: Arc<Heard>,
}

impl FakeMsi {
    /// Waits until `vector` has been signalled once more.
    pub(super) fn wait(&self, vector: usize) {
        let mut signals = self.signals.lock().unwrap();
        signals[vector].read_exact(&mut [0; 8]).unwrap();
    }

    /// The vectors that have a message to go to.
    pub(super) fn routed(&self) -> Vec<usize> {
        let routed = self.heard.routed.lock().unwrap();
        routed.iter().copied().collect()
    }

    /// An interrupt came by `vector` while it had no message.
    pub(super) fn latch(&self, vector: usize) {
        self.heard.latched.lock().unwrap().insert(vector);
    }
}

impl MsiSource for FakeMsi {
    fn vectors(&self, count: usize) -> io::Result<Box<dyn MsiVectors>> {
        let pipes = (0..count).map(|_| io::pipe().unwrap());
        let (signals, signalled) = pipes.unzip();
        *self.signals.lock().unwrap() = signals;
        let heard = self.heard.clone();
        Ok(Box::new(FakeVectors { signalled, heard }))
    }
}

/// Remembers where doorbells hang.
#[derive(Default, Clone)]
pub(super) struct FakeDoorbells(pub(super) Arc<Mutex<Vec<u64>>>);

struct FakeDoorbell(Arc<Mutex<Vec<u64>>>, u64);

impl Doorbells for FakeDoorbells {
    fn hang(&self, address: u64, _eventfd: &EventFd) -> io::Result<Box<dyn Doorbell>> {
        self.0.lock().unwrap().push(address);
        Ok(Box::new(FakeDoorbell(self.0.clone(), address)))
    }
}

impl Doorbell for FakeDoorbell {}

impl Drop for FakeDoorbell {
    fn drop(&mut self) {
        self.0.lock().unwrap().retain(|&at| at != self.1);
    }
}
