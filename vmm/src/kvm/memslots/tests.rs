use std::sync::Weak;

use super::*;
use crate::tiny_guest::{Access, DEVICE, ENDED, RAM_END, TinyGuest, guest_code};

/// A page of this process, on the heap.
struct Page {
    bytes: Box<PageBytes>,
    read_only: bool,
}

#[repr(C, align(4096))]
struct PageBytes([std::cell::UnsafeCell<u8>; 4096]);

// SAFETY: only the guest writes to it, and the test looks while the guest is stopped.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

// SAFETY: the box lives as long as the page does and is page-aligned; its bytes are cells, to which nobody holds references.
unsafe impl HostMapping for Page {
    fn address(&self) -> usize {
        (&raw const *self.bytes).addr()
    }

    fn len(&self) -> usize {
        4096
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }
}

impl Page {
    fn filled(value: u8, read_only: bool) -> Arc<Self> {
        let bytes = Box::new(PageBytes([const { std::cell::UnsafeCell::new(0) }; 4096]));
        let page = Self { bytes, read_only };
        page.set(value);
        Arc::new(page)
    }

    fn set(&self, value: u8) {
        // SAFETY: the cell is part of the page and no guest runs.
        unsafe { *self.bytes.0[0].get() = value };
    }

    fn first(&self) -> u8 {
        // SAFETY: the cell is part of the page and no guest runs.
        unsafe { *self.bytes.0[0].get() }
    }
}

/// A guest that adds one to the byte at `DEVICE`, ends, and does it again when it is run again.
fn counting() -> Option<TinyGuest> {
    TinyGuest::real_mode(guest_code!("code16":
        "mov ax, 0x8000" "mov ds, ax"
        "4: mov al, [0]" "inc al" "mov [0], al" "out 0xf4, al" "jmp 4b"
    ))
}

#[test]
fn what_is_mapped_is_reached_without_an_exit_and_exits_again_once_unmapped() {
    let Some(mut guest) = counting() else { return };
    let page = Page::filled(7, false);
    let slot = guest.slots.map(DEVICE, page.clone()).unwrap();
    assert_eq!(guest.run(), ENDED);
    assert_eq!(guest.device.take(), []);
    assert_eq!(page.first(), 8);

    guest.slots.unmap(slot);
    assert_eq!(guest.run(), ENDED);
    let expected = [Access::Read(0, 1), Access::Write(0, vec![0x12])];
    assert_eq!(guest.device.take(), expected);
    assert_eq!(page.first(), 8);
}

#[test]
fn writes_to_a_read_only_mapping_come_to_the_bus_and_reads_do_not() {
    let Some(mut guest) = counting() else { return };
    let page = Page::filled(7, true);
    guest.slots.map(DEVICE, page.clone()).unwrap();
    assert_eq!(guest.run(), ENDED);
    assert_eq!(guest.device.take(), [Access::Write(0, vec![8])]);
    assert_eq!(page.first(), 7);
}

#[test]
fn overlapping_memory_is_refused_and_takes_no_slot() {
    let Some(mut guest) = counting() else { return };
    let page = Page::filled(7, false);
    let refused = guest.slots.map(RAM_END - 4096, page.clone()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EEXIST));
    assert_eq!(
        Arc::strong_count(&page),
        1,
        "what was refused is not kept alive"
    );
    // RAM is slot 0, so 1 is still the first that is free.
    assert_eq!(guest.slots.map(DEVICE, page).unwrap(), 1);
    assert_eq!(guest.run(), ENDED);
    assert_eq!(guest.device.take(), []);
}

#[test]
fn memory_lives_until_it_is_unmapped() {
    let Some(guest) = counting() else { return };
    let page = Page::filled(0, false);
    let weak: Weak<Page> = Arc::downgrade(&page);
    let slot = guest.slots.map(DEVICE, page).unwrap();
    assert!(weak.upgrade().is_some());
    guest.slots.unmap(slot);
    assert!(weak.upgrade().is_none());
    guest.slots.unmap(slot);
}

#[test]
fn a_slot_that_was_given_back_is_used_again() {
    let Some(mut guest) = counting() else { return };
    let [first, second, third] = [1, 2, 3].map(|value| Page::filled(value, false));
    let slot = guest.slots.map(DEVICE, first).unwrap();
    guest.slots.map(DEVICE + 0x1000, second).unwrap();
    guest.slots.unmap(slot);
    assert_eq!(guest.slots.map(DEVICE, third.clone()).unwrap(), slot);
    assert_eq!(guest.run(), ENDED);
    assert_eq!(third.first(), 4);
}

#[test]
fn mappings_come_and_go_while_the_guest_uses_them() {
    let code = guest_code!("code16":
        "mov ax, 0x8000" "mov ds, ax" "4: mov al, [0]" "mov [0], al" "jmp 4b"
    );
    let Some(mut guest) = TinyGuest::real_mode(code) else {
        return;
    };
    let slots = guest.slots.clone();
    let started = guest.start();
    for round in 0..200 {
        let page = Page::filled(round, false);
        let slot = slots.map(DEVICE, page.clone()).unwrap();
        slots.unmap(slot);
        // The guest cannot reach it any more, so this is the only one who has it.
        assert_eq!(Arc::strong_count(&page), 1);
    }
    assert_eq!(started.stop(), crate::vcpu::Stop::Asked);
}
