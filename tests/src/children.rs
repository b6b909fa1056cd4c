//! The processes this lab started, and how they end with it: on SIGINT, SIGTERM and SIGHUP each is told to end, by its own
//! process id, the terminal is put back, and the lab leaves with the status a shell expects.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::register_signal_handler;

use crate::sys;
use crate::terminal;

static RUNNING: Mutex<Vec<i32>> = Mutex::new(Vec::new());
static SIGNALLED: OnceLock<EventFd> = OnceLock::new();

fn running() -> MutexGuard<'static, Vec<i32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child that ends with the lab.
#[derive(Debug)]
pub(crate) struct Owned {
    child: Child,
    pid: i32,
}

impl Owned {
    /// Takes the child into the lab's care.
    pub(crate) fn new(child: Child) -> Self {
        let pid = child.id().cast_signed();
        running().push(pid);
        Self { child, pid }
    }

    /// The child, to take its pipes from.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        // A child of ours that nobody else waits for can always be waited for.
        let status = self
            .child
            .wait()
            .unwrap_or_else(|_| ExitStatus::from_raw(0));
        running().retain(|pid| *pid != self.pid);
        status
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            sys::signal(self.pid, libc::SIGTERM);
            // A QEMU told to end does so in milliseconds; the limit is for one that hangs.
            let limit = Instant::now() + Duration::from_secs(5);
            while matches!(self.child.try_wait(), Ok(None)) {
                if Instant::now() > limit {
                    sys::signal(self.pid, libc::SIGKILL);
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        self.wait();
    }
}

extern "C" fn note_signal(number: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if let Some(event) = SIGNALLED.get() {
        // Only a write(2): that is all a signal handler may do here.
        let _ = event.write(u64::from(number.unsigned_abs()));
    }
}

/// From here on, a signal to the lab ends what it started and then the lab.
pub(crate) fn end_on_signals() {
    let Ok(event) = EventFd::new(0) else { return };
    if SIGNALLED.set(event).is_err() {
        return;
    }
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let _ = register_signal_handler(number, note_signal);
    }
    thread::spawn(|| {
        if let Some(number) = SIGNALLED.get().and_then(|event| event.read().ok()) {
            leave(128 + i32::try_from(number).unwrap_or(0));
        }
    });
}

/// Ends everything the lab started, puts the terminal back, and leaves with `status`.
pub(crate) fn leave(status: i32) -> ! {
    terminal::restore();
    let pids = running().clone();
    for pid in &pids {
        sys::signal(*pid, libc::SIGTERM);
    }
    let limit = Instant::now() + Duration::from_secs(5);
    while pids.iter().any(|pid| is_alive(*pid)) && Instant::now() < limit {
        thread::sleep(Duration::from_millis(10));
    }
    for pid in pids {
        sys::signal(pid, libc::SIGKILL);
    }
    std::process::exit(status)
}

/// A zombie that its waiting thread has not collected yet counts as gone.
fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}
