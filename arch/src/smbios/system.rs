//! The structures of a guest, in the order of their types.

use super::{SmbiosConfig, structure::Structure};
use crate::{layout::RESET_SEGMENT, ram::RamRange};

/// What the machine is called, unless somebody says otherwise.
const MANUFACTURER: &str = "Viaduct";
const PRODUCT: &str = "Virtual Machine";
/// Linux mistrusts the tables of firmware from before 2001, and of some years after, by this date (`dmi_get_bios_year` and its
/// callers).
const RELEASE_DATE: &str = "11/01/2026";

// Handles: the type in the upper byte.
const MEMORY_ARRAY: u16 = 0x1000;
const MEMORY_DEVICE: u16 = 0x1100;
const MEMORY_MAPPED: u16 = 0x1300;

/// No structure about errors is there.
const NO_ERRORS: u16 = 0xfffe;
const UNKNOWN: u16 = 0xffff;

pub(super) fn structures(config: &SmbiosConfig, ram: &[RamRange]) -> Vec<Structure> {
    let mut all = vec![firmware(), system(config), chassis(config)];
    if !config.oem_strings.is_empty() {
        all.push(oem_strings(&config.oem_strings));
    }
    let len_bytes = ram.iter().map(|range| range.len).sum();
    all.push(memory_array(len_bytes));
    all.push(memory_device(len_bytes));
    all.extend((MEMORY_MAPPED..).zip(ram).map(memory_mapped));
    // System boot: six reserved bytes, and no error.
    all.push(Structure::new(32, 0x2000).field(&[0; 7]));
    all.push(Structure::new(127, 0x7f00));
    all
}

/// BIOS information (type 0).
fn firmware() -> Structure {
    // Bit 3: nothing else is said of what it can do. Bit 4 of the second extension: this is a virtual machine.
    let (characteristics, extensions) = (1_u64 << 3, [0, 1 << 4]);
    Structure::new(0, 0)
        .text(MANUFACTURER)
        .text(env!("CARGO_PKG_VERSION"))
        .field(&RESET_SEGMENT.to_le_bytes())
        .text(RELEASE_DATE)
        // 64 KiB.
        .field(&[0])
        .field(&characteristics.to_le_bytes())
        .field(&extensions)
        // No release numbers, neither its own nor of an embedded controller.
        .field(&[0xff; 4])
}

/// System information (type 1).
fn system(config: &SmbiosConfig) -> Structure {
    // All zeros: there is none. A UUID that all guests share would be taken for each one's own (machine-id(5)).
    let uuid = mixed_endian(config.uuid.unwrap_or_default());
    Structure::new(1, 0x100)
        .text(or(&config.manufacturer, MANUFACTURER))
        .text(or(&config.product, PRODUCT))
        .text(&config.version)
        .text(&config.serial)
        .field(&uuid)
        // Woken by its power switch.
        .field(&[6])
        .text(&config.sku)
        .text(&config.family)
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// The first three fields of a UUID are little-endian.
fn mixed_endian(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    uuid
}

/// System enclosure (type 3).
fn chassis(config: &SmbiosConfig) -> Structure {
    Structure::new(3, 0x300)
        .text(or(&config.manufacturer, MANUFACTURER))
        // Its type: other.
        .field(&[1])
        .text(&config.version)
        .text(&config.serial)
        // No asset tag. Then boot-up, power supply and heat: safe; no known security.
        .field(&[0, 3, 3, 3, 2])
        // The maker's, height, power cords, contained elements, stock keeping unit: nothing.
        .field(&[0; 9])
}

/// OEM strings (type 11).
fn oem_strings(strings: &[String]) -> Structure {
    let count = u8::try_from(strings.len()).unwrap_or(u8::MAX);
    let structure = Structure::new(11, 0xb00).field(&[count]);
    strings.iter().fold(structure, |all, text| all.string(text))
}

/// Physical memory array (type 16): system memory, on no board, without error correction.
fn memory_array(len_bytes: u64) -> Structure {
    // In the field for arrays below 2 TiB: see the other one.
    let elsewhere = 0x8000_0000_u32;
    Structure::new(16, MEMORY_ARRAY)
        .field(&[1, 3, 3])
        .field(&elsewhere.to_le_bytes())
        .field(&NO_ERRORS.to_le_bytes())
        .field(&1_u16.to_le_bytes())
        .field(&len_bytes.to_le_bytes())
}

/// Memory device (type 17): one, with everything.
fn memory_device(len_bytes: u64) -> Structure {
    // In the field for devices below 32 GiB: see the other one.
    let elsewhere = 0x7fff_u16;
    let mib = u32::try_from(len_bytes >> 20).unwrap_or(i32::MAX.unsigned_abs());
    Structure::new(17, MEMORY_DEVICE)
        .field(&MEMORY_ARRAY.to_le_bytes())
        .field(&NO_ERRORS.to_le_bytes())
        .field(&UNKNOWN.to_le_bytes())
        .field(&UNKNOWN.to_le_bytes())
        .field(&elsewhere.to_le_bytes())
        // Of another form, in no set.
        .field(&[1, 0])
        .text("RAM 0")
        .text("")
        // RAM, of another detail.
        .field(&[7, 2, 0])
        // Speed, maker, serial number, asset tag, part number, rank: not known.
        .field(&[0; 7])
        .field(&mib.to_le_bytes())
        // Speed and voltages.
        .field(&[0; 8])
}

/// Memory array mapped address (type 19).
fn memory_mapped((handle, range): (u16, &RamRange)) -> Structure {
    // In both fields for addresses below 4 TiB: see the other ones.
    let elsewhere = [0xff; 8];
    Structure::new(19, handle)
        .field(&elsewhere)
        .field(&MEMORY_ARRAY.to_le_bytes())
        .field(&[1])
        .field(&range.guest.to_le_bytes())
        .field(&(range.end() - 1).to_le_bytes())
}
