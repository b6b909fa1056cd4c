//! The signals that end the machine, and the one of a terminal that changes its size, as a descriptor to wait on.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, FromRawFd, RawFd},
};

/// What ends a machine in good order: Ctrl-C, `kill`, a closed terminal, Ctrl-\.
/// And what a terminal sends whose size changed.
const WAITED_FOR: [i32; 5] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGWINCH,
];

/// What a signal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The machine is to end; the signal's name.
    End(&'static str),
    /// The terminal has another size.
    Resized,
}

/// Signals cannot be waited for.
#[derive(Debug, thiserror::Error)]
#[error("waiting for signals\n  it takes a few open files:  ulimit -n")]
pub struct SignalsError(#[from] io::Error);

/// These signals, blocked and waiting in a signalfd.
pub struct Signals {
    fd: File,
}

impl Signals {
    /// Blocks the signals in this thread and those it starts from now on. Call it before the first thread, and before anything
    /// that a signal must not leave half-done: a driver displaced, a terminal in raw mode.
    pub fn block() -> Result<Self, SignalsError> {
        let set = set_of(&WAITED_FOR)?;
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

    /// A signal that has come, if one has.
    pub fn take(&mut self) -> Option<Signal> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.fd.read_exact(&mut info).ok()?;
        let [a, b, c, d, ..] = info;
        Some(match i32::from_ne_bytes([a, b, c, d]) {
            libc::SIGWINCH => Signal::Resized,
            libc::SIGINT => Signal::End("SIGINT"),
            libc::SIGTERM => Signal::End("SIGTERM"),
            libc::SIGHUP => Signal::End("SIGHUP"),
            _ => Signal::End("SIGQUIT"),
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
