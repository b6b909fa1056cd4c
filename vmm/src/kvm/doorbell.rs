//! Doorbells over KVM's ioeventfds: a write to one is a signal inside the kernel, and no exit.

use std::{io, sync::Arc};

use devices::doorbell::{Doorbell, Doorbells};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// Hangs doorbells into the memory of a VM.
pub struct MemoryDoorbells(pub Arc<VmFd>);

impl Doorbells for MemoryDoorbells {
    fn hang(&self, address: u64, eventfd: &EventFd) -> io::Result<Box<dyn Doorbell>> {
        // KVM finds an ioeventfd to be taken down by its eventfd: it has to be there until then.
        let eventfd = eventfd.try_clone()?;
        let at = IoEventAddress::Mmio(address);
        // No value to match means no width either: KVM need not decode the instruction (kvm_assign_ioeventfd in virt/kvm/eventfd.c).
        self.0
            .register_ioevent(&eventfd, &at, NoDatamatch)
            .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
        Ok(Box::new(Hung {
            vm: self.0.clone(),
            address,
            eventfd,
        }))
    }
}

struct Hung {
    vm: Arc<VmFd>,
    address: u64,
    eventfd: EventFd,
}

impl Doorbell for Hung {}

impl Drop for Hung {
    fn drop(&mut self) {
        let at = IoEventAddress::Mmio(self.address);
        if let Err(error) = self.vm.unregister_ioevent(&self.eventfd, &at, NoDatamatch) {
            log::error!("a doorbell stays at {:#x}: {error}", self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny_guest::{Access, DEVICE, ENDED, TinyGuest, guest_code};

    #[test]
    fn a_write_of_any_width_rings_and_does_not_exit_and_a_doorbell_that_is_gone_does_neither() {
        let code = guest_code!("code64":
            "mov ebx, 0x80008"
            "mov [rbx], al" "mov [rbx], ax" "mov [rbx], eax" "mov [rbx + 4], eax"
            "out 0xf4, al"
        );
        let guests = (TinyGuest::long_mode(code), TinyGuest::long_mode(code));
        let (Some(mut guest), Some(mut without)) = guests else {
            return;
        };
        let eventfd = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let hang = |guest: &TinyGuest| {
            let doorbells = MemoryDoorbells(guest.vm.fd.clone());
            doorbells.hang(DEVICE + 8, &eventfd).unwrap()
        };
        let _hung = hang(&guest);
        assert_eq!(guest.run(), ENDED);
        assert_eq!(eventfd.read().unwrap(), 3);
        assert_eq!(guest.device.take(), [Access::Write(12, vec![0; 4])]);

        drop(hang(&without));
        assert_eq!(without.run(), ENDED);
        assert!(eventfd.read().is_err(), "nobody rang");
        assert_eq!(without.device.take().len(), 4);
    }
}
