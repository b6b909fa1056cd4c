//! What is typed on its way to one of the guest's consoles, on a thread of its own.
//!
//! A thread, because standard input can be anything, and to read from it can block. Its end is the end of typing and not of the
//! machine.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    thread,
};

use devices::{
    uart::Uart,
    virtio::console::{Port, Size},
};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    console::{self, Escape},
    events::{Event, Mailbox},
};

/// What is typed ahead of a guest that does not read, at most; what is typed beyond that is lost. Linux's terminals keep as much.
const TYPED_AHEAD: usize = 4096;

/// What takes what is typed.
pub trait Keyboard: Send + Sync {
    /// Takes it; how many bytes of it. For the others come again when there is room.
    fn receive(&self, typed: &[u8]) -> usize;

    /// Signalled when there is room again.
    fn room(&self) -> &EventFd;

    /// What is typed on has this size. A serial port has no words for that.
    fn resize(&self, _size: Size) {}
}

impl Keyboard for Uart {
    fn receive(&self, typed: &[u8]) -> usize {
        self.receive(typed)
    }

    fn room(&self) -> &EventFd {
        self.room()
    }
}

impl Keyboard for Port {
    fn receive(&self, typed: &[u8]) -> usize {
        self.receive(typed)
    }

    fn room(&self) -> &EventFd {
        self.room()
    }

    fn resize(&self, size: Size) {
        self.resize(size);
    }
}

/// Begins to bring what comes by standard input to `keyboard`. The escape keys count only on a terminal: a script's bytes reach the
/// guest unchanged.
pub fn start(keyboard: Arc<dyn Keyboard>, mailbox: Mailbox, is_terminal: bool) -> io::Result<()> {
    // Past the buffer of `io::stdin`, in which bytes can wait that no poll knows of.
    let Ok(source) = io::stdin().as_fd().try_clone_to_owned() else {
        return Ok(());
    };
    let escape = is_terminal.then(Escape::default);
    Typist::new(source.into(), keyboard, mailbox, escape).start("stdin")
}

/// Begins to bring what comes by `source` to `keyboard`, unchanged: whoever wants out closes the program that is there.
pub fn bring(source: File, keyboard: Arc<dyn Keyboard>, mailbox: Mailbox) -> io::Result<()> {
    Typist::new(source, keyboard, mailbox, None).start("pty")
}

struct Typist {
    source: File,
    keyboard: Arc<dyn Keyboard>,
    mailbox: Mailbox,
    /// On a terminal.
    escape: Option<Escape>,
    /// What the guest has not taken yet.
    waiting: Vec<u8>,
}

impl Typist {
    fn new(
        source: File,
        keyboard: Arc<dyn Keyboard>,
        mailbox: Mailbox,
        escape: Option<Escape>,
    ) -> Self {
        Self {
            source,
            keyboard,
            mailbox,
            escape,
            waiting: Vec::new(),
        }
    }

    fn start(self, name: &str) -> io::Result<()> {
        thread::Builder::new()
            .name(name.into())
            .spawn(move || self.bring())
            .map(drop)
    }

    fn bring(mut self) {
        loop {
            let taken = self.keyboard.receive(&self.waiting);
            self.waiting.drain(..taken.min(self.waiting.len()));
            if self.wait() && !self.read() {
                return;
            }
        }
    }

