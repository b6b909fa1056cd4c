//! Virtio devices over PCI (Virtual I/O Device 1.2, "modern" only): what is common to all of them, and the devices.
//!
//! A device is a `Backend`: it says what it offers and serves one request at a time, knowing nothing of PCI, interrupts or threads.
//! `VirtioFunction` puts it on the guest's bus. The path of a request: the driver rings a doorbell, which is an ioeventfd; the
//! device's thread takes the request from the queue, has the backend serve it and signals the queue's vector, which is an irqfd.
//! No vCPU leaves the kernel for it. An `Engine` may stand in for the thread.
//!
//! Left out: packed virtqueues, in-order use and notification data, none of which a driver needs; and resets of single queues.

pub mod balloon;
pub mod blk;
mod chain;
mod common;
mod config;
pub mod console;
mod device;
mod engine;
mod function;
mod interrupts;
pub mod net;
mod queue;
mod registers;
mod rng;
#[cfg(test)]
mod testing;
pub mod vsock;
mod window;
mod worker;

pub use chain::{Buffer, Chain, Garbage};
pub use config::Config;
pub use engine::{Engine, Ring};
pub use function::{AtStart, VirtioFunction, Wiring};
pub use rng::Rng;

use std::os::fd::RawFd;

use vm_memory::GuestMemoryMmap;

/// What a device is and offers.
#[derive(Debug, Clone)]
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
    /// Its configuration.
    pub config: Config,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is done; how many bytes of its writable buffers are new.
    Done(u32),
    /// It goes on while others are served; `Backend::finished` says when it is done.
    Later,
    /// Nothing is there for it yet, and nothing was done. It stays first in its queue, and is served anew when the device's source
    /// stirred, or something was done in another queue.
    NotYet,
}

/// A request that was answered `Later` is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// The queue that it came from.
    pub queue: usize,
    /// The chain that it was (`Chain::head`).
    pub head: u16,
    /// How many bytes of its writable buffers are new.
    pub written: u32,
}

/// What a device does.
pub trait Backend: Send {
    /// What it is.
    fn kind(&self) -> Kind;

    /// What of its features the driver took. Said before any request.
    fn agree(&mut self, features: u64);

    /// Serves one request. One that fails is answered as the device's type has it; one that makes no sense is an error, and the last
    /// thing that the device is asked before its reset.
    fn serve(
        &mut self,
        queue: usize,
        request: Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Answer, Garbage>;

    /// The next request of those answered `Later` that is done by now.
    fn finished(&mut self, _memory: &GuestMemoryMmap) -> Result<Option<Finished>, Garbage> {
        Ok(None)
    }

    /// Waits until nothing goes on any more that was answered `Later`, and forgets it: a reset must find no access to memory.
    fn settle(&mut self) {}

    /// What of the host's the device waits for besides its queues: a descriptor that epoll knows, the same and open for as long as the
    /// device is. It is watched by its edges. A device that waits for several things has an epoll of its own for them, and that is its source.
    fn source(&self) -> Option<RawFd> {
        None
    }

    /// The source is ready, or was when the device started: whether the configuration changed by it. Requests that it was `NotYet` for
    /// are served anew afterwards.
    fn stirred(&mut self) -> bool {
        false
    }

    /// Who serves queues in place of the device's thread, if anybody does. Asked once, before anything else.
    fn engine(&mut self) -> Option<Box<dyn Engine>> {
        None
    }

    /// Whether a queue is the engine's to serve. Asked each time that the driver is set up, after `agree`.
    fn is_handed_over(&self, _queue: usize) -> bool {
        false
    }
}
