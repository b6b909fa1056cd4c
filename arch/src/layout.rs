//! The guest's world, once: every address, port and interrupt that the machine, the firmware tables and the devices share.
//!
//! The shape is the PC's (Intel Q35 where a chip has to be named): RAM from 0, a hole below 4 GiB for everything that is not RAM,
//! more RAM above. Nothing here depends on the host but [`high_window`].

use std::ops::Range;

// ---- Memory ----

/// Where RAM below 4 GiB has to end, and where it goes on.
pub const RAM_HOLE: Range<u64> = 0xc000_0000..0x1_0000_0000;

/// 32-bit memory BARs. Starts at a multiple of 1 GiB: a 512 MiB BAR fits in two ways.
pub const PCI_MMIO32: Range<u64> = 0xc000_0000..0xfeb0_0000;

/// Enhanced configuration access (PCIe 6.0 §7.2.2): 4 KiB a function, 1 MiB a bus; one bus.
pub const ECAM: Range<u64> = 0xfeb0_0000..0xfec0_0000;
/// The last bus that ECAM reaches.
pub const ECAM_LAST_BUS: u8 = 0;

/// KVM's I/O APIC; the address is KVM's choice.
pub const IOAPIC: Range<u64> = 0xfec0_0000..0xfec0_1000;
/// The local APIC's page, also where message-signalled interrupts are written.
pub const LAPIC: Range<u64> = 0xfee0_0000..0xfef0_0000;

/// One page for `KVM_SET_IDENTITY_MAP_ADDR`: Intel hosts without unrestricted guest run real mode from it.
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages for `KVM_SET_TSS_ADDR`, right behind it.
pub const KVM_TSS: u64 = KVM_IDENTITY_MAP + 0x1000;

/// The legacy VGA frame buffer. RAM as well, unless a VGA card is placed over it.
pub const VGA_MEMORY: Range<u64> = 0xa_0000..0xc_0000;

/// Where firmware leaves the code of the boot display's ROM, and where Linux looks for it (`pci_fixup_video` in
/// arch/x86/pci/fixup.c).
pub const VGA_ROM: Range<u64> = 0xc_0000..0xe_0000;

/// Alignment of [`high_window`] and of the big BARs in it: the largest page there is.
const HIGH_WINDOW_ALIGN: u64 = 1 << 30;

/// Guest-physical addresses that four levels of nested page tables can translate, on either vendor's hosts. A CPU may claim 52 bits
/// while its KVM walks only four levels.
const NESTED_PAGING_BITS: u32 = 48;

/// Where 64-bit BARs go: above RAM (which ends at `ram_end`), on a 1 GiB boundary, as far up as the guest can address with
/// `phys_bits`. Empty when RAM leaves no room.
pub fn high_window(ram_end: u64, phys_bits: u8) -> Range<u64> {
    let end = 1 << u32::from(phys_bits).min(NESTED_PAGING_BITS);
    let start = ram_end
        .max(RAM_HOLE.end)
        .checked_next_multiple_of(HIGH_WINDOW_ALIGN)
        .unwrap_or(end);
    start.min(end)..end
}

// ---- I/O ports ----

