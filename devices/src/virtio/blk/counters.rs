//! What a disk was asked for, for those who look on from other threads.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::{
    super::{Buffer, Chain},
    request::Request,
};

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

impl Counters {
    /// One more; nothing of `chain` but data is left.
    pub(super) fn asked(&self, request: Option<Request>, chain: &Chain) {
        let add = |counter: &AtomicU64, more| counter.fetch_add(more, Ordering::Relaxed);
        let sum = |buffers: &[Buffer]| buffers.iter().map(|buffer| buffer.len as u64).sum::<u64>();
        match request {
            Some(Request::Read { .. }) => {
                add(&self.reads, 1);
                add(&self.read_bytes, sum(&chain.writable));
            }
            Some(Request::Write { .. }) => {
                add(&self.writes, 1);
                add(&self.written_bytes, sum(&chain.readable));
            }
            Some(Request::Flush) => {
                add(&self.flushes, 1);
            }
            _ => {
                add(&self.others, 1);
            }
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
