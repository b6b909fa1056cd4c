//! The timers of L1's processors, of which the emulator now and then drops one interrupt: that processor then does nothing any more, and
//! whatever runs on it waits for ever.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::sys;

/// Looks at what L1's kernel says of its timers.
#[derive(Debug)]
pub(crate) struct Clock {
    pub(crate) serial_log: PathBuf,
    pub(crate) qemu: i32,
}

impl Clock {
    /// Whether one has been lost. The kernel says so some 20 s later, when it finds a timer long overdue (kernel/rcu/tree_stall.h).
    pub(crate) fn is_lost(&self) -> bool {
        let said = fs::read(&self.serial_log).unwrap_or_default();
        String::from_utf8_lossy(&said).contains("kthread timer wakeup didn't happen for")
    }

    /// Ends L1 when one is lost, so that nobody waits for what cannot come; until `ended` is closed.
    pub(crate) fn watch(&self, ended: &Receiver<()>) {
        // QEMU writes the file, and a second more does not count beside the 20.
        while ended.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
            if self.is_lost() {
                sys::signal(self.qemu, libc::SIGTERM);
                return;
            }
        }
    }
}
