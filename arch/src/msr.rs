//! Model-specific registers as firmware would leave them.
//!
//! Intel SDM vol. 3, "Memory Type Range Registers", and vol. 4; `asm/msr-index.h` of Linux 6.12 has the same numbers.

/// Time stamp counter.
pub const IA32_TSC: u32 = 0x10;
/// Selector of the kernel's code for SYSENTER.
pub const IA32_SYSENTER_CS: u32 = 0x174;
/// Its stack.
pub const IA32_SYSENTER_ESP: u32 = 0x175;
/// Its entry point.
pub const IA32_SYSENTER_EIP: u32 = 0x176;
/// Miscellaneous processor features.
pub const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Memory type of what no range register covers.
pub const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Selectors for SYSCALL and SYSRET.
pub const STAR: u32 = 0xc000_0081;
/// SYSCALL's 64-bit entry point.
pub const LSTAR: u32 = 0xc000_0082;
/// SYSCALL's entry point from 32-bit code.
pub const CSTAR: u32 = 0xc000_0083;
/// Flags that SYSCALL clears.
pub const SYSCALL_MASK: u32 = 0xc000_0084;
/// What SWAPGS exchanges GS's base with.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// `IA32_MISC_ENABLE`: REP MOVS and STOS by whole cache lines; Linux forgets about ERMS without it.
const FAST_STRINGS: u64 = 1 << 0;
/// `IA32_MISC_ENABLE`: no branch trace store, no precise event sampling. KVM sets both at power-on.
const BTS_UNAVAILABLE: u64 = 1 << 11;
const PEBS_UNAVAILABLE: u64 = 1 << 12;
/// `IA32_MTRR_DEF_TYPE`: range registers in force, write-back where they say nothing.
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// The registers that every vCPU starts with, and goes back to at a reset.
///
/// Memory is write-back by default, with no variable ranges. Enabled at all, because with MTRRs off all memory is uncacheable, and
/// KVM takes the guest's word for it when an assigned device's DMA does not snoop. No ranges for the hole, because nothing in it is
/// RAM: KVM maps BARs uncacheable or as the guest's page tables say, and Linux sets those by PAT.
pub fn boot_msrs() -> Vec<(u32, u64)> {
    let zero = [
        IA32_TSC,
        IA32_SYSENTER_CS,
        IA32_SYSENTER_ESP,
        IA32_SYSENTER_EIP,
        STAR,
        LSTAR,
        CSTAR,
        SYSCALL_MASK,
        KERNEL_GS_BASE,
    ];
    let mut msrs = zero.map(|msr| (msr, 0)).to_vec();
    msrs.extend([
        (
            IA32_MISC_ENABLE,
            FAST_STRINGS | BTS_UNAVAILABLE | PEBS_UNAVAILABLE,
        ),
        (IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    ]);
    msrs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_write_back_unless_something_says_otherwise() {
        assert!(boot_msrs().contains(&(IA32_MTRR_DEF_TYPE, 0x806)));
    }

    #[test]
    fn strings_are_fast_and_neither_branch_traces_nor_event_samples_are_promised() {
        // Intel SDM vol. 4, IA32_MISC_ENABLE: bits 0, 11 and 12.
        assert!(boot_msrs().contains(&(IA32_MISC_ENABLE, 0x1801)));
    }

    #[test]
    fn no_register_is_set_twice() {
        let mut numbers: Vec<_> = boot_msrs().iter().map(|msr| msr.0).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), boot_msrs().len());
    }
}
