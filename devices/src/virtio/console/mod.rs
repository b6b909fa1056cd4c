//! The console (virtio 1.2 §5.3): one port, which Linux calls hvc0, and the size of the terminal behind it.
//!
//! Left out: further ports (§5.3.6.2), which need a protocol of their own and have better answers today; and emergency writes, since a
//! guest that is not up yet has its serial port.

mod port;

pub use port::{Port, Size};

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Answer, Backend, Buffer, Chain, Garbage, Kind};

const DEVICE_TYPE: u16 = 3;
/// A communication controller of no particular kind: PCI 3.0 appendix D.
const CLASS: u32 = 0x07_80_00;
/// Linux fills the first with a page for each entry: these are 256 KiB of its memory.
const QUEUE_SIZE: u16 = 64;
/// What the guest receives by (§5.3.2), and what it transmits by.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Feature: the configuration has the terminal's size.
const F_SIZE: u64 = 1 << 0;
/// How much is copied at a time.
const PART: usize = 4096;

/// The console.
pub struct Console {
    port: Arc<Port>,
    has_size: bool,
    /// How much of the request that waits has been printed.
    printed: usize,
}

impl Console {
    /// With `port` as its other side.
    pub fn new(port: Arc<Port>) -> Self {
        Self {
            port,
            has_size: false,
            printed: 0,
        }
    }

    /// Fills what the guest offers with what was typed.
    fn receive(&self, buffers: &[Buffer], memory: &GuestMemoryMmap) -> Result<Answer, Garbage> {
        let mut filled = 0;
        for buffer in buffers {
            let typed = self.port.take(buffer.len.min(PART));
            write(memory, buffer.address, &typed)?;
            filled += typed.len();
            if typed.len() < buffer.len {
                break;
            }
        }
        match filled {
            0 => Ok(Answer::NotYet),
            filled => Ok(Answer::Done(u32::try_from(filled).unwrap_or(u32::MAX))),
        }
    }

    /// Prints what the guest transmits, and goes on later where there was no more room.
    fn transmit(
        &mut self,
        buffers: &[Buffer],
        memory: &GuestMemoryMmap,
    ) -> Result<Answer, Garbage> {
        let mut skip = self.printed;
        for buffer in buffers {
            let mut at = skip.min(buffer.len);
            skip -= at;
            while at < buffer.len {
                let mut part = [0; PART];
                let part = &mut part[..PART.min(buffer.len - at)];
                read(memory, GuestAddress(buffer.address.0 + at as u64), part)?;
                let taken = self.port.print(part);
                self.printed += taken;
                at += taken;
                if taken < part.len() {
                    return Ok(Answer::NotYet);
                }
            }
        }
        self.printed = 0;
        Ok(Answer::Done(0))
    }
}

fn write(memory: &GuestMemoryMmap, at: GuestAddress, bytes: &[u8]) -> Result<(), Garbage> {
    let gone = |_| Garbage::Request("characters");
    memory.write_slice(bytes, at).map_err(gone)
}

fn read(memory: &GuestMemoryMmap, at: GuestAddress, bytes: &mut [u8]) -> Result<(), Garbage> {
    let gone = |_| Garbage::Request("characters");
    memory.read_slice(bytes, at).map_err(gone)
}

impl Backend for Console {
    fn kind(&self) -> Kind {
        Kind {
            name: "console0".into(),
            device_type: DEVICE_TYPE,
            class: CLASS,
            features: F_SIZE,
            queues: vec![QUEUE_SIZE; 2],
            config: self.port.config().clone(),
        }
    }

    fn agree(&mut self, features: u64) {
        self.has_size = features & F_SIZE != 0;
        self.printed = 0;
    }

    fn serve(
        &mut self,
        queue: usize,
        request: Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Answer, Garbage> {
        match queue {
            RECEIVE if request.writable.is_empty() => Err(Garbage::Request("characters")),
            RECEIVE => self.receive(&request.writable, memory),
            TRANSMIT => self.transmit(&request.readable, memory),
            _ => Ok(Answer::Done(0)),
        }
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.port.bell().as_raw_fd())
    }

    fn stirred(&mut self) -> bool {
        self.port.take_resized() && self.has_size
    }
}

#[cfg(test)]
mod tests;