    /// Waits until there is something to read or the guest has room again; true for the former. While the guest takes nothing, what
    /// comes from a file or a pipe stays there; a terminal is read even so, or a guest that hangs could not be quit.
    fn wait(&self) -> bool {
        let poll = |fd, wanted| libc::pollfd {
            fd: if wanted { fd } else { -1 },
            events: libc::POLLIN,
            revents: 0,
        };
        let all_taken = self.waiting.is_empty();
        let mut polls = [
            poll(self.source.as_raw_fd(), all_taken || self.escape.is_some()),
            poll(self.keyboard.room().as_raw_fd(), !all_taken),
        ];
        // SAFETY: two valid pollfds, on this stack frame; a return before one is ready (EINTR) only makes the caller try again.
        unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) };
        if polls[1].revents != 0 {
            let _ = self.keyboard.room().read();
        }
        polls[0].revents != 0
    }

    /// Reads what is typed; false at its end.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 256];
        let count = match self.source.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => {
                use io::ErrorKind::{Interrupted, WouldBlock};
                return matches!(error.kind(), Interrupted | WouldBlock);
            }
        };
        // We do not hear of it when a pseudoterminal's size changes (pty_resize in the kernel's drivers/tty/pty.c signals processes
        // whose terminal it is), but who changed it types sooner or later.
        if let Some(size) = console::size_of(&self.source) {
            self.keyboard.resize(size);
        }
        let mut typed = buffer[..count].to_vec();
        if let Some(escape) = &mut self.escape {
            if escape.filter(&mut typed) {
                self.mailbox.post(Event::Quit("Ctrl-A x"));
            }
            typed.truncate(TYPED_AHEAD.saturating_sub(self.waiting.len()));
        }
        self.waiting.append(&mut typed);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{PipeWriter, Write},
        os::fd::OwnedFd,
        sync::mpsc,
        time::{Duration, Instant},
    };

    use devices::{bus::BusDevice, interrupt::IrqLine};
    use rustix::termios::{Winsize, tcsetwinsize};

    use super::*;
    use crate::{console::Pty, events::Events, signals::Signals};

    struct NoLine;

    impl IrqLine for NoLine {
        fn pulse(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A serial port, its input, and what hears of the escape keys.
    fn typing(is_terminal: bool) -> (Arc<Uart>, PipeWriter, Events) {
        let uart = Arc::new(Uart::new(Arc::new(NoLine), Box::new(io::sink())).unwrap());
        let (reader, writer) = io::pipe().unwrap();
        let events = Events::new(Signals::block().unwrap()).unwrap();
        let source = OwnedFd::from(reader).into();
        let escape = is_terminal.then(Escape::default);
        let typist = Typist::new(source, uart.clone(), events.mailbox(), escape);
        thread::spawn(move || typist.bring());
        (uart, writer, events)
    }

    /// What a guest reads until it has `count` bytes.
    fn received(uart: &Uart, count: usize) -> Vec<u8> {
        let (mut all, begun) = (Vec::new(), Instant::now());
        while all.len() < count && begun.elapsed() < Duration::from_secs(20) {
            let mut byte = [0];
            uart.read(5, &mut byte);
            if byte[0] & 1 == 0 {
                thread::yield_now();
                continue;
            }
            uart.read(0, &mut byte);
            all.push(byte[0]);
        }
        all
    }

    #[test]
    fn a_guest_that_reads_nothing_can_still_be_quit() {
        let (_uart, mut keys, mut events) = typing(true);
        for _ in 0..20 {
            keys.write_all(&[b'x'; 1000]).unwrap();
        }
        keys.write_all(b"\x01x").unwrap();
        let mailbox = events.mailbox();
        thread::spawn(move || {
            thread::sleep(Duration::from_secs(20));
            mailbox.post(Event::Stats);
        });
        assert!(matches!(events.wait().unwrap(), Event::Quit("Ctrl-A x")));
    }

    #[test]
    fn what_is_typed_ahead_reaches_a_guest_that_begins_to_read_late() {
        let (uart, mut keys, _events) = typing(true);
        let typed: Vec<u8> = (0..200).map(|n| b' ' + n % 64).collect();
        keys.write_all(&typed).unwrap();
        assert_eq!(received(&uart, 200), typed);
    }

    /// Knows nothing but its size.
    struct Sized {
        sizes: mpsc::Sender<Size>,
        room: EventFd,
    }

    impl Keyboard for Sized {
        fn receive(&self, typed: &[u8]) -> usize {
            typed.len()
        }

        fn room(&self) -> &EventFd {
            &self.room
        }

        fn resize(&self, size: Size) {
            self.sizes.send(size).unwrap();
        }
    }

    #[test]
    fn what_is_typed_on_a_pseudoterminal_says_how_large_that_is_now() {
        let pty = Pty::open().unwrap();
        let (sizes, seen) = mpsc::channel();
        let room = EventFd::new(0).unwrap();
        let events = Events::new(Signals::block().unwrap()).unwrap();
        let keyboard = Arc::new(Sized { sizes, room });
        bring(pty.source().unwrap(), keyboard, events.mailbox()).unwrap();
        let mut program = File::options().write(true).open(pty.path()).unwrap();
        for (columns, rows) in [(97, 31), (120, 40)] {
            let size = Winsize {
                ws_col: columns,
                ws_row: rows,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            tcsetwinsize(&program, size).unwrap();
            program.write_all(b"x").unwrap();
            let told = seen.recv_timeout(Duration::from_secs(20)).unwrap();
            assert_eq!(told, Size { columns, rows });
        }
    }

    #[test]
    fn a_script_reaches_the_guest_unchanged_and_whole() {
        let (uart, mut script, _events) = typing(false);
        let bytes: Vec<u8> = (0..20_000).map(|n: u32| n.to_le_bytes()[0]).collect();
        let sent = bytes.clone();
        let writing = thread::spawn(move || script.write_all(&sent).unwrap());
        assert_eq!(received(&uart, bytes.len()), bytes);
        writing.join().unwrap();
    }
}
