//! How a device interrupts, as it sees it. The machine implements these traits (over KVM's irqfds and GSI routes).

use std::{io, os::fd::BorrowedFd};

/// A message-signalled interrupt: the write that the device would make (PCI 3.0 §6.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Message address, both halves.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Where functions get their message-signalled vectors from.
pub trait MsiSource: Send + Sync {
    /// Vectors for one function, none routed. Costs nothing per vector until that vector is used.
    fn vectors(&self, count: usize) -> io::Result<Box<dyn MsiVectors>>;
}

/// The message-signalled vectors of one function.
///
/// A vector has an eventfd that the device signals and, while the guest has it unmasked, a route to a message. Without a route a
/// signal stays latched in the eventfd and is delivered once when the vector is routed again; no thread of ours is involved.
pub trait MsiVectors: Send + Sync {
    /// The eventfd whose signal is vector `vector`; made on first use.
    fn eventfd(&self, vector: usize) -> io::Result<BorrowedFd<'_>>;

    /// Routes the named vectors to their messages (`Some`), or leaves them latching (`None`). One call costs at most one update of
    /// the machine's routing table, however many vectors it names.
    fn route(&self, changes: &[(usize, Option<MsiMessage>)]) -> io::Result<()>;

    /// Whether a signal of an unrouted vector is latched: its pending bit.
    fn is_latched(&self, vector: usize) -> bool;

    /// Forgets what is latched, as a reset of the function does.
    fn clear_latched(&self);
}

/// A wire to the interrupt controller that is pulsed: an edge-triggered ISA interrupt.
pub trait IrqLine: Send + Sync {
    /// One rising edge.
    fn pulse(&self) -> io::Result<()>;
}

/// Where the INTx pins of the functions in one slot are wired to.
pub trait IntxSource: Send + Sync {
    /// The input of the interrupt controller that `pin` (1 is INTA) is wired to: what the interrupt line register says.
    fn line(&self, pin: u8) -> u8;

    /// Connects a function's `pin`. Dropping the wire disconnects it.
    fn connect(&self, pin: u8) -> io::Result<Box<dyn IntxWire>>;
}

/// The wire of an INTx pin: level-triggered, and shared with the other pins on its input (PCI 3.0 §2.2.6).
///
/// Neither the level nor its end passes through the machine's threads. The device says with one eventfd that its pin is asserted,
/// and keeps quiet. The guest's end of interrupt takes the level back and signals the other eventfd, upon which the device looks
/// whether its pin is still asserted, and says so again.
pub trait IntxWire: Send + Sync {
    /// What the device signals to raise the level.
    fn trigger(&self) -> BorrowedFd<'_>;

    /// What the guest's end of interrupt signals, of whichever function on this input it was.
    fn resample(&self) -> BorrowedFd<'_>;
}
