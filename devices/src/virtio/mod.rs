//! Virtio devices over PCI (Virtual I/O Device 1.2, "modern" only): what is common to all of them, and the devices.
//!
//! A device is a `Backend`: it says what it offers and serves one request at a time, knowing nothing of PCI, interrupts or threads.
//! `VirtioFunction` puts it on the guest's bus. The path of a request: the driver rings a doorbell, which is an ioeventfd; the
//! device's thread takes the request from the queue, has the backend serve it and signals the queue's vector, which is an irqfd.
//! No vCPU leaves the kernel for it.
//!
//! Left out: packed virtqueues, in-order use and notification data, none of which a driver needs; and resets of single queues.

pub mod blk;
mod chain;
mod common;
mod device;
mod function;
mod interrupts;
mod queue;
mod registers;
mod rng;
#[cfg(test)]
mod testing;
mod window;
mod worker;

pub use chain::{Buffer, Chain, Garbage};
pub use function::{VirtioFunction, Wiring};
pub use rng::Rng;

use vm_memory::GuestMemoryMmap;

/// What a device is and offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// What its thread is called, and its messages begin with.
    pub name: String,
    /// Virtio's number for it (§5).
    pub device_type: u16,
    /// PCI's number for it: base class, subclass, programming interface.
    pub class: u32,
    /// What it offers, besides what the transport does.
    pub features: u64,
    /// The most entries of each of its queues, powers of two.
    pub queues: Vec<u16>,
    /// Its configuration, which never changes.
    pub config: Vec<u8>,
}

/// What a device does.
pub trait Backend: Send {
    /// What it is.
    fn kind(&self) -> Kind;

    /// What of its features the driver took. Said before any request.
    fn agree(&mut self, features: u64);

    /// Serves one request; how many bytes of its writable buffers are new. A request that fails is answered as the device's type has
    /// it; one that makes no sense is an error, and the last thing that the device is asked before its reset.
    fn serve(
        &mut self,
        queue: usize,
        request: Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<u32, Garbage>;
}
