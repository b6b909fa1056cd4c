//! A tiny guest that counts its interrupts, for the tests of what makes them.

use std::{
    thread,
    time::{Duration, Instant},
};

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};

use crate::tiny_guest::{DEADLINE, Started, TinyGuest, guest_code};

/// Where the interrupt descriptor table and the two handlers are.
const IDT: u64 = 0x1_0000;
const HANDLER: u64 = 0x1_8000;
/// Where the interrupts are counted, a quadword each.
pub(super) const COUNT: [u64; 2] = [0x2_0000, 0x2_0008];
/// Their vectors.
pub(super) const VECTOR: [u32; 2] = [0x51, 0x41];

/// A guest that counts its interrupts, and does nothing else.
pub(super) fn guest() -> Option<TinyGuest> {
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
    Some(guest)
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

/// Waits until interrupt `number` has come `times` times, and a little longer: it must be no more.
pub(super) fn comes_exactly(started: &Started<'_>, number: usize, times: u64) {
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

/// Has the I/O APIC send what comes at `pin` to the CPU, as `redirection` says: the vector in the low byte, fixed delivery to APIC 0,
/// unmasked; edge-triggered without bit 15.
pub(super) fn wire_pin(guest: &TinyGuest, pin: usize, redirection: u64) {
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    guest.vm.fd.get_irqchip(&mut chip).unwrap();
    // SAFETY: the chip is the IOAPIC, so that is the part of the union that KVM filled.
    let mut ioapic = unsafe { chip.chip.ioapic };
    ioapic.redirtbl[pin].bits = redirection;
    chip.chip.ioapic = ioapic;
    guest.vm.fd.set_irqchip(&chip).unwrap();
    let mut lapic = guest.fd().get_lapic().unwrap();
    arch::lapic::wire_local_interrupts(&mut lapic.regs);
    guest.fd().set_lapic(&lapic).unwrap();
}
