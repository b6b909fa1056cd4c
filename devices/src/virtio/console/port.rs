//! The host's side of the console: what is typed, what is printed, how large the terminal is.
//!
//! It outlives the device's resets: what was typed before one is there after it.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::Config;
use crate::output::Output;

/// What waits for a guest that does not read, in bytes. As much as Linux's terminals keep.
const TYPED_MOST: usize = 4096;
/// The layout of §5.3.4: columns and rows, 16 bits each; then what comes with features that are not offered.
const CONFIG_LEN: usize = 12;

/// How large a terminal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// The host's side.
pub struct Port {
    typed: Mutex<VecDeque<u8>>,
    /// Whether something that was typed had no room.
    has_refused: AtomicBool,
    room: EventFd,
    output: Arc<Output>,
    config: Config,
    is_resized: AtomicBool,
    /// Wakes the device.
    bell: EventFd,
}

impl Port {
    /// A port that prints to `sink`, from a thread of its own: `sink` may block.
    pub fn new(sink: Box<dyn Write + Send>) -> io::Result<Arc<Self>> {
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let output = Arc::new(Output::default());
        let port = Self {
            typed: Mutex::default(),
            has_refused: AtomicBool::new(false),
            room: eventfd()?,
            output: output.clone(),
            config: vec![0; CONFIG_LEN].into(),
            is_resized: AtomicBool::new(false),
            bell: eventfd()?,
        };
        let bell = port.bell.try_clone()?;
        thread::Builder::new()
            .name("console-output".to_owned())
            .spawn(move || {
                output.drain("console output", sink, || {
                    let _ = bell.write(1);
                });
            })?;
        Ok(Arc::new(port))
    }

    /// Takes what is typed; how many bytes of it. For the others come again when `room` is signalled.
    pub fn receive(&self, input: &[u8]) -> usize {
        let mut typed = self.typed();
        let taken = input.len().min(TYPED_MOST - typed.len());
        typed.extend(input.iter().take(taken));
        if taken < input.len() {
            // Under the lock: who makes room sees it.
            self.has_refused.store(true, Ordering::SeqCst);
        }
        drop(typed);
        self.wake();
        taken
    }

    /// Signalled when there is room again after `receive` could not take everything.
    pub fn room(&self) -> &EventFd {
        &self.room
    }

    /// Tells the guest how large the terminal is.
    pub fn resize(&self, size: Size) {
        let [a, b] = size.columns.to_le_bytes();
        let [c, d] = size.rows.to_le_bytes();
        if self.config.put(0, &[a, b, c, d]) {
            self.is_resized.store(true, Ordering::SeqCst);
            self.wake();
        }
    }

    /// Ends the output once the guest has stopped, and waits until it is written, `patience` at most.
    pub fn finish(&self, patience: Duration) {
        self.output.finish(patience);
    }

    /// An eventfd cannot be too full to be heard.
    fn wake(&self) {
        let _ = self.bell.write(1);
    }

    fn typed(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.typed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next of what was typed, `most` bytes at most.
    pub(super) fn take(&self, most: usize) -> Vec<u8> {
        let mut typed = self.typed();
        let count = typed.len().min(most);
        let taken = typed.drain(..count).collect();
        if count > 0 && self.has_refused.swap(false, Ordering::SeqCst) {
            let _ = self.room.write(1);
        }
        taken
    }

    /// Prints as much as there is room for; how many bytes. The bell rings when there is room again.
    pub(super) fn print(&self, bytes: &[u8]) -> usize {
        self.output.extend(bytes)
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// Whether the terminal's size changed since this was asked last. Answers the bell.
    pub(super) fn take_resized(&self) -> bool {
        let _ = self.bell.read();
        self.is_resized.swap(false, Ordering::SeqCst)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // The thread writes what is left and ends; whoever wants to wait for that has called `finish`.
        self.output.finish(Duration::ZERO);
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").finish_non_exhaustive()
    }
}
