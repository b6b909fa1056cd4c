//! What a guest prints by a port, on its way to a sink that may be slow.
//!
//! A vCPU only appends to a bounded backlog. A thread waits a moment for more, so that a burst of characters is one write, and a prompt
//! without a newline still shows at once for a human. When the sink stalls the backlog fills, and the port has its guest wait.

use std::{
    io::{self, ErrorKind, Write},
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// As much as a guest prints while it boots, so that a sink that is not read for a while does not slow it down.
const BACKLOG_BYTES: usize = 64 << 10;
/// A burst of this size is not waited upon any longer.
const BATCH_BYTES: usize = 4 << 10;
/// How long a character may wait for company.
const LINGER: Duration = Duration::from_millis(2);
/// How long to leave a sink alone that does not block and has no room.
const RETRY: Duration = Duration::from_millis(5);

#[derive(Default)]
pub(crate) struct Output {
    backlog: Mutex<Backlog>,
    changed: Condvar,
}

#[derive(Default)]
struct Backlog {
    bytes: Vec<u8>,
    // The thread has taken bytes and is not done with them.
    writing: bool,
    // Nothing more will come.
    closed: bool,
    // The sink failed: there is nobody to write to.
    broken: bool,
}

impl Output {
    /// Appends a byte; drops it when the guest did not wait for room.
    pub(crate) fn push(&self, byte: u8) {
        let mut backlog = self.lock();
        if backlog.broken || backlog.closed || backlog.bytes.len() >= BACKLOG_BYTES {
            return;
        }
        backlog.bytes.push(byte);
        if let 1 | BATCH_BYTES = backlog.bytes.len() {
            self.changed.notify_all();
        }
    }

    /// Appends as many bytes as there is room for; how many. With nobody to write to, all of them.
    pub(crate) fn extend(&self, bytes: &[u8]) -> usize {
        let mut backlog = self.lock();
        if backlog.broken || backlog.closed {
            return bytes.len();
        }
        let taken = bytes.len().min(BACKLOG_BYTES - backlog.bytes.len());
        backlog.bytes.extend(bytes.iter().take(taken));
        self.changed.notify_all();
        taken
    }

    pub(crate) fn is_full(&self) -> bool {
        self.lock().bytes.len() >= BACKLOG_BYTES
    }

    /// Ends the output, and waits until everything is written, `patience` at most.
    pub(crate) fn finish(&self, patience: Duration) {
        let mut backlog = self.lock();
        backlog.closed = true;
        self.changed.notify_all();
        let pending = |backlog: &mut Backlog| backlog.writing || !backlog.bytes.is_empty();
        let waited = self.changed.wait_timeout_while(backlog, patience, pending);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Writes to `sink` whatever comes, until the end; `what` it is, for whoever loses it. Calls `has_room` each time that a full backlog was taken over,
    /// and once nothing is kept any more.
    pub(crate) fn drain(&self, what: &str, mut sink: impl Write, has_room: impl Fn()) {
        while let Some(batch) = self.take() {
            if batch.len() >= BACKLOG_BYTES {
                has_room();
            }
            let result = write(&mut sink, &batch);
            let is_broken = result.is_err();
            let mut backlog = self.lock();
            backlog.writing = false;
            if let Err(error) = result {
                log::warn!("the guest's {what} is lost from here on: {error}");
                backlog.broken = true;
                backlog.bytes = Vec::new();
            }
            self.changed.notify_all();
            drop(backlog);
            if is_broken {
                has_room();
            }
        }
    }

    /// Waits for bytes, and a moment for more of them. `None` once there will be none.
    fn take(&self) -> Option<Vec<u8>> {
        let idle = |backlog: &mut Backlog| backlog.bytes.is_empty() && !backlog.closed;
        let growing = |backlog: &mut Backlog| backlog.bytes.len() < BATCH_BYTES && !backlog.closed;
        let backlog = self.changed.wait_while(self.lock(), idle);
        let backlog = backlog.unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(backlog, LINGER, growing);
        let (mut backlog, _) = waited.unwrap_or_else(PoisonError::into_inner);
        backlog.writing = !backlog.bytes.is_empty();
        backlog.writing.then(|| mem::take(&mut backlog.bytes))
    }

    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `write_all`, but patient with a sink that does not block: a terminal shares its flags with everyone who has it open.
fn write(sink: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    sink.flush()
}
