//! What is in the boot CPU's registers at the guest's first instruction.
//!
//! Linux: Documentation/arch/x86/boot.rst, "64-bit Boot Protocol". PVH: docs/misc/pvh.pandoc of Xen, "x86/HVM direct boot ABI".

use crate::{
    boot::{
        gdt::{CODE32, CODE64, DATA, GDT_LEN, GDT_LIMIT, Segment, TSS, table},
        paging,
    },
    layout::{BOOT_STACK, GDT, PVH_START_INFO, ZERO_PAGE},
};

/// CR0: protected mode, the FPU is a 387 or later, and paging.
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension, without which there is no long mode.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled, and active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: the bit that is always one. Interrupts are off.
const RFLAGS_FIXED: u64 = 1 << 1;

/// How the guest is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Linux's 64-bit entry: long mode, RSI points to the zero page.
    Linux64,
    /// PVH: 32-bit protected mode without paging, EBX points to the start info.
    Pvh32,
}

/// The boot CPU's state where it differs from all-zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootRegisters {
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Flags.
    pub rflags: u64,
    /// The zero page for Linux.
    pub rsi: u64,
    /// The start info for PVH.
    pub rbx: u64,
    /// CS.
    pub code: Segment,
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    /// TR.
    pub task: Segment,
    /// Base of the descriptor table.
    pub gdt_base: u64,
    /// Its last byte, as GDTR has it. The interrupt descriptor table's base and limit are 0.
    pub gdt_limit: u16,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// The EFER MSR, which KVM sets with the segment registers.
    pub efer: u64,
}

impl BootRegisters {
    /// The state for entering at `entry` by `protocol`.
    pub fn new(protocol: Protocol, entry: u64) -> Self {
        let pvh = Self {
            rip: entry,
            rsp: BOOT_STACK,
            rflags: RFLAGS_FIXED,
            rsi: 0,
            rbx: PVH_START_INFO.start,
            code: CODE32,
            data: DATA,
            task: TSS,
            gdt_base: GDT,
            gdt_limit: GDT_LIMIT,
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
        };
        match protocol {
            Protocol::Pvh32 => pvh,
            Protocol::Linux64 => Self {
                rsi: ZERO_PAGE,
                rbx: 0,
                code: CODE64,
                cr0: pvh.cr0 | CR0_PG,
                cr3: paging::ROOT,
                cr4: CR4_PAE,
                efer: EFER_LME | EFER_LMA,
                ..pvh
            },
        }
    }

    /// The descriptor table that goes with them, to be written at `gdt_base`.
    pub fn gdt(&self) -> [u8; GDT_LEN] {
        table(self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_is_entered_in_long_mode_with_the_zero_page_in_rsi() {
        let registers = BootRegisters::new(Protocol::Linux64, 0x100_0200);
        assert_eq!((registers.rip, registers.rsi), (0x100_0200, ZERO_PAGE));
        assert_eq!(registers.cr0, 0x8000_0011);
        assert_eq!((registers.cr4, registers.efer), (0x20, 0x500));
        assert!(registers.code.l && !registers.code.db);
        assert_eq!(registers.code.selector, 0x10);
        assert_eq!(registers.data.selector, 0x18);
    }

    #[test]
    fn the_descriptor_table_has_the_code_segment_that_cs_holds() {
        for protocol in [Protocol::Linux64, Protocol::Pvh32] {
            let registers = BootRegisters::new(protocol, 0x100_0000);
            let descriptors = registers.gdt();
            let at = usize::from(registers.code.selector);
            // Bits 53 and 54 of a descriptor: L and D/B.
            let flags = descriptors[at + 6] >> 5 & 0b11;
            let wanted = u8::from(registers.code.l) | u8::from(registers.code.db) << 1;
            assert_eq!(flags, wanted, "{protocol:?}");
            assert_eq!(descriptors.len(), usize::from(registers.gdt_limit) + 1);
        }
    }

    #[test]
    fn pvh_is_entered_in_protected_mode_without_paging_and_the_start_info_in_ebx() {
        let registers = BootRegisters::new(Protocol::Pvh32, 0x100_0000);
        assert_eq!(registers.rbx, PVH_START_INFO.start);
        assert_eq!((registers.cr0, registers.cr4, registers.efer), (0x11, 0, 0));
        assert!(registers.code.db && !registers.code.l);
        // Interrupts, trap and virtual-8086 mode are off.
        assert_eq!(registers.rflags & (1 << 8 | 1 << 9 | 1 << 17), 0);
        // Bit 1 is always set (Intel SDM vol. 1, "EFLAGS Register").
        assert_eq!(registers.rflags & 1 << 1, 2);
    }
}
