//! The local APIC's wires as firmware leaves them: LINT1 to NMI, LINT0 masked (Intel SDM vol. 3, "Local Vector Table").
//!
//! LINT0 is not wired to the 8259 as on a PC ("virtual wire mode"): hardware-reduced ACPI says that there is none, so Linux neither
//! sets KVM's up nor masks it, and an edge on an ISA input would arrive as an exception vector.

use std::ffi::c_char;

/// Bytes of the register page that `KVM_GET_LAPIC` gives; each register is the first four of sixteen.
pub const REGISTERS_LEN: usize = 1024;

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;

const DELIVERY_MODE: u32 = 7 << 8;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_EXTINT: u32 = 7 << 8;
const MASKED: u32 = 1 << 16;

/// Sets the two local interrupt pins up; the rest of the page stays as it is. The page has KVM's type, `kvm_lapic_state::regs`.
pub fn wire_local_interrupts(registers: &mut [c_char; REGISTERS_LEN]) {
    set(registers, LVT_LINT0, DELIVER_EXTINT | MASKED);
    set(registers, LVT_LINT1, DELIVER_NMI);
}

/// Writes delivery mode and mask; the other fields stay.
fn set(registers: &mut [c_char; REGISTERS_LEN], at: usize, value: u32) {
    let register = &mut registers[at..at + 4];
    let mut old = [0; 4];
    for (byte, char) in old.iter_mut().zip(&*register) {
        [*byte] = char.to_le_bytes();
    }
    let new = u32::from_le_bytes(old) & !(DELIVERY_MODE | MASKED) | value;
    for (char, byte) in register.iter_mut().zip(new.to_le_bytes()) {
        *char = c_char::from_le_bytes([byte]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lint0_is_masked_whatever_it_was_and_lint1_is_nmi() {
        // KVM starts with LINT0 unmasked (a quirk that is on by default); and something that is not ours to change.
        let mut registers = [0; REGISTERS_LEN];
        registers[LVT_LINT1 + 1] = 7;
        registers[LVT_LINT1 + 2] = 1;
        registers[LVT_LINT1] = 0x55;
        registers[0x370] = -1;
        wire_local_interrupts(&mut registers);
        assert_eq!(registers[LVT_LINT0..LVT_LINT0 + 4], [0, 7, 1, 0]);
        assert_eq!(registers[LVT_LINT1..LVT_LINT1 + 4], [0x55, 4, 0, 0]);
        assert_eq!(registers[0x370], -1);
    }
}
