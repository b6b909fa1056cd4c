//! What the host has to say of a function while the guest runs: interrupts that are not the guest's.

use std::{io, os::fd::BorrowedFd};

use crate::kernel::{HostFunction, IrqIndex};

/// What the host has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Somebody wants the function back: it is being unbound from vfio-pci, or taken out. That waits until the guest lets go of it
    /// (vfio_unregister_group_dev in drivers/vfio/vfio_main.c).
    Wanted,
    /// It reported an error that the hardware cannot correct (AER), and the host's kernel has stopped what is behind the port.
    Failed,
}

impl Notice {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Wanted, Self::Failed];

    fn irq(self) -> IrqIndex {
        match self {
            Self::Wanted => IrqIndex::Req,
            Self::Failed => IrqIndex::Err,
        }
    }

    /// Has `eventfd` signalled when there is that to say; false where there never will be: a conventional PCI function reports no
    /// errors.
    pub(super) fn arm(self, host: &dyn HostFunction, eventfd: BorrowedFd<'_>) -> io::Result<bool> {
        let comes = host.irq(self.irq()).is_ok_and(|irq| irq.count > 0);
        if comes {
            host.arm(self.irq(), 0, &[Some(eventfd)])?;
        }
        Ok(comes)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use super::{super::fake::FakeHost, *};

    #[test]
    fn the_host_is_asked_for_what_it_will_ever_say() {
        let (host, bell) = (FakeHost::default(), File::open("/dev/null").unwrap());
        assert!(Notice::Wanted.arm(&host, bell.as_fd()).unwrap());
        assert!(!Notice::Failed.arm(&host, bell.as_fd()).unwrap());
        assert_eq!(host.take_calls(), ["arm Req 0 [fd]"]);
    }
}
