//! Memory slots: which host memory the guest reaches without an exit. RAM and the mapped parts of BARs share them.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use devices::mapping::{HostMapping, Memslots};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

/// The VM's memory slots. Each keeps what it maps alive.
pub struct SlotTable {
    vm: Arc<VmFd>,
    slots: Mutex<BTreeMap<u32, Slot>>,
}

struct Slot {
    guest: u64,
    memory: Arc<dyn HostMapping>,
}

impl SlotTable {
    /// No slot in use.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            slots: Mutex::default(),
        }
    }

    fn set(&self, slot: u32, guest: u64, memory: &dyn HostMapping, len: usize) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: if memory.is_read_only() {
                KVM_MEM_READONLY
            } else {
                0
            },
            guest_phys_addr: guest,
            memory_size: len as u64,
            userspace_addr: memory.address() as u64,
        };
        // SAFETY: HostMapping promises that address()..address()+len() is mapped while the value lives and may be written by a
        // guest; `map` stores the value beside the slot and `unmap` drops it only after the slot is gone.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))
    }
}

impl Memslots for SlotTable {
    fn map(&self, guest: u64, memory: Arc<dyn HostMapping>) -> io::Result<u32> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = (0..)
            .find(|slot| !slots.contains_key(slot))
            .unwrap_or(u32::MAX);
        // Which slots overlap is for KVM to say (EEXIST): it has every slot, and a second copy of the rule here could differ.
        self.set(slot, guest, &*memory, memory.len())?;
        slots.insert(slot, Slot { guest, memory });
        Ok(slot)
    }

    fn unmap(&self, slot: u32) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(gone) = slots.remove(&slot) else {
            return;
        };
        // A size of zero deletes the slot; KVM waits until no vCPU uses it.
        if let Err(error) = self.set(slot, gone.guest, &*gone.memory, 0) {
            // The guest may still reach it, so it stays mapped for good rather than be reused under the guest's feet.
            log::error!(
                "memory slot {slot} at {:#x} cannot be removed: {error}",
                gone.guest
            );
            std::mem::forget(gone.memory);
        }
    }
}

#[cfg(test)]
mod tests;
