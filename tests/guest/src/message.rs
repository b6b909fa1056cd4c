//! MSI, aimed at vectors of the processor that the kernel counts one by one and does nothing for.

use std::io;

use crate::function::Function;

/// Those of KVM's posted interrupts (arch/x86/include/asm/irq_vectors.h of the kernel), with their lines of /proc/interrupts: only
/// hypervisors send them, and this guest is none. The first is a multiple of four, as a function's first of up to four has to be.
pub(crate) const VECTORS: [(u16, &str); 3] = [(0xf0, "NPI"), (0xf1, "PIW"), (0xf2, "PIN")];
/// Intel SDM 3A, 11.11.1: messages to the local APIC; the target's ID is in bits 12 to 19.
const MESSAGE: u32 = 0xfee0_0000;
const ENABLE: u16 = 1;
/// Multiple Message Enable.
const ENABLED: u16 = 7 << 4;

/// Writes the MSI capability; PCI Local Bus 3.0, 6.8.1. Disabled while it is written; then 2 to the power of `order` vectors are
/// enabled, the first with this number.
pub(crate) fn aim(function: &Function, processor: u32, first: u16, order: u16) -> io::Result<()> {
    silence(function)?;
    let msi = function.msi()?;
    let control = u16::from_le_bytes(function.read(msi + 2)?);
    let is_64_bit = control & (1 << 7) != 0;
    function.write(msi + 4, &(MESSAGE | processor << 12).to_le_bytes())?;
    if is_64_bit {
        function.write(msi + 8, &0_u32.to_le_bytes())?;
    }
    let data = msi + if is_64_bit { 12 } else { 8 };
    function.write(data, &first.to_le_bytes())?;
    function.write(msi + 2, &(control | order << 4 | ENABLE).to_le_bytes())
}

/// Disables it.
pub(crate) fn silence(function: &Function) -> io::Result<()> {
    let control = function.msi()? + 2;
    let now = u16::from_le_bytes(function.read(control)?);
    function.write(control, &(now & !(ENABLE | ENABLED)).to_le_bytes())
}
