//! The local APIC's wires as firmware leaves them: LINT0 to the 8259, LINT1 to NMI (Intel SDM vol. 3, "Local Vector Table"; MP
//! specification 1.4 §3.6.2.2, "Virtual Wire Mode").

use std::ffi::c_char;

/// Bytes of the register page that `KVM_GET_LAPIC` gives; each register is the first four of sixteen.
pub const REGISTERS_LEN: usize = 1024;

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;

const DELIVERY_MODE: u32 = 7 << 8;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_EXTINT: u32 = 7 << 8;
const MASKED: u32 = 1 << 16;

/// Connects the two local interrupt pins; the rest of the page stays as it is. The page has KVM's type, `kvm_lapic_state::regs`.
pub fn wire_local_interrupts(registers: &mut [c_char; REGISTERS_LEN]) {
    connect(registers, LVT_LINT0, DELIVER_EXTINT);
    connect(registers, LVT_LINT1, DELIVER_NMI);
}

fn connect(registers: &mut [c_char; REGISTERS_LEN], at: usize, mode: u32) {
    let register = &mut registers[at..at + 4];
    let mut old = [0; 4];
    for (byte, char) in old.iter_mut().zip(&*register) {
        [*byte] = char.to_le_bytes();
    }
    let new = u32::from_le_bytes(old) & !(DELIVERY_MODE | MASKED) | mode;
    for (char, byte) in register.iter_mut().zip(new.to_le_bytes()) {
        *char = c_char::from_le_bytes([byte]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lint0_is_extint_and_lint1_nmi_both_unmasked() {
        // As at power-on: masked, mode 0; and something that is not ours to change.
        let mut registers = [0; REGISTERS_LEN];
        registers[LVT_LINT0 + 2] = 1;
        registers[LVT_LINT1 + 2] = 1;
        registers[LVT_LINT1] = 0x55;
        registers[0x370] = -1;
        wire_local_interrupts(&mut registers);
        assert_eq!(registers[LVT_LINT0..LVT_LINT0 + 4], [0, 7, 0, 0]);
        assert_eq!(registers[LVT_LINT1..LVT_LINT1 + 4], [0x55, 4, 0, 0]);
        assert_eq!(registers[0x370], -1);
    }
}
