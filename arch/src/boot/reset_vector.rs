//! What stands where a PC's firmware would: code at F000:FFF0 that resets the machine.
//!
//! Linux on a hardware-reduced platform takes reset for EFI's business (`efi_reboot_required`, arch/x86/platform/efi/quirks.c) and
//! never tries the FADT's reset register; without EFI it goes on to the BIOS's entry in real mode (`machine_real_restart`,
//! arch/x86/kernel/reboot.c). So that entry has to be there.

use crate::layout::{RESET, RESET_VALUE};

/// Where it goes: the first instruction after a reset of an 8086, F000:FFF0.
pub const RESET_VECTOR: u64 = 0xf_fff0;

/// The code: `mov dx, RESET; mov al, RESET_VALUE; out dx, al`, and `hlt; jmp` for the moment until that has an effect.
pub fn code() -> [u8; 9] {
    let [port_low, port_high] = RESET.start.to_le_bytes();
    [
        0xba,
        port_low,
        port_high,
        0xb0,
        RESET_VALUE,
        0xee,
        0xf4,
        0xeb,
        0xfd,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::ACPI_TABLES;

    #[test]
    fn the_code_writes_the_reset_value_to_the_reset_port_and_halts_in_a_loop() {
        let [.., hlt, jmp, back] = code();
        assert_eq!(code()[..6], [0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee]);
        // The displacement counts from the end of the jump: three bytes back is the HLT.
        assert_eq!((hlt, jmp, back.cast_signed()), (0xf4, 0xeb, -3));
    }

    #[test]
    fn the_code_ends_before_the_first_megabyte_does_and_in_reserved_memory() {
        let end = RESET_VECTOR + code().len() as u64;
        assert!(end <= 1 << 20);
        assert!(ACPI_TABLES.contains(&RESET_VECTOR) && ACPI_TABLES.contains(&(end - 1)));
    }
}
