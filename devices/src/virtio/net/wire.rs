//! What a network device is connected to: one queue of an interface of the host's.

use std::{io, os::fd::AsRawFd};

use vm_memory::VolatileSlice;

/// What a packet for the guest may be like beyond what goes over a cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Its checksum is not computed. The others are nothing without this.
    pub checksum: bool,
    /// It is a TCP segment over IPv4 that is longer than the interface's packets, …
    pub tso4: bool,
    /// … or over IPv6, …
    pub tso6: bool,
    /// … and has congestion marked.
    pub ecn: bool,
    /// It is a UDP datagram of that kind.
    pub ufo: bool,
}

/// One queue of an interface. Its descriptor is ready for epoll when there is a packet; nothing blocks.
///
/// A packet has virtio's header of 12 bytes before it, both ways (virtio 1.2 §5.1.6).
pub trait Wire: AsRawFd + Send + Sync {
    /// Sends a packet that is in these pieces.
    fn send(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Puts the next packet into these pieces, as much as there is room for; its length. `WouldBlock` if there is none.
    fn receive(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Says what packets may be like that are received, by any queue of the interface.
    fn offload(&self, offloads: Offloads) -> io::Result<()>;

    /// Whether the interface puts packets into this queue. It does at first.
    fn attach(&self, is_attached: bool) -> io::Result<()>;
}
