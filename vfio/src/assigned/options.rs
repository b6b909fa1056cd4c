//! How a function is assigned, as the person at the command line chose.

use std::path::PathBuf;

use super::rom::{self, RomFileError};

/// How a function is assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Lets the guest reach BARs without an exit where possible (`mmap=off` does not).
    pub mmap: bool,
    /// What the guest finds in the expansion ROM.
    pub rom: Rom,
    /// Places the device's legacy VGA memory and ports.
    pub vga: bool,
    /// Where the guest finds the MSI-X table.
    pub msix: MsixTable,
}

/// What the guest finds in the expansion ROM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Rom {
    /// What the device has, if it has one.
    #[default]
    On,
    /// None.
    Off,
    /// What is in this file.
    File(PathBuf),
}

/// Where the guest finds the MSI-X table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MsixTable {
    /// Where the device has it.
    #[default]
    InPlace,
    /// On pages of its own, so that the registers beside it are reached without an exit.
    Relocated,
}

impl Options {
    /// Looks at what of them can be wrong, before any device is touched.
    pub fn check(&self) -> Result<(), RomFileError> {
        match &self.rom {
            Rom::On | Rom::Off => Ok(()),
            Rom::File(path) => rom::read_file(path).map(|bytes| rom::doubt(path, &bytes)),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mmap: true,
            rom: Rom::default(),
            vga: false,
            msix: MsixTable::default(),
        }
    }
}
