use std::time::Instant;

use super::*;
use crate::{
    kvm::interruptible::{self, COUNT, VECTOR, comes_exactly, wire_pin},
    tiny_guest::{DEADLINE, TinyGuest},
    vcpu::Stop,
};

/// Slots 3 and 11 share inputs; slot 4 has others.
const SLOTS: [u8; 3] = [3, 11, 4];
const INTA: u8 = 1;

/// A guest whose inputs for the pins INTA of `SLOTS` are level-triggered, and those pins connected.
fn connected() -> Option<(TinyGuest, [Wire; 3])> {
    const LEVEL: u64 = 1 << 15;
    let guest = interruptible::guest()?;
    for (slot, vector) in [(3, VECTOR[0]), (4, VECTOR[1])] {
        let gsi = usize::try_from(layout::intx_gsi(slot, INTA)).unwrap();
        wire_pin(&guest, gsi, LEVEL | u64::from(vector));
    }
    let connect = |slot| Wire::connect(guest.vm.fd.clone(), layout::intx_gsi(slot, INTA)).unwrap();
    let wires = SLOTS.map(connect);
    Some((guest, wires))
}

/// Waits for the end of interrupt to be told.
fn is_told(wire: &Wire) -> u64 {
    let begun = Instant::now();
    loop {
        match wire.resample.read() {
            Ok(times) => return times,
            Err(_) => assert!(begun.elapsed() < DEADLINE, "no end of interrupt"),
        }
    }
}

#[test]
fn the_line_register_names_the_input_that_slots_eight_apart_share() {
    let Some(guest) = interruptible::guest() else {
        return;
    };
    let line = |slot, pin| SlotPins::new(guest.vm.fd.clone(), slot).line(pin);
    assert_eq!(
        [line(3, 1), line(11, 1), line(3, 2), line(4, 1)],
        [19, 19, 20, 20]
    );
}

#[test]
fn the_end_of_interrupt_lowers_the_level_and_tells_the_device() {
    let Some((mut guest, [wire, _, other])) = connected() else {
        return;
    };
    let started = guest.start();
    started.wait_until_it_counts();
    for times in 1..5 {
        wire.trigger.write(1).unwrap();
        comes_exactly(&started, 0, times);
        assert_eq!(is_told(&wire), 1);
    }
    assert_eq!(started.quadword(COUNT[1]), 0);
    assert!(
        other.resample.read().is_err(),
        "another input's end is not told"
    );
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn a_device_that_still_asserts_its_pin_interrupts_again() {
    let Some((mut guest, [wire, ..])) = connected() else {
        return;
    };
    let started = guest.start();
    started.wait_until_it_counts();
    // What vfio-pci does in the kernel: asserted for three ends of interrupt.
    wire.trigger.write(1).unwrap();
    for _ in 0..2 {
        is_told(&wire);
        wire.trigger.write(1).unwrap();
    }
    is_told(&wire);
    comes_exactly(&started, 0, 3);
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn all_devices_on_one_input_interrupt_by_it_and_are_told_of_its_end() {
    let Some((mut guest, [one, other, _])) = connected() else {
        return;
    };
    let started = guest.start();
    started.wait_until_it_counts();
    for (device, times) in [(&one, 1), (&other, 2), (&one, 3)] {
        device.trigger.write(1).unwrap();
        comes_exactly(&started, 0, times);
        assert_eq!((is_told(&one), is_told(&other)), (1, 1));
    }
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn a_pin_that_is_disconnected_interrupts_no_more_and_leaves_the_other_on_its_input() {
    let Some((mut guest, [one, other, _])) = connected() else {
        return;
    };
    let of_the_device = one.trigger.try_clone().unwrap();
    let started = guest.start();
    started.wait_until_it_counts();
    drop(one);
    of_the_device.write(1).unwrap();
    comes_exactly(&started, 0, 0);
    other.trigger.write(1).unwrap();
    comes_exactly(&started, 0, 1);
    assert_eq!(is_told(&other), 1);
    assert_eq!(started.stop(), Stop::Asked);
}
