use std::{
    thread,
    time::{Duration, Instant},
};

use devices::interrupt::IrqLine;

use super::*;
use crate::{
    tiny_guest::{DEADLINE, Started, TinyGuest, guest_code},
    vcpu::Stop,
};

/// Where the interrupt descriptor table and the two handlers are.
const IDT: u64 = 0x1_0000;
const HANDLER: u64 = 0x1_8000;
/// Where the interrupts are counted, a quadword each.
const COUNT: [u64; 2] = [0x2_0000, 0x2_0008];
/// Their vectors.
const VECTOR: [u32; 2] = [0x51, 0x41];

fn message(number: usize) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data: VECTOR[number],
    }
}

/// A guest that counts its interrupts, and does nothing else.
fn interruptible() -> Option<(TinyGuest, Arc<Routes>)> {
    // The local APIC is switched on in its spurious-interrupt register (Intel SDM vol. 3, 12.9) and told of the end at 0xb0.
    let guest = TinyGuest::long_mode(guest_code!("code64":
        "mov ebx, 0xfee000f0" "mov dword ptr [rbx], 0x1ff"
        "inc qword ptr [0x3000]" "4: sti" "hlt" "jmp 4b"
    ))?;
    for (at, vector, handler) in [
        (HANDLER, VECTOR[0], handler(0)),
        (HANDLER + 0x100, VECTOR[1], handler(1)),
    ] {
        guest.put(at, handler);
        // A 64-bit interrupt gate through the boot's code segment (Intel SDM vol. 3, 7.14.1).
        let gate = [
            at.to_le_bytes()[..2].to_vec(),
            vec![0x10, 0, 0, 0x8e],
            at.to_le_bytes()[2..].to_vec(),
        ];
        guest.put(IDT + u64::from(vector) * 16, &gate.concat());
    }
    let mut sregs = guest.fd().get_sregs().unwrap();
    (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
    guest.fd().set_sregs(&sregs).unwrap();
    let routes = Arc::new(Routes::new(guest.vm.fd.clone()));
    Some((guest, routes))
}

fn handler(number: usize) -> &'static [u8] {
    match number {
        0 => guest_code!("code64":
            "push rbx" "mov ebx, 0x20000" "inc qword ptr [rbx]"
            "mov ebx, 0xfee000b0" "mov dword ptr [rbx], 0" "pop rbx" "iretq"
        ),
        _ => guest_code!("code64":
            "push rbx" "mov ebx, 0x20008" "inc qword ptr [rbx]"
            "mov ebx, 0xfee000b0" "mov dword ptr [rbx], 0" "pop rbx" "iretq"
        ),
    }
}

fn signal(vectors: &Vectors, vector: usize) {
    vectors.get(vector).unwrap().eventfd.write(1).unwrap();
}

/// Waits until interrupt `number` has come `times` times, and a little longer: it must be no more.
fn comes_exactly(started: &Started<'_>, number: usize, times: u64) {
    let begun = Instant::now();
    while started.quadword(COUNT[number]) < times && begun.elapsed() < DEADLINE {
        thread::yield_now();
    }
    thread::sleep(Duration::from_millis(20));
    assert_eq!(
        started.quadword(COUNT[number]),
        times,
        "interrupt {number}, as often as expected"
    );
}

