//! What is mapped of the cards: into the guest (memory slots), and for each other's DMA. Never while a card does not decode, and never
//! over something else.

use std::{
    io,
    sync::{Arc, Mutex},
};

use devices::mapping::{HostMapping, Memslots};

use crate::kernel::{DmaError, DmaTarget};

#[derive(Default)]
pub(super) struct Slots {
    mapped: Mutex<Vec<Slot>>,
    reached: Mutex<Vec<Slot>>,
    decodes: Mutex<Vec<bool>>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    guest: u64,
    len: u64,
    host: u64,
    name: u32,
}

/// What is mapped: address in the guest, length, and what it is; by address.
pub(super) type Mappings = Vec<(u64, u64, u64)>;

fn list(slots: &Mutex<Vec<Slot>>) -> Mappings {
    let slots = slots.lock().unwrap();
    let mut list: Vec<_> = slots
        .iter()
        .map(|slot| (slot.guest, slot.len, slot.host))
        .collect();
    list.sort_unstable();
    list
}

impl Slots {
    /// What the guest reaches.
    pub(super) fn mapped(&self) -> Mappings {
        list(&self.mapped)
    }

    /// What other cards reach.
    pub(super) fn reached(&self) -> Mappings {
        list(&self.reached)
    }

    /// To be called when a card has changed its mind.
    pub(super) fn set_decodes(&self, card: usize, decodes: bool) {
        let mut all = self.decodes.lock().unwrap();
        let len = all.len().max(card + 1);
        all.resize(len, false);
        all[card] = decodes;
        for slots in [&self.mapped, &self.reached] {
            let is_its = |slot: &Slot| card_of(slot.host) == card;
            let is_mapped = slots.lock().unwrap().iter().any(is_its);
            assert!(
                decodes || !is_mapped,
                "card {card} is mapped and stops to decode"
            );
        }
    }

    fn add(&self, slots: &Mutex<Vec<Slot>>, guest: u64, memory: &dyn HostMapping) -> u32 {
        let (host, len) = (memory.address() as u64, memory.len() as u64);
        let card = card_of(host);
        assert!(
            self.decodes.lock().unwrap()[card],
            "card {card} is to be mapped and does not decode"
        );
        let mut slots = slots.lock().unwrap();
        let is_over = |slot: &Slot| guest < slot.guest + slot.len && slot.guest < guest + len;
        assert!(!slots.iter().any(is_over), "{guest:#x} is mapped already");
        let is_free = |name: &u32| slots.iter().all(|slot| slot.name != *name);
        let name = (0..).find(is_free).unwrap();
        slots.push(Slot {
            guest,
            len,
            host,
            name,
        });
        name
    }
}

impl Memslots for Slots {
    fn map(&self, guest: u64, memory: Arc<dyn HostMapping>) -> io::Result<u32> {
        Ok(self.add(&self.mapped, guest, &*memory))
    }

    fn unmap(&self, name: u32) {
        let mut mapped = self.mapped.lock().unwrap();
        let at = mapped.iter().position(|slot| slot.name == name).unwrap();
        mapped.remove(at);
    }
}

impl DmaTarget for Slots {
    fn map(&self, iova: u64, memory: Arc<dyn HostMapping>) -> Result<(), DmaError> {
        self.add(&self.reached, iova, &*memory);
        Ok(())
    }

    fn unmap(&self, iova: u64) {
        let mut reached = self.reached.lock().unwrap();
        let at = reached.iter().position(|slot| slot.guest == iova).unwrap();
        reached.remove(at);
    }
}

/// Whose something is, by where it is in this process.
fn card_of(host: u64) -> usize {
    usize::try_from(((host >> 40) - 1) / 8).unwrap()
}
