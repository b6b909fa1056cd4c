//! The configuration space of an emulated function (PCI 3.0 §6.1).

use super::registers::*;
use crate::register_file::RegisterFile;

/// Who a function says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class code, 24 bits: base class, subclass, programming interface.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// 4096 bytes of registers, with the write masks of a type 0 header.
///
/// BARs and capabilities with a life of their own (MSI, MSI-X) are models beside it.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    registers: RegisterFile,
}

impl ConfigSpace {
    /// A function without BARs, interrupt pin or capabilities.
    pub fn new(identity: &Identity) -> Self {
        let mut registers = RegisterFile::new(CONFIG_LEN);
        registers.set(VENDOR_ID, &identity.vendor.to_le_bytes());
        registers.set(DEVICE_ID, &identity.device.to_le_bytes());
        registers.set(REVISION, &[identity.revision]);
        registers.set(CLASS, &identity.class.to_le_bytes()[..3]);
        registers.set(
            SUBSYSTEM_VENDOR_ID,
            &identity.subsystem_vendor.to_le_bytes(),
        );
        registers.set(SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        let command = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE;
        registers.allow(COMMAND, &command.to_le_bytes());
        registers.allow(CACHE_LINE, &[0xff]);
        registers.allow(INTERRUPT_LINE, &[0xff]);
        Self { registers }
    }

    /// The registers themselves, for a function that has more of them: masks, values, what clears by one.
    pub fn registers(&mut self) -> &mut RegisterFile {
        &mut self.registers
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.registers.word(COMMAND)
    }

    /// Reads as the guest does: any width, any offset.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        self.registers.read(usize::from(offset), data);
    }

    /// Writes as the guest does.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        self.registers.write(usize::from(offset), data);
    }

    /// Clears what software writes in a header without BARs, as power-on does.
    pub fn reset(&mut self) {
        self.registers.set(COMMAND, &[0; 2]);
        self.registers.set(CACHE_LINE, &[0]);
        self.registers.set(INTERRUPT_LINE, &[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::widths_agree;

    fn space() -> ConfigSpace {
        ConfigSpace::new(&Identity {
            vendor: 0x8086,
            device: 0x29c0,
            revision: 2,
            class: 0x06_00_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        })
    }

    #[test]
    fn the_identity_is_where_software_looks_for_it() {
        let mut space = space();
        assert_eq!(space.registers().dword(VENDOR_ID), 0x29c0_8086);
        assert_eq!(space.registers().dword(REVISION), 0x0600_0002);
        assert_eq!(space.registers().dword(SUBSYSTEM_VENDOR_ID), 0x1100_1af4);
    }

    #[test]
    fn only_what_a_header_lets_software_write_changes() {
        let mut space = space();
        for offset in (0..0x1000).step_by(4) {
            space.write(offset, &[0xff; 4]);
        }
        assert_eq!(space.command(), 0x0407);
        assert_eq!(space.registers().dword(VENDOR_ID), 0x29c0_8086);
        assert_eq!(space.registers().dword(INTERRUPT_LINE), 0x0000_00ff);
        space.reset();
        assert_eq!(space.command(), 0);
    }

    #[test]
    fn byte_word_and_dword_accesses_agree() {
        let with_status = || {
            let mut space = space();
            space.registers().set(STATUS, &[0xff; 2]);
            space
                .registers()
                .clear_by_one(STATUS, &0xf900_u16.to_le_bytes());
            space
        };
        let read = |space: &ConfigSpace, at: u64, data: &mut [u8]| {
            space.read(at.try_into().unwrap(), data);
        };
        let write = |space: &mut ConfigSpace, at: u64, data: &[u8]| {
            space.write(at.try_into().unwrap(), data);
        };
        widths_agree(with_status, (0..0x48, 4), read, write, 100_000);
        widths_agree(with_status, (0xff0..0x1000, 4), read, write, 1_000);
    }
}
