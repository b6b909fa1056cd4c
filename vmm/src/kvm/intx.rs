//! INTx pins over KVM's resampling irqfds.
//!
//! A connected pin is a pair of eventfds. Signalling the first raises the level of an I/O APIC input inside the kernel; the guest's
//! end of interrupt lowers it and signals the second of *every* pair on that input (irqfd_resampler_ack in virt/kvm/eventfd.c), so
//! functions can share one: whose pin is still asserted raises the level again.
//!
//! KVM does not remember a level across KVM_SET_IRQCHIP (kvm_set_ioapic in arch/x86/kvm/ioapic.c clears what is pending), so pins
//! are connected only after the interrupt controllers have been put back: functions connect them when the guest switches them on.

use std::{io, os::fd::BorrowedFd, sync::Arc};

use arch::layout;
use devices::interrupt::{IntxSource, IntxWire};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::eventfd::borrowed;

/// Wires the pins of a slot's functions as `_PRT` tells the guest.
pub struct SlotPins {
    vm: Arc<VmFd>,
    device: u8,
}

impl SlotPins {
    /// The pins of the slot `device` of bus 0.
    pub fn new(vm: Arc<VmFd>, device: u8) -> Self {
        Self { vm, device }
    }
}

impl IntxSource for SlotPins {
    fn line(&self, pin: u8) -> u8 {
        // Below 24, the number of the I/O APIC's inputs; 0xff is how the register says that there is none (PCI 3.0 §6.2.4).
        u8::try_from(layout::intx_gsi(self.device, pin)).unwrap_or(0xff)
    }

    fn connect(&self, pin: u8) -> io::Result<Box<dyn IntxWire>> {
        let gsi = layout::intx_gsi(self.device, pin);
        Ok(Box::new(Wire::connect(self.vm.clone(), gsi)?))
    }
}

/// A connected pin. Its eventfds are its own, so nothing of an earlier connection is left in them.
struct Wire {
    vm: Arc<VmFd>,
    gsi: u32,
    trigger: EventFd,
    resample: EventFd,
}

impl Wire {
    fn connect(vm: Arc<VmFd>, gsi: u32) -> io::Result<Self> {
        let eventfd = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let (trigger, resample) = (eventfd()?, eventfd()?);
        vm.register_irqfd_with_resample(&trigger, &resample, gsi)
            .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
        Ok(Self {
            vm,
            gsi,
            trigger,
            resample,
        })
    }
}

impl IntxWire for Wire {
    fn trigger(&self) -> BorrowedFd<'_> {
        borrowed(&self.trigger)
    }

    fn resample(&self) -> BorrowedFd<'_> {
        borrowed(&self.resample)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The last one to leave an input takes the level with it (irqfd_resampler_shutdown).
        if let Err(error) = self.vm.unregister_irqfd(&self.trigger, self.gsi) {
            log::error!("a pin stays connected to GSI {}: {error}", self.gsi);
        }
    }
}

#[cfg(test)]
mod tests;
