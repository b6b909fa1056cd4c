//! The signals that end the machine, as a descriptor to wait on.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, FromRawFd, RawFd},
};

/// What ends a machine in good order: Ctrl-C, `kill`, a closed terminal, Ctrl-\.
const ENDING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Signals cannot be waited for.
#[derive(Debug, thiserror::Error)]
#[error("waiting for signals\n  it takes a few open files:  ulimit -n")]
pub struct SignalsError(#[from] io::Error);

/// Ending signals, blocked and waiting in a signalfd.
pub struct Signals {
    fd: File,
}

impl Signals {
    /// Blocks the signals in this thread and those it starts from now on. Call it before the first thread, and before anything
    /// that a signal must not leave half-done: a driver displaced, a terminal in raw mode.
    pub fn block() -> Result<Self, SignalsError> {
        let set = set_of(&ENDING)?;
        // SAFETY: `set` is a valid signal set; the old mask is not asked for.
        let blocked =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked).into());
        }
        // SAFETY: `set` is a valid signal set, and -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: signalfd just made this descriptor and nobody else owns it.
        let fd = unsafe { File::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// The name of a signal that has come, if one has.
    pub fn take(&mut self) -> Option<&'static str> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.fd.read_exact(&mut info).ok()?;
        let [a, b, c, d, ..] = info;
        Some(match i32::from_ne_bytes([a, b, c, d]) {
            libc::SIGINT => "SIGINT",
            libc::SIGTERM => "SIGTERM",
            libc::SIGHUP => "SIGHUP",
            _ => "SIGQUIT",
        })
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn set_of(signals: &[i32]) -> io::Result<libc::sigset_t> {
    vmm_sys_util::signal::create_sigset(signals)
        .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))
}
