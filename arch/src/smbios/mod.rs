//! The SMBIOS tables: what the machine calls itself, and strings that whoever started it has for the guest (DMTF DSP0134, version
//! 3.0).
//!
//! Linux looks for the entry point in the BIOS area where no EFI says where it is (`dmi_scan_machine` in
//! drivers/firmware/dmi_scan.c). Left out: processors, caches and slots (types 4, 7 and 9), since CPUID and PCI say it and nobody
//! reads it here.

mod structure;
mod system;
#[cfg(test)]
mod tests;

use self::structure::Structure;
use crate::{
    layout::{SMBIOS_ENTRY, SMBIOS_TABLE},
    ram::RamRange,
};

/// The version of the specification that the tables follow: major, minor, and of its document.
const VERSION: [u8; 3] = [3, 0, 0];
/// Length of the 64-bit entry point.
const ENTRY_LEN: u8 = 24;

/// Strings a structure can have: each is named by one byte, and 0 is none.
const MOST_STRINGS: usize = 255;

/// What a person can choose of it. What is empty is left out; an OEM string is not empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SmbiosConfig {
    /// Who makes the machine; us, if empty.
    pub manufacturer: String,
    /// What it is; a virtual machine, if empty.
    pub product: String,
    /// Which version of it.
    pub version: String,
    /// Its serial number.
    pub serial: String,
    /// Its stock keeping unit.
    pub sku: String,
    /// What family of products it is of.
    pub family: String,
    /// Its UUID, as it is written.
    pub uuid: Option<[u8; 16]>,
    /// Strings of the maker's, for the guest to find (type 11).
    pub oem_strings: Vec<String>,
}

/// The tables cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SmbiosError {
    /// There is no room.
    #[error(
        "strings and credentials take {len} bytes of the SMBIOS table, which has room for {room}\n  \
         give the guest what is large on a disk"
    )]
    TooLarge {
        /// What the table would have.
        len: usize,
        /// What it may have.
        room: usize,
    },
    /// More than can be numbered.
    #[error(
        "{0} strings and credentials are more than the {MOST_STRINGS} that SMBIOS can number\n  \
         give the guest several in one"
    )]
    TooMany(usize),
}

/// The tables of a guest with `ram`: what goes where.
pub fn tables(config: &SmbiosConfig, ram: &[RamRange]) -> Result<Vec<(u64, Vec<u8>)>, SmbiosError> {
    let strings = config.oem_strings.len();
    if strings > MOST_STRINGS {
        return Err(SmbiosError::TooMany(strings));
    }
    let structures = system::structures(config, ram);
    let table: Vec<u8> = structures.iter().flat_map(Structure::bytes).collect();
    let too_large = |room| SmbiosError::TooLarge {
        len: table.len(),
        room,
    };
    let room = usize::try_from(SMBIOS_TABLE.end - SMBIOS_TABLE.start).unwrap_or(0);
    let len = u32::try_from(table.len()).map_err(|_| too_large(room))?;
    if table.len() > room {
        return Err(too_large(room));
    }
    let entry = entry_point(len).to_vec();
    Ok(vec![(SMBIOS_ENTRY, entry), (SMBIOS_TABLE.start, table)])
}

/// The entry point for a table of `len` bytes.
fn entry_point(len: u32) -> [u8; ENTRY_LEN as usize] {
    let mut entry = [0; ENTRY_LEN as usize];
    entry[..5].copy_from_slice(b"_SM3_");
    entry[6] = ENTRY_LEN;
    entry[7..10].copy_from_slice(&VERSION);
    // The revision of the entry point itself.
    entry[10] = 1;
    entry[12..16].copy_from_slice(&len.to_le_bytes());
    entry[16..24].copy_from_slice(&SMBIOS_TABLE.start.to_le_bytes());
    let sum = entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    entry[5] = sum.wrapping_neg();
    entry
}
