//! Queues that somebody else serves in place of the device's thread: the kernel, by vhost.
//!
//! Such a queue's driver rings the engine, and the engine signals the vector's eventfd: no thread of this process is on the way. What
//! the transport does is the same for either. A masked vector keeps the engine's signals latched in its eventfd as it keeps the
//! thread's.

use std::{io, os::fd::BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// A queue as its driver set it up: all of it lies in memory, aligned as it has to be (virtio 1.2 §2.7).
#[derive(Debug, Clone, Copy)]
pub struct Ring<'a> {
    /// Which of the device's.
    pub queue: usize,
    /// The most entries that it could have.
    pub max: u16,
    /// Its entries.
    pub size: u16,
    /// Where the table of descriptors is.
    pub descriptors: u64,
    /// Where the available ring is.
    pub available: u64,
    /// Where the used ring is.
    pub used: u64,
    /// What its driver rings.
    pub bell: &'a EventFd,
    /// What interrupts its driver, if that wants to be interrupted.
    pub line: Option<BorrowedFd<'a>>,
}

/// Serves queues of one device.
pub trait Engine: Send {
    /// Serves these queues from now on, in the memory that it knows of. What the driver put into them is for the engine to distrust. After an error none is served.
    fn start(&mut self, features: u64, rings: &[Ring<'_>]) -> io::Result<()>;

    /// Something else interrupts the driver of a queue now.
    fn interrupt_by(&mut self, queue: usize, line: Option<BorrowedFd<'_>>) -> io::Result<()>;

    /// Serves none any more: when this returns it touches no memory and signals nothing. So does dropping it.
    fn stop(&mut self);
}
