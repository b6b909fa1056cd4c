//! A pseudoterminal: the guest's console on one end, any terminal program on the other (`screen /dev/pts/3`).
//!
//! We keep the other end open as well. So what a program left typed is not lost when it goes, and the next one may come; and since
//! nothing then says whether one is there, a terminal that takes nothing for a while is taken as left alone.

use std::{
    fs::File,
    io::{self, ErrorKind, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_setfl},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt},
    termios::{OptionalActions, tcgetattr, tcsetattr},
};

/// How long a terminal may take nothing before nobody is at it, and what is printed is lost. A guest's processor can spin that long;
/// Linux begins to complain after ten times as much.
const PATIENCE: Duration = Duration::from_secs(1);

/// A pseudoterminal.
pub struct Pty {
    ours: OwnedFd,
    theirs: OwnedFd,
    path: PathBuf,
}

impl Pty {
    /// A new one, raw: it is the guest that echoes and edits lines.
    pub fn open() -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let theirs = ioctl_tiocgptpeer(&ours, flags)?;
        let mut settings = tcgetattr(&theirs)?;
        settings.make_raw();
        tcsetattr(&theirs, OptionalActions::Now, &settings)?;
        let path = ptsname(&ours, Vec::new())?;
        let path = path.into_string().map_err(io::Error::other)?.into();
        fcntl_setfl(&ours, OFlags::RDWR | OFlags::NONBLOCK)?;
        Ok(Self { ours, theirs, path })
    }

    /// What a terminal program opens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is typed there.
    pub fn source(&self) -> io::Result<File> {
        Ok(self.ours.try_clone()?.into())
    }

    /// What is printed there.
    pub fn sink(&self) -> io::Result<impl Write + Send + use<>> {
        Ok(Sink {
            ours: self.source()?,
            _theirs: self.theirs.try_clone()?,
            is_left_alone: false,
        })
    }
}

/// Prints to the terminal for as long as somebody reads there.
struct Sink {
    ours: File,
    /// Without it open the other end's buffers would be lost with each program that leaves.
    _theirs: OwnedFd,
    is_left_alone: bool,
}

impl Sink {
    /// Waits until the terminal takes something; false when it does not.
    fn wait(&self) -> io::Result<bool> {
        let mut polls = [PollFd::from_borrowed_fd(self.ours.as_fd(), PollFlags::OUT)];
        let patience = Timespec {
            tv_sec: i64::try_from(PATIENCE.as_secs()).map_err(io::Error::other)?,
            tv_nsec: 0,
        };
        Ok(poll(&mut polls, Some(&patience))? > 0)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.ours.write(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.is_left_alone = self.is_left_alone || !self.wait()?;
                // Said to be written: what nobody reads is lost. Else the caller tries again.
                match self.is_left_alone {
                    true => Ok(bytes.len()),
                    false => Err(ErrorKind::Interrupted.into()),
                }
            }
            done => {
                self.is_left_alone = false;
                done
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, thread};

    use super::*;

    impl Pty {
        fn wait_for_input(&self) -> bool {
            let mut polls = [PollFd::new(&self.ours, PollFlags::IN)];
            poll(&mut polls, None).unwrap() > 0
        }
    }

    fn program(pty: &Pty) -> File {
        let mut options = File::options();
        options.read(true).write(true).open(pty.path()).unwrap()
    }

    #[test]
    fn what_is_typed_and_printed_passes_unchanged_and_without_an_echo() {
        let pty = Pty::open().unwrap();
        let mut program = program(&pty);
        program.write_all(b"ls\r\x03").unwrap();
        let mut typed = [0; 16];
        assert!(pty.wait_for_input());
        let count = pty.source().unwrap().read(&mut typed).unwrap();
        assert_eq!(&typed[..count], b"ls\r\x03");
        pty.sink().unwrap().write_all(b"a\nb").unwrap();
        let count = program.read(&mut typed).unwrap();
        assert_eq!(&typed[..count], b"a\nb");
        let nothing = pty.source().unwrap().read(&mut typed).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn a_terminal_that_nobody_reads_holds_nobody_up_and_works_once_somebody_does() {
        let pty = Pty::open().unwrap();
        let mut sink = pty.sink().unwrap();
        sink.write_all(&[b'x'; 1 << 20]).unwrap();
        let mut program = program(&pty);
        let reader = thread::spawn(move || {
            let mut taken = Vec::new();
            while !taken.ends_with(b"back") {
                let mut part = [0; 4096];
                let count = program.read(&mut part).unwrap();
                taken.extend(&part[..count]);
            }
        });
        while !reader.is_finished() {
            sink.write_all(b"back").unwrap();
            thread::yield_now();
        }
        reader.join().unwrap();
    }
}
