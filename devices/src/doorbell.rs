//! Registers that only wake somebody: a write there is an event, whatever is written, and the kernel can tell of it by itself.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// Guest-physical memory in which doorbells can hang.
pub trait Doorbells: Send + Sync {
    /// From now on a write of any width at `address` signals `eventfd` without an exit to this process, until the answer is dropped.
    /// There is nothing to see of it for reads.
    fn hang(&self, address: u64, eventfd: &EventFd) -> io::Result<Box<dyn Doorbell>>;
}

/// A doorbell that hangs.
pub trait Doorbell: Send + Sync {}