/// The keyboard controller's command and status register, of which only the reset command is there.
pub const KEYBOARD: Range<u16> = 0x64..0x65;
/// CMOS RTC: index at the first port, data at the second.
pub const RTC: Range<u16> = 0x70..0x72;
/// The legacy VGA registers of monochrome and of colour adapters, if a VGA card is placed.
pub const VGA_PORTS: [Range<u16>; 2] = [0x3b0..0x3bc, 0x3c0..0x3e0];
/// COM1, a 16550.
pub const COM1: Range<u16> = 0x3f8..0x400;
/// The pvpanic device's event port, where QEMU has it.
pub const PVPANIC: Range<u16> = 0x505..0x506;
/// The firmware configuration device, where QEMU has it: selector, data, and from the fifth port on the address of a transfer.
pub const FW_CFG: Range<u16> = 0x510..0x51c;
/// `SLEEP_CONTROL_REG`, then `SLEEP_STATUS_REG` (ACPI 6.5 §4.8.3.7), a byte each.
pub const SLEEP_REGISTERS: Range<u16> = 0x600..0x602;
/// What raised [`GED_GSI`]: one byte of [`GED_POWER_BUTTON`] and, later, others. Reading it clears it.
pub const GED: Range<u16> = 0x602..0x603;
/// The registers above and room for more of the kind (hot-plug), all claimed by one ACPI device.
pub const POWER_PORTS: Range<u16> = 0x600..0x620;
/// PCI configuration address and data, a dword each (PCI 3.0 §3.2.2.3.2). [`RESET`] is the second byte of the address.
pub const PCI_CONFIG: Range<u16> = 0xcf8..0xd00;
/// The reset control register of Intel's chipsets, one byte.
pub const RESET: Range<u16> = 0xcf9..0xcfa;
/// I/O BARs. Linux assigns nothing below 0x1000 to PCI either.
pub const PCI_IO: Range<u32> = 0x1000..0x1_0000;

/// Written to [`RESET`]: full reset of the CPUs.
pub const RESET_VALUE: u8 = 0x06;
/// `SLP_TYP` of soft-off in the sleep control register; ours to choose, the DSDT's `_S5` says it.
pub const SLEEP_TYPE_S5: u8 = 5;
/// Bit of [`GED`]: the power button was pressed.
pub const GED_POWER_BUTTON: u8 = 1 << 0;

// ---- Interrupts ----

/// Inputs of KVM's I/O APIC.
pub const IOAPIC_PINS: u32 = 24;
/// COM1, rising edge.
pub const COM1_GSI: u32 = 4;
/// The generic event device (power button), rising edge.
pub const GED_GSI: u32 = 9;
/// First input that PCI's INTx pins use; they are level-triggered, active low.
pub const INTX_FIRST_GSI: u32 = 16;
/// How many inputs they share.
pub const INTX_GSIS: u32 = 8;

/// The I/O APIC input of a function's INTx `pin` (1 is INTA, as in the interrupt pin register) in slot `device` of bus 0.
///
/// The swizzle of PCI-to-PCI bridges (PCI bridge 1.2 §9.1), over the eight inputs that no ISA device has.
pub fn intx_gsi(device: u8, pin: u8) -> u32 {
    INTX_FIRST_GSI + (u32::from(device) + u32::from(pin.saturating_sub(1))) % INTX_GSIS
}

// ---- What the VMM leaves in RAM for the guest's first instruction ----

/// The boot CPU's segment descriptors.
pub const GDT: u64 = 0x500;
/// PVH's start info, its modules and memory map.
pub const PVH_START_INFO: Range<u64> = 0x6000..0x7000;
/// Linux's `boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// Top of a stack that nothing needs but a stray push.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables: one level 4, one level 3, four level 2.
pub const PAGE_TABLES: Range<u64> = 0x9000..0xf000;
/// Room for the command line and its NUL, in bytes.
pub const COMMAND_LINE_ROOM: usize = 0x1_0000;
/// The command line.
pub const COMMAND_LINE: Range<u64> = 0x2_0000..0x2_0000 + COMMAND_LINE_ROOM as u64;
/// First byte of the extended BIOS data area: conventional memory ends here.
pub const EBDA: u64 = 0x9_fc00;
/// The ACPI tables, in the area where the RSDP may be searched for (ACPI 6.5 §5.2.5.1).
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0x10_0000;
/// The SMBIOS structures, behind the ACPI tables.
pub const SMBIOS_TABLE: Range<u64> = 0xe_8000..0xf_0000;
/// A copy of the OpRegion of Intel's graphics: behind the tables, before the code at the reset vector.
pub const IGD_OPREGION: Range<u32> = 0xf_0000..0xf_f000;
/// The SMBIOS entry point, in the area where it may be searched for, behind the OpRegion.
pub const SMBIOS_ENTRY: u64 = 0xf_f000;
/// The segment of the code at the reset vector.
pub const RESET_SEGMENT: u16 = 0xf000;
/// The RSDP.
pub const RSDP: u64 = ACPI_TABLES.start;
/// First byte above what a PC keeps for its firmware; kernels and initrds go from here.
pub const HIGH_RAM: u64 = 0x10_0000;

