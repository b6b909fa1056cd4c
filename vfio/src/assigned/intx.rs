//! The function's INTx pin: a level, from the device through the kernel to the guest's interrupt controller and back.
//!
//! Three eventfds' worth of plumbing and no thread of ours: vfio-pci masks the pin and signals the trigger; KVM raises the level; the
//! guest's end of interrupt makes KVM lower it and signal the resample eventfd; upon that vfio-pci unmasks the pin, or signals the
//! trigger again if it is still asserted. An eventfd keeps what it is told until the other side is attached, so nothing is lost
//! while the wire is put together, in whatever order.
//!
//! The pin is listened to while the guest has the function switched on and neither MSI nor MSI-X enabled. A function that is off
//! has nothing to say to this guest: what it may still assert is of its last driver.

use std::{io, sync::Arc};

use devices::interrupt::{IntxSource, IntxWire};

use crate::kernel::{HostFunction, IrqIndex};

/// The pin of one function.
pub(super) struct Pin {
    host: Arc<dyn HostFunction>,
    source: Arc<dyn IntxSource>,
    /// 1 is INTA.
    number: u8,
    listening: Listening,
}

/// Whether somebody listens to the pin.
enum Listening {
    No,
    /// The host refused it when it was last tried; it is tried again once the guest has switched the function off and on.
    Refused,
    Yes(Box<dyn IntxWire>),
}

impl Pin {
    pub(super) fn new(
        host: Arc<dyn HostFunction>,
        source: Arc<dyn IntxSource>,
        number: u8,
    ) -> Self {
        Self {
            host,
            source,
            number,
            listening: Listening::No,
        }
    }

    /// Whether what the device asserts reaches the guest.
    pub(super) fn is_heard(&self) -> bool {
        matches!(self.listening, Listening::Yes(_))
    }

    /// Connects the pin to the guest's interrupt controller, once.
    pub(super) fn listen(&mut self) -> io::Result<()> {
        if !matches!(self.listening, Listening::No) {
            return Ok(());
        }
        self.listening = Listening::Refused;
        self.listening = Listening::Yes(self.connect()?);
        Ok(())
    }

    fn connect(&self) -> io::Result<Box<dyn IntxWire>> {
        let wire = self.source.connect(self.number)?;
        self.host
            .arm(IrqIndex::Intx, 0, &[Some(wire.trigger())])
            .inspect_err(|error| log::debug!("INTx cannot be enabled: {error}"))?;
        if let Err(error) = self.host.unmask_on(wire.resample()) {
            // One interrupt and never another would be worse than none.
            self.disarm();
            return Err(error);
        }
        Ok(wire)
    }

    /// Disconnects the pin. The device first, so that nobody asserts what cannot be taken back.
    pub(super) fn hush(&mut self) {
        if let Listening::Yes(wire) = std::mem::replace(&mut self.listening, Listening::No) {
            self.disarm();
            drop(wire);
        }
    }

    /// Has the device keep quiet on its pin after its messages were disabled.
    ///
    /// The host's kernel lets the pin speak again as it frees the vectors (pci_intx_for_msi in drivers/pci/msi/msi.c), whatever the
    /// command register said before; what the device then asserts would be an interrupt that nobody on the host's line wants, until
    /// the kernel shuts that line for everybody. Enabling the pin while it is disabled in the command register puts that in force again
    /// (vfio_intx_enable in drivers/vfio/pci/vfio_pci_intrs.c).
    pub(super) fn requiet(&self) {
        if self.host.arm(IrqIndex::Intx, 0, &[None]).is_ok() {
            self.disarm();
        }
    }

    fn disarm(&self) {
        if let Err(error) = self.host.disarm(IrqIndex::Intx) {
            log::warn!("the INTx pin cannot be disabled: {error}");
        }
    }
}
