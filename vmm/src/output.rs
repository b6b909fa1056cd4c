//! What a command prints. Who has read enough and closes the pipe is no error, and must not end what the command is doing.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write},
};

/// Prints `text`, all that the command has to say.
pub(crate) fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Prints a line on what is being done, which goes on whether that can be read or not.
pub(crate) fn line(text: impl Display) {
    if let Err(error) = print(&format!("{text}\n")) {
        log::warn!("stdout: {error}");
    }
}
