//! The requests that go on while others are taken.

use std::{io, os::fd::RawFd};

use vm_memory::GuestAddress;

use super::{
    super::Chain,
    disk::Disk,
    request::Request,
    ring::{MOST_AT_ONCE, Ring, Transfer},
};

/// A request, and where it came from. Of its chain only the data is left.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) queue: usize,
    pub(super) request: Option<Request>,
    pub(super) chain: Chain,
    pub(super) status_at: GuestAddress,
}

/// What became of a request that might go on by itself.
pub(super) enum Begun {
    /// It does.
    Yes,
    /// It would, if not so many others did.
    NoRoom,
    /// It is done at once, or refused, as if there were no such thing.
    No(Ask),
}

/// All that go on.
pub(super) struct Flights {
    ring: Box<dyn Ring>,
    /// By tag.
    asks: Vec<Option<Ask>>,
    free: Vec<u16>,
    has_noted: bool,
}

impl Flights {
    pub(super) fn new(ring: Box<dyn Ring>) -> Self {
        Self {
            ring,
            asks: (0..MOST_AT_ONCE).map(|_| None).collect(),
            free: (0..MOST_AT_ONCE).rev().collect(),
            has_noted: false,
        }
    }

    pub(super) fn source(&self) -> RawFd {
        self.ring.source()
    }

    /// Begins what `ask` asks for, if that is data or a flush, and nothing is wrong with it.
    pub(super) fn begin(&mut self, ask: Ask, disk: &Disk, is_durable: bool) -> Begun {
        let Some(at) = disk.start_of(ask.request, &ask.chain) else {
            return Begun::No(ask);
        };
        let transfer = match ask.request {
            Some(Request::Read { .. }) => Transfer::Read(&ask.chain.writable),
            Some(Request::Write { .. }) => Transfer::Write {
                buffers: &ask.chain.readable,
                is_durable,
            },
            Some(Request::Flush) => Transfer::Flush,
            _ => return Begun::No(ask),
        };
        let Some(tag) = self.free.pop() else {
            return Begun::NoRoom;
        };
        if self.ring.begin(tag, disk.file(), at, transfer).is_err() {
            self.free.push(tag);
            return Begun::No(ask);
        }
        self.has_noted = true;
        if let Some(place) = self.asks.get_mut(usize::from(tag)) {
            *place = Some(ask);
        }
        Begun::Yes
    }

    /// The next that is over, and how many bytes it came to.
    pub(super) fn ended(&mut self) -> Option<(Ask, io::Result<usize>)> {
        if self.has_noted {
            // What is left is submitted when one of the others has ended, which brings us here.
            self.has_noted = self.ring.submit().unwrap_or_else(|_| self.wait());
        }
        self.take()
    }

    /// A kernel that is short of memory or room takes more once something has ended. Whether there may be more.
    fn wait(&mut self) -> bool {
        let waited = self.ring.wait();
        if let Err(error) = &waited {
            log::error!("requests to a disk do not start: {error}");
        }
        waited.is_ok()
    }

    fn take(&mut self) -> Option<(Ask, io::Result<usize>)> {
        let (tag, result) = self.ring.ended()?;
        let ask = self.asks.get_mut(usize::from(tag))?.take()?;
        self.free.push(tag);
        Some((ask, result))
    }

    /// Waits until nothing goes on any more, and forgets it.
    pub(super) fn settle(&mut self) {
        while self.free.len() < self.asks.len() {
            if self.take().is_none()
                && let Err(error) = self.ring.wait()
            {
                return log::error!("requests to a disk do not end: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests;
