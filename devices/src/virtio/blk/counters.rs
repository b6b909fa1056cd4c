//! What a disk was asked for, for those who look on from other threads.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::{super::Chain, request::Request};

/// Only the disk's thread counts, and nobody decides by it: relaxed order is enough.
#[derive(Debug, Default)]
pub struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    others: AtomicU64,
    failed: AtomicU64,
}

/// The numbers as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests to read, and what was to be read.
    pub reads: u64,
    /// In bytes.
    pub read_bytes: u64,
    /// Requests to write, and what was to be written.
    pub writes: u64,
    /// In bytes.
    pub written_bytes: u64,
    /// Requests to have it survive.
    pub flushes: u64,
    /// Any others: discards, zeroes, names, and what is no request.
    pub others: u64,
    /// Those of all that the guest saw fail.
    pub failed: u64,
}

/// A request as it is counted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Counted {
    Read(u64),
    Write(u64),
    Flush,
    Other,
}

impl Counted {
    /// Of a request, with nothing but data left of its chain.
    pub(super) fn of(request: Option<Request>, chain: &Chain) -> Self {
        let len = |buffers| super::len(buffers) as u64;
        match request {
            Some(Request::Read { .. }) => Self::Read(len(&chain.writable)),
            Some(Request::Write { .. }) => Self::Write(len(&chain.readable)),
            Some(Request::Flush) => Self::Flush,
            _ => Self::Other,
        }
    }
}

impl Counters {
    /// One more.
    pub(super) fn asked(&self, what: Counted) {
        let add = |counter: &AtomicU64, more| counter.fetch_add(more, Ordering::Relaxed);
        let (counter, bytes) = match what {
            Counted::Read(len) => (&self.reads, Some((&self.read_bytes, len))),
            Counted::Write(len) => (&self.writes, Some((&self.written_bytes, len))),
            Counted::Flush => (&self.flushes, None),
            Counted::Other => (&self.others, None),
        };
        add(counter, 1);
        if let Some((counter, len)) = bytes {
            add(counter, len);
        }
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            reads: read(&self.reads),
            read_bytes: read(&self.read_bytes),
            writes: read(&self.writes),
            written_bytes: read(&self.written_bytes),
            flushes: read(&self.flushes),
            others: read(&self.others),
            failed: read(&self.failed),
        }
    }
}
