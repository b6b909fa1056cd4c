//! Configuration space as far as the kernel shows it: all of it to root, 64 bytes to others (`pci_read_config` in
//! drivers/pci/pci-sysfs.c).

use std::{fs::File, io::Read, path::Path};

use devices::pci::{
    capabilities,
    registers::{
        COMMAND, EXTENDED, HEADER_END, HEADER_MULTIFUNCTION, HEADER_TYPE, STATUS,
        STATUS_CAPABILITIES,
    },
};

use super::Known;

/// How much of a function's configuration space could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigAccess {
    /// All that matters.
    Complete,
    /// The header only: capabilities are for root.
    Header,
    /// It answers with nothing but ones: it is off, or gone, or hangs.
    Silent,
    /// Nothing.
    Unreadable,
}

/// The beginning of a function's configuration space. What is in it comes from the device, and a device can lie.
#[derive(Debug, Clone, Default)]
pub(in crate::host) struct ConfigSpace {
    bytes: Vec<u8>,
}

impl ConfigSpace {
    /// The 256 bytes that conventional functions have. The 3840 behind them would cost a millisecond of a processor for
    /// each function, since each dword is a transaction on the bus.
    pub(super) fn conventional(dir: &Path) -> Self {
        Self::read(dir, EXTENDED)
    }

    /// The header.
    pub(in crate::host) fn header(dir: &Path) -> Self {
        Self::read(dir, HEADER_END)
    }

    fn read(dir: &Path, len: usize) -> Self {
        let mut bytes = Vec::with_capacity(len);
        let read =
            File::open(dir.join("config")).and_then(|f| f.take(len as u64).read_to_end(&mut bytes));
        if let Err(error) = read {
            log::debug!("{}: no configuration space: {error}", dir.display());
        }
        Self { bytes }
    }

    pub(super) fn access(&self) -> ConfigAccess {
        let header = self.bytes.get(..HEADER_END);
        match header {
            None => ConfigAccess::Unreadable,
            // Not the IDs alone: those of virtual functions are all ones.
            Some(header) if header.iter().all(|&byte| byte == 0xff) => ConfigAccess::Silent,
            Some(_) if self.bytes.len() < EXTENDED => ConfigAccess::Header,
            Some(_) => ConfigAccess::Complete,
        }
    }

    /// A byte of the header.
    pub(super) fn byte(&self, at: usize) -> Known<u8> {
        match (self.access(), self.bytes.get(at)) {
            (ConfigAccess::Complete | ConfigAccess::Header, Some(&byte)) => Known::Known(byte),
            _ => Known::Unknown,
        }
    }

    fn word(&self, at: usize) -> u16 {
        let bytes = self.bytes.get(at..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
    }

    /// The command register; 0 if it is not known.
    pub(super) fn command(&self) -> u16 {
        self.byte(COMMAND)
            .map(|_| self.word(COMMAND))
            .known()
            .unwrap_or(0)
    }

    /// Layout of the header, without the multifunction bit.
    pub(in crate::host) fn header_type(&self) -> Option<u8> {
        let byte = self.byte(HEADER_TYPE).known()?;
        Some(byte & !HEADER_MULTIFUNCTION)
    }

    /// The bytes of the first capability `id`, if there is one.
    pub(super) fn capability(&self, id: u8) -> Known<Option<&[u8]>> {
        match self.access() {
            ConfigAccess::Complete => {
                let at = capabilities::find(&self.bytes, id);
                Known::Known(at.and_then(|at| self.bytes.get(at..)))
            }
            ConfigAccess::Header if self.word(STATUS) & STATUS_CAPABILITIES == 0 => {
                Known::Known(None)
            }
            _ => Known::Unknown,
        }
    }
}

#[cfg(test)]
impl From<Vec<u8>> for ConfigSpace {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(len: usize, capabilities: bool) -> ConfigSpace {
        let mut bytes = vec![0; len];
        bytes[STATUS] = if capabilities { 0x10 } else { 0 };
        bytes.into()
    }

    #[test]
    fn without_the_right_to_read_them_capabilities_are_unknown() {
        assert_eq!(space(64, true).capability(5), Known::Unknown);
        assert_eq!(space(64, true).access(), ConfigAccess::Header);
        assert_eq!(ConfigSpace::default().capability(5), Known::Unknown);
    }

    #[test]
    fn that_there_are_none_is_in_the_header() {
        assert_eq!(space(64, false).capability(5), Known::Known(None));
        assert_eq!(space(256, true).capability(5), Known::Known(None));
    }

    #[test]
    fn a_function_that_answers_with_ones_is_no_source() {
        let silent = ConfigSpace::from(vec![0xff; 256]);
        assert_eq!(silent.access(), ConfigAccess::Silent);
        assert_eq!(silent.capability(5), Known::Unknown);
        assert_eq!(silent.header_type(), None);
        assert_eq!(silent.command(), 0);
        // A virtual function has no IDs of its own.
        let mut function = vec![0; 256];
        function[..4].fill(0xff);
        assert_eq!(ConfigSpace::from(function).access(), ConfigAccess::Complete);
    }
}
