//! The guest's consoles, each with the person's side of it: opened before anything is changed, connected once the machine stands.

use std::{fs::File, io::Write, sync::Arc};

use devices::virtio::console::Port;

use super::RunError;
use crate::{
    console::{self, Pty, RawTerminal, Side},
    events::Mailbox,
    input::{self, Keyboard},
    machine::{Config, Machine},
};

/// What both consoles need of the host.
pub(super) struct Consoles {
    serial: Console,
    virtio: Option<(Console, Arc<Port>)>,
}

/// One console's person.
struct Console {
    side: Side,
    /// Kept open for as long as the guest is there.
    pty: Option<Pty>,
}

/// Whether they get along.
pub(super) fn check(config: &Config) -> Result<(), RunError> {
    let console = config.console.as_ref();
    let on_stdio = console.is_some_and(|console| console.side == Side::Stdio);
    match on_stdio && config.serial == Side::Stdio {
        true => Err(RunError::TwoOnStdio),
        false => Ok(()),
    }
}

impl Consoles {
    /// Opens what was asked for; with it, what the serial port prints to.
    pub(super) fn open(config: &Config) -> Result<(Self, Box<dyn Write + Send>), RunError> {
        let open = |option, side: &Side| {
            let side = side.clone();
            let failed = |source| RunError::Console { option, source };
            let opened = side.open().map_err(failed)?;
            let pty = opened.pty;
            Ok::<_, RunError>((Console { side, pty }, opened.sink))
        };
        let (serial, sink) = open("serial", &config.serial)?;
        let virtio = match &config.console {
            None => None,
            Some(wanted) => {
                let option = "console";
                let (console, sink) = open(option, &wanted.side)?;
                let port = Port::new(sink);
                let port = port.map_err(|source| RunError::Console { option, source })?;
                Some((console, port))
            }
        };
        Ok((Self { serial, virtio }, sink))
    }

    /// What goes into the machine.
    pub(super) fn port(&self) -> Option<Arc<Port>> {
        self.virtio.as_ref().map(|(_, port)| port.clone())
    }

    /// Brings what is typed to the guest from here on; with it, the terminal, if it is one and in raw mode now.
    pub(super) fn connect(
        &self,
        machine: &Machine,
        mailbox: &Mailbox,
    ) -> Result<Option<RawTerminal>, RunError> {
        let mut terminal = connect(&self.serial, "serial port", machine.uart(), mailbox)?;
        if let Some((console, port)) = &self.virtio {
            let entered = connect(console, "console hvc0", port.clone(), mailbox)?;
            terminal = terminal.or(entered);
            if let (Side::Stdio, Some(size)) = (&console.side, console::terminal_size()) {
                port.resize(size);
            }
        }
        Ok(terminal)
    }
}

fn connect(
    console: &Console,
    what: &str,
    keyboard: Arc<dyn Keyboard>,
    mailbox: &Mailbox,
) -> Result<Option<RawTerminal>, RunError> {
    if let Some(pty) = &console.pty {
        // Said always: without it there is no way to the guest.
        eprintln!("viaduct: the guest's {what} is at {}", pty.path().display());
        let source: File = pty.source().map_err(RunError::Input)?;
        input::bring(source, keyboard, mailbox.clone()).map_err(RunError::Input)?;
        return Ok(None);
    }
    if console.side != Side::Stdio {
        return Ok(None);
    }
    // Raw only now: an error of the assembly is printed to a terminal in its usual mode.
    let terminal = RawTerminal::enter().map_err(RunError::Terminal)?;
    input::start(keyboard, mailbox.clone(), terminal.is_some()).map_err(RunError::Input)?;
    Ok(terminal)
}