#[test]
fn a_routed_vector_interrupts_the_guest_with_its_message() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes, 3);
    vectors
        .route(&[(0, Some(message(0))), (2, Some(message(1)))])
        .unwrap();
    let started = guest.start();
    started.wait_until_it_counts();
    for times in 1..5 {
        signal(&vectors, 2);
        comes_exactly(&started, 1, times);
    }
    assert_eq!(started.quadword(COUNT[0]), 0);
    signal(&vectors, 0);
    comes_exactly(&started, 0, 1);
    assert!(!vectors.is_latched(0) && !vectors.is_latched(2));
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn what_is_signalled_while_masked_latches_and_comes_exactly_once() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes, 1);
    let started = guest.start();
    started.wait_until_it_counts();
    assert!(!vectors.is_latched(0));
    signal(&vectors, 0);
    signal(&vectors, 0);
    assert!(vectors.is_latched(0));
    comes_exactly(&started, 0, 0);

    vectors.route(&[(0, Some(message(0)))]).unwrap();
    comes_exactly(&started, 0, 1);
    assert!(!vectors.is_latched(0), "it was delivered");

    // Nothing is left of it to come a second time.
    vectors.route(&[(0, None)]).unwrap();
    assert!(!vectors.is_latched(0), "it was delivered");
    vectors.route(&[(0, Some(message(0)))]).unwrap();
    comes_exactly(&started, 0, 1);
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn what_was_latched_and_cleared_never_comes() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes, 2);
    let started = guest.start();
    started.wait_until_it_counts();
    vectors.route(&[(1, Some(message(1)))]).unwrap();
    signal(&vectors, 0);
    vectors.clear_latched();
    assert!(!vectors.is_latched(0));
    vectors.route(&[(0, Some(message(0)))]).unwrap();
    comes_exactly(&started, 0, 0);
    signal(&vectors, 0);
    comes_exactly(&started, 0, 1);
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn masking_one_vector_leaves_the_others_routed() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes, 2);
    let started = guest.start();
    started.wait_until_it_counts();
    vectors
        .route(&[(0, Some(message(0))), (1, Some(message(1)))])
        .unwrap();
    vectors.route(&[(0, None)]).unwrap();
    signal(&vectors, 0);
    signal(&vectors, 1);
    comes_exactly(&started, 1, 1);
    comes_exactly(&started, 0, 0);
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn one_vector_that_fails_leaves_the_others_of_its_batch_routed() {
    let Some((_guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes, 1);
    let changes = [(7, Some(message(1))), (0, Some(message(0)))];
    let error = vectors.route(&changes).unwrap_err();
    assert!(error.to_string().contains("vector 7"), "{error}");
    assert!(vectors.get(0).unwrap().is_attached());
}

#[test]
fn a_vector_follows_its_message_without_being_masked() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes, 1);
    let started = guest.start();
    started.wait_until_it_counts();
    vectors.route(&[(0, Some(message(0)))]).unwrap();
    signal(&vectors, 0);
    comes_exactly(&started, 0, 1);
    vectors.route(&[(0, Some(message(1)))]).unwrap();
    signal(&vectors, 0);
    comes_exactly(&started, 1, 1);
    assert_eq!(started.quadword(COUNT[0]), 1);
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn vectors_cost_nothing_until_they_are_used() {
    let Some((_, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes.clone(), 2048);
    vectors
        .route(&[(0, None), (2047, None), (2048, None)])
        .unwrap();
    assert!(!vectors.is_latched(2047));
    vectors.clear_latched();
    assert!(vectors.vectors.iter().all(|made| made.get().is_none()));
    vectors.eventfd(2047).unwrap();
    assert_eq!(
        vectors.vectors.iter().filter_map(OnceLock::get).count(),
        1,
        "only the one that was used"
    );
    assert!(vectors.eventfd(2048).is_err());
    assert_eq!(routes.updates(), 0);
}

#[test]
fn the_routing_table_is_replaced_once_for_many_changes_and_never_for_none() {
    let Some((_, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes.clone(), 64);
    let all: Vec<_> = (0..64).map(|vector| (vector, Some(message(0)))).collect();
    vectors.route(&all).unwrap();
    assert_eq!(routes.updates(), 1);
    vectors.route(&all).unwrap();
    vectors.route(&[(3, None), (4, None)]).unwrap();
    vectors.route(&[(3, Some(message(0)))]).unwrap();
    assert_eq!(routes.updates(), 1, "masking is no change of the table");
    vectors.route(&[(4, Some(message(1))), (5, None)]).unwrap();
    assert_eq!(routes.updates(), 2);
    drop(vectors);
    assert_eq!(routes.updates(), 3);
    drop(Vectors::new(routes.clone(), 64));
    assert_eq!(routes.updates(), 3);
}

#[test]
fn interrupts_that_were_given_back_are_used_again() {
    let Some((_, routes)) = interruptible() else {
        return;
    };
    let gsi = |vectors: &Vectors| vectors.get(0).unwrap().gsi;
    let [kept, given_back] = [1, 2].map(|count| Vectors::new(routes.clone(), count));
    kept.route(&[(0, Some(message(0)))]).unwrap();
    given_back
        .route(&[(0, Some(message(0))), (1, Some(message(1)))])
        .unwrap();
    let free = gsi(&given_back);
    assert_ne!(free, gsi(&kept));
    drop(given_back);
    let next = Vectors::new(routes, 1);
    next.route(&[(0, Some(message(1)))]).unwrap();
    assert_eq!(gsi(&next), free);
}

#[test]
fn vectors_that_are_gone_interrupt_no_more() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    let vectors = Vectors::new(routes.clone(), 1);
    vectors.route(&[(0, Some(message(0)))]).unwrap();
    let of_the_device = vectors.get(0).unwrap().eventfd.try_clone().unwrap();
    let started = guest.start();
    started.wait_until_it_counts();
    of_the_device.write(1).unwrap();
    comes_exactly(&started, 0, 1);
    drop(vectors);
    of_the_device.write(1).unwrap();
    comes_exactly(&started, 0, 1);
    // Nor does the one that has its place now.
    let next = Vectors::new(routes, 1);
    next.route(&[(0, Some(message(1)))]).unwrap();
    of_the_device.write(1).unwrap();
    comes_exactly(&started, 1, 0);
    assert_eq!(started.stop(), Stop::Asked);
}

#[test]
fn more_vectors_than_kvm_has_routes_are_refused_and_do_not_harm_the_others() {
    let Some((_, routes)) = interruptible() else {
        return;
    };
    let gsis: Vec<_> = (0..4056).map(|_| routes.allocate().unwrap()).collect();
    let vectors = Vectors::new(routes.clone(), 1);
    let refused = vectors.route(&[(0, Some(message(0)))]).unwrap_err();
    assert!(refused.to_string().contains("4096"), "{refused}");
    // And as many as are handed out KVM does take.
    routes
        .set(gsis.iter().map(|&gsi| (gsi, message(0))))
        .unwrap();
    routes.release(&gsis[..1]);
    vectors.route(&[(0, Some(message(0)))]).unwrap();
}

#[test]
fn a_pulse_of_a_wire_interrupts_by_its_pin_whatever_else_is_routed() {
    let Some((mut guest, routes)) = interruptible() else {
        return;
    };
    let mut ioapic = kvm_bindings::kvm_irqchip {
        chip_id: kvm_bindings::KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    guest.vm.fd.get_irqchip(&mut ioapic).unwrap();
    // Edge-triggered, unmasked, fixed delivery to APIC 0.
    // SAFETY: the chip is the IOAPIC, so that is the part of the union that KVM filled.
    let mut pins = unsafe { ioapic.chip.ioapic };
    pins.redirtbl[4].bits = VECTOR[0].into();
    ioapic.chip.ioapic = pins;
    guest.vm.fd.set_irqchip(&ioapic).unwrap();
    let mut lapic = guest.fd().get_lapic().unwrap();
    arch::lapic::wire_local_interrupts(&mut lapic.regs);
    guest.fd().set_lapic(&lapic).unwrap();
    let line = routes.line(4).unwrap();
    let started = guest.start();
    started.wait_until_it_counts();
    line.pulse().unwrap();
    comes_exactly(&started, 0, 1);
    let vectors = Vectors::new(routes, 1);
    vectors.route(&[(0, Some(message(1)))]).unwrap();
    line.pulse().unwrap();
    comes_exactly(&started, 0, 2);
    assert_eq!(started.quadword(COUNT[1]), 0);
    assert_eq!(started.stop(), Stop::Asked);
}
