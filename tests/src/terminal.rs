//! The terminal of the person at the lab: raw while a console of the simulated machine has it, and put back on every way out.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::children;
use crate::error::Result;
use crate::host::Host;
use crate::sys::{self, TerminalSettings};

static BEFORE: Mutex<Option<TerminalSettings>> = Mutex::new(None);

/// Whether there is a person: both ends are a terminal.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Puts the terminal back as it was found.
pub(crate) fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        before.apply();
    }
}

/// The key that ends the lab from within a raw terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Ctrl-A, then x, as in QEMU; Ctrl-C belongs to the shell in L1.
    CtrlAX,
    /// Ctrl-C; Ctrl-A x belongs to the VMM there.
    CtrlC,
}

/// Raw until it is dropped.
struct Raw;

impl Raw {
    /// Makes the terminal raw, if it is one.
    fn enter() -> Self {
        if let Some(found) = TerminalSettings::of_stdin() {
            *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
            found.raw().apply();
        }
        Self
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Runs a command on L1's terminal with the person at it, and gives its exit code.
pub(crate) fn run_on(host: &mut Host, command: &str, leave: Leave) -> Result<i32> {
    let console = host.console();
    let job = host.start_on_terminal(&format!("stty sane {}; {command}", size_for_stty()))?;
    let _raw = Raw::enter();
    if let Some((input, output)) = console {
        connect(input, output, leave);
    }
    Ok(job.wait()?.code)
}

/// Connects the person to a console: what is typed goes in, what it says comes out, each as it comes.
fn connect(
    mut input: impl Write + Send + 'static,
    output: impl Read + Send + 'static,
    leave: Leave,
) {
    thread::spawn(move || copy_out(output));
    thread::spawn(move || {
        let mut keys = [0; 256];
        let mut after_ctrl_a = false;
        while let Ok(count @ 1..) = io::stdin().read(&mut keys) {
            if is_leave(&keys[..count], leave, &mut after_ctrl_a) {
                // Leave the line that the console was on.
                print!("\r\n");
                children::leave(130);
            }
            if input
                .write_all(&keys[..count])
                .and_then(|()| input.flush())
                .is_err()
            {
                return;
            }
        }
    });
}

fn copy_out(mut output: impl Read) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut bytes) {
        let mut out = io::stdout().lock();
        if out
            .write_all(&bytes[..count])
            .and_then(|()| out.flush())
            .is_err()
        {
            return;
        }
    }
}

fn is_leave(keys: &[u8], leave: Leave, after_ctrl_a: &mut bool) -> bool {
    for key in keys {
        match (key, leave) {
            (0x03, Leave::CtrlC) => return true,
            (b'x', Leave::CtrlAX) if *after_ctrl_a => return true,
            _ => *after_ctrl_a = *key == 0x01,
        }
    }
    false
}

/// Rows and columns as arguments of `stty`, so that the console wraps where the person's terminal does.
fn size_for_stty() -> String {
    sys::window_size().map_or_else(String::new, |(rows, cols)| {
        format!("rows {rows} cols {cols}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_leaves_even_when_typed_slowly() {
        let mut state = false;
        assert!(!is_leave(b"\x01", Leave::CtrlAX, &mut state));
        assert!(is_leave(b"x", Leave::CtrlAX, &mut state));
    }

    #[test]
    fn ctrl_c_belongs_to_the_shell_but_ends_the_demo() {
        assert!(!is_leave(b"ls\x03", Leave::CtrlAX, &mut false));
        assert!(is_leave(b"ls\x03", Leave::CtrlC, &mut false));
    }
}
