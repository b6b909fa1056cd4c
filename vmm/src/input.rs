//! Standard input on its way to the guest's serial port, on a thread of its own.
//!
//! A thread, because standard input can be anything: a terminal, a pipe, a file that no poll can wait for. Its end is the end of
//! typing and not of the machine.

use std::{
    io::{self, Read},
    os::fd::AsRawFd,
    sync::Arc,
    thread,
};

use devices::uart::Uart;
use vmm_sys_util::eventfd::EventFd;

use crate::{
    console::Escape,
    events::{Event, Mailbox},
};

/// Begins to bring what is typed to `uart`. The escape keys count only on a terminal: a script's bytes reach the guest unchanged.
pub fn start(uart: Arc<Uart>, mailbox: Mailbox, is_terminal: bool) -> io::Result<()> {
    let bring = move || {
        let mut escape = Escape::default();
        let mut buffer = [0; 256];
        loop {
            let count = match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let mut typed = buffer[..count].to_vec();
            if is_terminal && escape.filter(&mut typed) {
                mailbox.post(Event::Quit("Ctrl-A x"));
            }
            deliver(&uart, &typed);
        }
    };
    thread::Builder::new()
        .name("stdin".into())
        .spawn(bring)
        .map(drop)
}

/// Waits for the guest as long as it takes: what is typed ahead stays in the pipe or the terminal's queue.
fn deliver(uart: &Uart, mut typed: &[u8]) {
    while !typed.is_empty() {
        let taken = uart.receive(typed);
        typed = typed.get(taken..).unwrap_or_default();
        if taken == 0 {
            wait_for(uart.room());
        }
    }
}

/// Waits until `event` is signalled, and takes the signal.
fn wait_for(event: &EventFd) {
    let mut poll = libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd, on this stack frame; a return before it is ready (EINTR) only makes the caller try again.
    unsafe { libc::poll(&raw mut poll, 1, -1) };
    let _ = event.read();
}
