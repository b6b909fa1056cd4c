//! The few system calls that the standard library does not have: signals to a child, its death with its parent, and the
//! terminal. All of the lab's `unsafe` is here.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A signal to one process; to a process group when `pid` is negative. That it is gone already is not an error.
pub(crate) fn signal(pid: i32, signal: i32) {
    // SAFETY: kill(2) takes two integers and touches no memory of ours.
    unsafe { libc::kill(pid, signal) };
}

/// Whether a child process has ended with all its threads; with `may_wait`, waits until it has. It can still be reaped.
pub(crate) fn has_ended(pid: i32, may_wait: bool) -> bool {
    let flags = libc::WEXITED | libc::WNOWAIT | if may_wait { 0 } else { libc::WNOHANG };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the pointer is to a siginfo_t that lives through the call.
    let answer = unsafe { libc::waitid(libc::P_PID, pid.unsigned_abs(), info.as_mut_ptr(), flags) };
    // SAFETY: zeroes are a value of siginfo_t, and the kernel has written another one or none.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid fills in the process id of a child that has ended; otherwise it is zero (waitid(2)).
    answer != 0 || unsafe { info.si_pid() } != 0
}

/// Has the child killed when the thread that starts it ends, so that not even SIGKILL of the lab leaves a QEMU behind.
/// Start such a child from a thread that lives as long as it should.
pub(crate) fn die_with_parent(command: &mut Command) {
    let arm = || {
        // SAFETY: prctl(PR_SET_PDEATHSIG) takes integers and is async-signal-safe, as code between fork and exec must be.
        let answer = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if answer == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: the closure only makes one async-signal-safe call and allocates nothing.
    unsafe { command.pre_exec(arm) };
}

/// The terminal's settings, to be put back.
#[derive(Clone, Copy)]
pub(crate) struct TerminalSettings(libc::termios);

impl TerminalSettings {
    /// The settings of stdin; none when it is not a terminal.
    pub(crate) fn of_stdin() -> Option<Self> {
        let mut settings = MaybeUninit::uninit();
        // SAFETY: the pointer is to a termios-sized buffer that lives through the call.
        let answer = unsafe { libc::tcgetattr(io::stdin().as_raw_fd(), settings.as_mut_ptr()) };
        // SAFETY: tcgetattr answered 0, so it has filled the buffer.
        (answer == 0).then(|| Self(unsafe { settings.assume_init() }))
    }

    /// The same, raw: every key reaches the reader at once, and none of them is a signal.
    pub(crate) fn raw(self) -> Self {
        let mut raw = self.0;
        // SAFETY: the pointer is to a valid termios that lives through the call.
        unsafe { libc::cfmakeraw(&mut raw) };
        Self(raw)
    }

    /// Puts the settings on stdin.
    pub(crate) fn apply(&self) {
        // SAFETY: the pointer is to a valid termios that lives through the call.
        unsafe { libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSANOW, &raw const self.0) };
    }
}

/// Rows and columns of the terminal on stdout.
pub(crate) fn window_size() -> Option<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ fills the winsize that the pointer is to, and nothing else.
    let answer = unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (answer == 0 && size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}

/// Lowers the priority of this thread, and of the programs that it starts.
pub(crate) fn lower_priority() {
    // SAFETY: setpriority(2) takes three integers and touches no memory of ours. That it fails costs only time.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

/// Whether the lab runs as root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid(2) has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
