//! The person's side of the guest's consoles: the terminal (or another one, a file, nothing) behind it.

mod pty;

pub use pty::Pty;

use std::{
    convert::Infallible,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    str::FromStr,
};

use devices::virtio::console::Size;
use terminal_size::{Height, Width};

/// Ctrl-A, as the terminal sends it.
const CTRL_A: u8 = 0x01;

/// A terminal in raw mode, put back as it was when dropped.
pub struct RawTerminal {
    saved: libc::termios,
}

impl RawTerminal {
    /// Sets the terminal on standard input to raw mode; `None` when there is none.
    pub fn enter() -> io::Result<Option<Self>> {
        let fd = io::stdin().as_raw_fd();
        // SAFETY: isatty looks at a descriptor number and nothing else.
        if unsafe { libc::isatty(fd) } == 0 {
            return Ok(None);
        }
        // SAFETY: termios is plain integers, for which zero is a value.
        let mut saved: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `saved` is a termios to write to.
        check(unsafe { libc::tcgetattr(fd, &raw mut saved) })?;
        let mut raw = saved;
        // SAFETY: `raw` is a termios that tcgetattr filled.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        // Our own messages still begin at the left margin.
        raw.c_oflag |= libc::OPOST;
        // SAFETY: `raw` is a valid termios.
        check(unsafe { libc::tcsetattr(fd, libc::TCSANOW, &raw const raw) })?;
        Ok(Some(Self { saved }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // SAFETY: `saved` is what tcgetattr gave.
        let restored = unsafe {
            libc::tcsetattr(
                io::stdin().as_raw_fd(),
                libc::TCSANOW,
                &raw const self.saved,
            )
        };
        if restored != 0 {
            log::warn!("the terminal cannot be restored; type  reset");
        }
    }
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Ctrl-A is the escape key, as in QEMU: Ctrl-A x ends the machine, Ctrl-A Ctrl-A (or a) sends one.
#[derive(Default)]
pub struct Escape {
    pending: bool,
}

impl Escape {
    /// Takes what was typed; leaves in `typed` what is for the guest. True when the person wants out.
    pub fn filter(&mut self, typed: &mut Vec<u8>) -> bool {
        let mut quit = false;
        typed.retain_mut(|byte| match (self.pending, *byte) {
            (true, key) => {
                self.pending = false;
                quit |= key == b'x' || key == b'X';
                *byte = CTRL_A;
                key == CTRL_A || key == b'a'
            }
            (false, CTRL_A) => {
                self.pending = true;
                false
            }
            (false, _) => true,
        });
        quit
    }
}

/// Where one of the guest's consoles goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// Standard input and output.
    Stdio,
    /// A pseudoterminal of its own, which any terminal program can open.
    Pty,
    /// Output to a file, no input.
    File(PathBuf),
    /// Nowhere.
    Null,
}

impl FromStr for Side {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "stdio" => Self::Stdio,
            "pty" => Self::Pty,
            "null" => Self::Null,
            path => Self::File(path.into()),
        })
    }
}

/// A side that is open: what output is written to, and the pseudoterminal, if it is one.
pub struct Open {
    /// What the guest prints goes here.
    pub sink: Box<dyn Write + Send>,
    /// What is typed comes from here.
    pub pty: Option<Pty>,
}

impl Side {
    /// Opens it; a file is emptied.
    pub fn open(&self) -> io::Result<Open> {
        let (sink, pty): (Box<dyn Write + Send>, _) = match self {
            Self::Stdio => (Box::new(io::stdout()), None),
            Self::File(path) => (Box::new(File::create(path)?), None),
            Self::Null => (Box::new(io::sink()), None),
            Self::Pty => {
                let pty = Pty::open()?;
                (Box::new(pty.sink()?), Some(pty))
            }
        };
        Ok(Open { sink, pty })
    }
}

/// How large the terminal is that this process is on; `None` when it is on none.
pub fn terminal_size() -> Option<Size> {
    terminal_size::terminal_size().map(size)
}

/// How large `terminal` is; `None` when it is none, or nobody has said.
pub fn size_of(terminal: impl AsFd) -> Option<Size> {
    terminal_size::terminal_size_of(terminal).map(size)
}

fn size((Width(columns), Height(rows)): (Width, Height)) -> Size {
    Size { columns, rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_quits_and_reaches_no_guest() {
        let mut typed = b"ls\x01x".to_vec();
        assert!(Escape::default().filter(&mut typed));
        assert_eq!(typed, b"ls");
    }

    #[test]
    fn ctrl_a_twice_sends_one_even_across_reads() {
        let mut escape = Escape::default();
        let mut first = b"a\x01".to_vec();
        assert!(!escape.filter(&mut first));
        let mut second = b"\x01b".to_vec();
        assert!(!escape.filter(&mut second));
        assert_eq!(
            (first.as_slice(), second.as_slice()),
            (&b"a"[..], &b"\x01b"[..])
        );
    }
}
