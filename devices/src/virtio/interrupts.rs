//! How a virtio device interrupts: a vector for each queue and one for changes of its configuration, as the driver chose, or none
//! (virtio 1.2 §4.1.5.1.2).
//!
//! No lock: the device's thread signals while a vCPU that resets the device may hold the function's lock and wait for that thread.
//!
//! Left out: the INTx pin. Every driver that knows non-legacy devices knows MSI-X, and a level needs a thread of ours to look after
//! each end of interrupt.

use std::{
    fs::File,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use arc_swap::ArcSwapOption;

use super::registers::{ISR_CONFIG, ISR_QUEUE};
use crate::{interrupt::MsiVectors, pci::msix::RouteChanges};

/// What can interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The configuration, or the status.
    Config,
    /// A queue.
    Queue(usize),
}

/// The interrupts of one device.
pub(super) struct Interrupts {
    vectors: Box<dyn MsiVectors>,
    count: usize,
    /// By cause: the configuration, then the queues. A duplicate of the vector's eventfd, so that to signal is one write.
    lines: Box<[ArcSwapOption<File>]>,
    status: AtomicU8,
    needs_reset: AtomicBool,
}

impl Interrupts {
    /// Over `count` vectors, for `queues` queues; no cause has a vector yet.
    pub(super) fn new(vectors: Box<dyn MsiVectors>, count: usize, queues: usize) -> Self {
        Self {
            vectors,
            count,
            lines: (0..=queues).map(|_| ArcSwapOption::empty()).collect(),
            status: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
        }
    }

    fn line(&self, cause: Cause) -> Option<&ArcSwapOption<File>> {
        self.lines.get(match cause {
            Cause::Config => 0,
            Cause::Queue(queue) => queue.checked_add(1)?,
        })
    }

    /// Gives `cause` a vector; whether it has it now. Any other number than that of a vector is none.
    pub(super) fn assign(&self, cause: Cause, vector: u16) -> bool {
        let vector = Some(usize::from(vector)).filter(|&vector| vector < self.count);
        let eventfd = vector.and_then(|vector| match self.eventfd(vector) {
            Ok(eventfd) => Some(Arc::new(eventfd)),
            Err(error) => {
                log::warn!("vector {vector} of a virtio device cannot be had: {error}");
                None
            }
        });
        let has_vector = eventfd.is_some();
        if let Some(line) = self.line(cause) {
            line.store(eventfd);
        }
        has_vector
    }

    fn eventfd(&self, vector: usize) -> io::Result<File> {
        let eventfd = self.vectors.eventfd(vector)?;
        Ok(File::from(eventfd.try_clone_to_owned()?))
    }

    /// What has to be signalled for `cause` to interrupt, if it has a vector.
    pub(super) fn eventfd_of(&self, cause: Cause) -> Option<Arc<File>> {
        self.line(cause)?.load_full()
    }

    /// Interrupts, if the cause has a vector.
    pub(super) fn signal(&self, cause: Cause) {
        let bit = match cause {
            Cause::Config => ISR_CONFIG,
            Cause::Queue(_) => ISR_QUEUE,
        };
        self.status.fetch_or(bit, Ordering::SeqCst);
        let line = self.line(cause).map(ArcSwapOption::load);
        if let Some(eventfd) = line.as_deref().and_then(Option::as_deref) {
            // An eventfd that is full has been signalled often enough.
            let _ = (&*eventfd).write_all(&1_u64.to_ne_bytes());
        }
    }

    /// Says that the device cannot go on (§2.1.2: with a configuration change).
    pub(super) fn need_reset(&self) {
        self.fall_silent();
        self.signal(Cause::Config);
    }

    /// The same without an interrupt: to that end the device would have to write to memory.
    pub(super) fn fall_silent(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// The interrupt status. Reading clears it (§4.1.4.5).
    pub(super) fn take_status(&self) -> u8 {
        self.status.swap(0, Ordering::SeqCst)
    }

    /// Makes what the MSI-X table says true.
    pub(super) fn route(&self, changes: &RouteChanges) {
        if changes.is_empty() {
            return;
        }
        if let Err(error) = self.vectors.route(changes) {
            log::error!("interrupts of a virtio device are not as its driver wants: {error}");
        }
    }

    pub(super) fn is_latched(&self, vector: usize) -> bool {
        self.vectors.is_latched(vector)
    }

    /// As a reset of the device does, with its thread stopped. The MSI-X table is the function's.
    pub(super) fn reset(&self) {
        self.lines.iter().for_each(|line| line.store(None));
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    /// Forgets what is latched, as a reset of the function does.
    pub(super) fn forget(&self) {
        self.vectors.clear_latched();
    }
}