/// The most CPUs that xAPIC IDs can name: 255 is the broadcast, and one more is left for the I/O APIC.
pub const MAX_CPUS: u32 = 254;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::reset_vector::RESET_VECTOR;

    #[test]
    fn nothing_in_the_hole_overlaps() {
        let parts = [
            PCI_MMIO32,
            ECAM,
            IOAPIC,
            LAPIC,
            KVM_IDENTITY_MAP..KVM_IDENTITY_MAP + 0x1000,
            KVM_TSS..KVM_TSS + 0x3000,
        ];
        assert!(parts.windows(2).all(|two| two[0].end <= two[1].start));
        assert!(parts[0].start >= RAM_HOLE.start && parts[5].end <= RAM_HOLE.end);
    }

    #[test]
    fn boot_structures_do_not_overlap() {
        let parts = [
            GDT..GDT + 0x100,
            PVH_START_INFO,
            ZERO_PAGE..ZERO_PAGE + 0x1000,
            BOOT_STACK - 0x100..BOOT_STACK,
            PAGE_TABLES,
            COMMAND_LINE,
            EBDA..VGA_MEMORY.start,
            VGA_MEMORY,
            VGA_ROM,
            ACPI_TABLES,
            HIGH_RAM..HIGH_RAM + 1,
        ];
        assert!(parts.windows(2).all(|two| two[0].end <= two[1].start));
    }

    #[test]
    fn the_command_line_has_all_the_room_that_is_promised() {
        assert_eq!(COMMAND_LINE.end - COMMAND_LINE.start, 0x1_0000);
        assert_eq!(COMMAND_LINE_ROOM, 0x1_0000);
    }

    #[test]
    fn the_firmwares_area_is_shared_without_an_overlap() {
        let opregion = u64::from(IGD_OPREGION.start)..u64::from(IGD_OPREGION.end);
        let parts = [
            RSDP..RSDP + 0x1000,
            SMBIOS_TABLE,
            opregion,
            SMBIOS_ENTRY..SMBIOS_ENTRY + 0x20,
            RESET_VECTOR..ACPI_TABLES.end,
        ];
        assert!(parts.windows(2).all(|two| two[0].end <= two[1].start));
        assert!(ACPI_TABLES.start <= parts[0].start && SMBIOS_ENTRY.is_multiple_of(16));
    }

    #[test]
    fn the_four_pins_of_a_slot_have_four_inputs_above_the_isa_ones() {
        for device in 0..32 {
            let mut gsis: Vec<_> = (1..=4).map(|pin| intx_gsi(device, pin)).collect();
            assert!(gsis.iter().all(|gsi| (16..24).contains(gsi)));
            gsis.sort_unstable();
            gsis.dedup();
            assert_eq!(gsis.len(), 4);
        }
        assert_ne!(intx_gsi(3, 1), intx_gsi(4, 1));
    }

    #[test]
    fn the_high_window_is_above_ram_and_below_the_last_address() {
        assert_eq!(high_window(0x2000_0000, 40), 0x1_0000_0000..1 << 40);
        assert_eq!(high_window(0x1_2000_0000, 39), 0x1_4000_0000..1 << 39);
        assert_eq!(high_window(0, 52).end, 1 << 48);
        assert!(high_window(1 << 36, 36).is_empty());
        assert!(high_window(u64::MAX, 40).is_empty());
        assert!(high_window(0, 32).is_empty());
    }
}
