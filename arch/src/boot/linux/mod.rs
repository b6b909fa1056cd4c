//! A Linux bzImage and the zero page it is started with: Documentation/arch/x86/boot.rst ("64-bit Boot Protocol"), zero-page.rst
//! and `asm/bootparam.h` of Linux 6.12.
//!
//! The kernel is entered at its 64-bit entry point: no real-mode code runs. Left out: setup_data, EFI.

mod header;
mod screen;

use header::ENTRY64;
pub use header::{CommandLineTooLong, HEAD_LEN, ImageError, SetupHeader};
pub use screen::{SCREEN_INFO_LEN, Screen};

use crate::{
    boot::placement::{self, PlaceError, Placement},
    e820,
    layout::{COMMAND_LINE, RSDP},
    ram::RamRange,
};

/// Bytes of `boot_params`.
pub const ZERO_PAGE_LEN: usize = 4096;

/// Fields of `boot_params` and of the setup header in it, by their offset.
mod field {
    pub(super) const ACPI_RSDP_ADDR: usize = 0x070;
    pub(super) const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    pub(super) const EXT_RAMDISK_SIZE: usize = 0x0c4;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const SETUP_HEADER: usize = 0x1f1;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// `E820_MAX_ENTRIES_ZEROPAGE`.
const E820_MAX: usize = 128;
const E820_ENTRY_LEN: usize = 20;

/// Places the kernel and an initrd of `initrd_len` bytes (0: none) in RAM.
pub fn place(
    header: &SetupHeader,
    ram: &[RamRange],
    initrd_len: u64,
) -> Result<Placement, PlaceError> {
    let kernel = header.kernel(ram)?;
    let initrd = match placement::initrd(ram, &kernel, initrd_len, header.initrd_ceiling()) {
        // initrd_addr_max binds loaders that give 32-bit addresses.
        Err(PlaceError::InitrdUnreachable { .. }) if header.takes_high_initrd() => {
            placement::initrd(ram, &kernel, initrd_len, u64::MAX)
        }
        low => low,
    }?;
    Ok(Placement {
        entry: kernel.start + ENTRY64,
        kernel,
        initrd,
    })
}

/// The zero page of a kernel that is placed so, to be written at [`crate::layout::ZERO_PAGE`]. The command line is at
/// [`COMMAND_LINE`], the RSDP at [`RSDP`]; `screen` is a display that shows something already.
pub fn zero_page(
    header: &SetupHeader,
    placement: &Placement,
    map: &[e820::Entry],
    screen: Option<&Screen>,
) -> Box<[u8; ZERO_PAGE_LEN]> {
    let mut page = Box::new([0; ZERO_PAGE_LEN]);
    // Only the header is taken from the file: the rest of its first sector is not boot_params (the sentinel in it tells Linux of
    // loaders that copy it all).
    if let Some(screen) = screen {
        put(&mut page[..], 0, screen.info());
    }
    put(&mut page[..], field::SETUP_HEADER, header.raw());
    page[field::TYPE_OF_LOADER] = LOADER_UNDEFINED;
    put(&mut page[..], field::CMD_LINE_PTR, &low(COMMAND_LINE.start));
    put(&mut page[..], field::ACPI_RSDP_ADDR, &RSDP.to_le_bytes());
    // Without an initrd, too: the file's header may name one.
    let initrd = placement.initrd.clone().unwrap_or(0..0);
    let len = initrd.end - initrd.start;
    put(&mut page[..], field::RAMDISK_IMAGE, &low(initrd.start));
    put(&mut page[..], field::RAMDISK_SIZE, &low(len));
    put(&mut page[..], field::EXT_RAMDISK_IMAGE, &high(initrd.start));
    put(&mut page[..], field::EXT_RAMDISK_SIZE, &high(len));
    put_map(&mut page, map);
    page
}

fn put_map(page: &mut [u8; ZERO_PAGE_LEN], map: &[e820::Entry]) {
    // Beyond 128 the entries would go into setup_data; a RAM plan has fewer pieces than that.
    assert!(map.len() <= E820_MAX, "{} ranges of memory", map.len());
    page[field::E820_ENTRIES] = map.len().to_le_bytes()[0];
    for (i, entry) in map.iter().enumerate() {
        let at = field::E820_TABLE + i * E820_ENTRY_LEN;
        put(page, at, &entry.start.to_le_bytes());
        put(page, at + 8, &entry.len.to_le_bytes());
        put(page, at + 16, &(entry.kind as u32).to_le_bytes());
    }
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

fn low(address: u64) -> [u8; 4] {
    ((address & 0xffff_ffff) as u32).to_le_bytes()
}

fn high(address: u64) -> [u8; 4] {
    ((address >> 32) as u32).to_le_bytes()
}

#[cfg(test)]
mod tests;
