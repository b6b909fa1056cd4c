//! An ELF vmlinux started through PVH: Xen's docs/misc/pvh.pandoc and include/public/arch-x86/hvm/start_info.h, version 1.
//!
//! One module at most (the initrd, which is what Linux takes the first for), no flags.

mod image;

pub use image::{HEAD_LEN, Image, ImageError, LoadSegment, entry_in_notes, is_elf};

use crate::{
    boot::placement::{self, PlaceError, Placement},
    e820,
    layout::{COMMAND_LINE, HIGH_RAM, PVH_START_INFO, RAM_HOLE, RSDP},
    ram::RamRange,
};

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const START_INFO_LEN: u64 = 56;
const MODULE_LEN: u64 = 32;

/// Places the kernel of `image`, entered at `entry`, where its headers say, and an initrd of `initrd_len` bytes (0: none) in RAM.
pub fn place(
    image: &Image,
    entry: u64,
    ram: &[RamRange],
    initrd_len: u64,
) -> Result<Placement, PlaceError> {
    let segments = image.segments();
    let start = segments.iter().map(|s| s.guest.start).min().unwrap_or(0);
    let end = segments.iter().map(|s| s.guest.end).max().unwrap_or(0);
    let fits = |segment: &LoadSegment| {
        segment.guest.start >= HIGH_RAM
            && segment.guest.end <= RAM_HOLE.end
            && placement::is_in_ram(ram, &segment.guest)
    };
    if !segments.iter().all(fits) {
        return Err(placement::no_room(ram, end.saturating_sub(start), start));
    }
    let kernel = start..end;
    // Linux keeps 32 bits of the initrd's address.
    let initrd = placement::initrd(ram, &kernel, initrd_len, RAM_HOLE.end)?;
    Ok(Placement {
        kernel,
        entry,
        initrd,
    })
}

/// The start info with its module list and memory map, to be written at [`PVH_START_INFO`]. The command line is at
/// [`COMMAND_LINE`], the RSDP at [`RSDP`].
pub fn start_info(placement: &Placement, map: &[e820::Entry]) -> Vec<u8> {
    let modules = u32::from(placement.initrd.is_some());
    let module_list = PVH_START_INFO.start + START_INFO_LEN;
    let memory_map = module_list + MODULE_LEN;
    let entries = u32::try_from(map.len()).unwrap_or_default();

    let mut page = Vec::new();
    for value in [MAGIC, VERSION, 0, modules] {
        page.extend(value.to_le_bytes());
    }
    for address in [module_list, COMMAND_LINE.start, RSDP, memory_map] {
        page.extend(address.to_le_bytes());
    }
    page.extend(entries.to_le_bytes());
    page.extend(0_u32.to_le_bytes());

    // The module: address, size, no command line, reserved.
    let initrd = placement.initrd.clone().unwrap_or(0..0);
    for value in [initrd.start, initrd.end - initrd.start, 0, 0] {
        page.extend(value.to_le_bytes());
    }
    for entry in map {
        page.extend(entry.start.to_le_bytes());
        page.extend(entry.len.to_le_bytes());
        page.extend((entry.kind as u32).to_le_bytes());
        page.extend(0_u32.to_le_bytes());
    }
    let room = PVH_START_INFO.end - PVH_START_INFO.start;
    // A RAM plan has few enough pieces.
    assert!(page.len() as u64 <= room, "{entries} ranges of memory");
    page
}

#[cfg(test)]
mod tests;
