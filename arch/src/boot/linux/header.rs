//! The setup header of a bzImage: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
//!
//! The file may be anything; every read is bounds-checked. Left out: kernels without a 64-bit entry point, or loaded below 1 MiB.

use std::ops::Range;

use crate::{
    boot::{
        paging::MAPPED_END,
        placement::{self, PlaceError},
    },
    layout::{COMMAND_LINE_ROOM, HIGH_RAM},
    ram::RamRange,
};

/// Bytes from the start of the file that [`SetupHeader::parse`] looks at: the real-mode sector and the longest header.
pub const HEAD_LEN: usize = 0x202 + 255;

/// Fields of the setup header, by their offset in the file.
mod field {
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const SYSSIZE: usize = 0x1f4;
    pub(super) const BOOT_FLAG: usize = 0x1fe;
    pub(super) const JUMP_OFFSET: usize = 0x201;
    pub(super) const HEADER: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(super) const RELOCATABLE_KERNEL: usize = 0x234;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
    /// The first byte after what the oldest protocol accepted here has.
    pub(super) const END: usize = 0x264;
}

/// "HdrS".
const MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// Protocol 2.12 (Linux 3.8) is the first with `xloadflags`, which say whether there is a 64-bit entry point.
const OLDEST_VERSION: u16 = 0x020c;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// The 64-bit entry point, counted from where the kernel is loaded.
pub(super) const ENTRY64: u64 = 0x200;
const SECTOR: u64 = 512;
/// The boot CPU's page tables and 32-bit pointers reach this far.
const REACH: u64 = MAPPED_END;

/// The file is not a kernel that can be booted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No Linux image at all.
    #[error("not a Linux kernel image: neither a bzImage (vmlinuz) nor an ELF file (vmlinux)")]
    NotAKernel,
    /// The file is shorter than its header says.
    #[error("the kernel image is truncated: {have} bytes where its header says at least {need}")]
    Truncated {
        /// Length of the file in bytes.
        have: u64,
        /// What there should be.
        need: u64,
    },
    /// Older than the 64-bit entry point.
    #[error("the kernel is too old: boot protocol {}.{:02}, 2.12 (Linux 3.8) is needed", .version >> 8, .version & 0xff)]
    TooOld {
        /// Its boot protocol, major in the high byte.
        version: u16,
    },
    /// Built for 32-bit CPUs.
    #[error("the kernel is a 32-bit one: it has no 64-bit entry point")]
    Only32Bit,
    /// It wants to be loaded below 1 MiB.
    #[error(
        "the kernel is a zImage, which has to be loaded below 1 MiB: only a bzImage can be booted"
    )]
    LoadedLow,
    /// A header field makes no sense.
    #[error("the kernel's setup header is damaged: {field} is {value:#x}")]
    Damaged {
        /// The field's name in boot.rst.
        field: &'static str,
        /// What it says.
        value: u64,
    },
}

/// The command line does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the command line has {len} bytes; this kernel takes {max}\n  shorten it")]
pub struct CommandLineTooLong {
    /// Its length in bytes, without the NUL.
    pub len: usize,
    /// What the kernel takes.
    pub max: usize,
}

/// The setup header of a bzImage, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupHeader {
    /// The header as it stands in the file, from `setup_sects` on.
    raw: Vec<u8>,
    payload: Range<u64>,
    init_size: u64,
    pref_address: u64,
    alignment: u64,
    relocatable: bool,
    xloadflags: u16,
    initrd_ceiling: u64,
    cmdline_max: usize,
}

impl SetupHeader {
    /// Reads the header of an image of `file_len` bytes from `head`, its first [`HEAD_LEN`] bytes (fewer if the file is shorter).
    pub fn parse(head: &[u8], file_len: u64) -> Result<Self, ImageError> {
        check_magic(head, file_len)?;
        let raw_end = field::HEADER + usize::from(byte(head, field::JUMP_OFFSET));
        // A header that ends before the fields we need is no header of that version.
        let raw = head
            .get(field::SETUP_SECTS..raw_end.max(field::END))
            .ok_or(ImageError::Truncated {
                have: file_len,
                need: raw_end.max(field::END) as u64,
            })?;
        if raw_end < field::END {
            return Err(damaged("jump", raw_end as u64));
        }
        check_flags(head)?;

        let header = Self {
            raw: raw.to_vec(),
            payload: payload(head, file_len)?,
            init_size: dword(head, field::INIT_SIZE).into(),
            pref_address: qword(head, field::PREF_ADDRESS),
            alignment: dword(head, field::KERNEL_ALIGNMENT).into(),
            relocatable: byte(head, field::RELOCATABLE_KERNEL) != 0,
            xloadflags: word(head, field::XLOADFLAGS),
            initrd_ceiling: u64::from(dword(head, field::INITRD_ADDR_MAX)) + 1,
            cmdline_max: dword(head, field::CMDLINE_SIZE) as usize,
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), ImageError> {
        let payload_len = self.payload.end - self.payload.start;
        if !self.alignment.is_power_of_two() {
            return Err(damaged("kernel_alignment", self.alignment));
        }
        if self.init_size < payload_len {
            return Err(damaged("init_size", self.init_size));
        }
        if self.pref_address.checked_add(self.init_size).is_none() {
            return Err(damaged("pref_address", self.pref_address));
        }
        Ok(())
    }

    /// The header as it stands in the file, for the zero page.
    pub(super) fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The first address that a 32-bit initrd pointer's initrd must not reach.
    pub(super) fn initrd_ceiling(&self) -> u64 {
        self.initrd_ceiling
    }

    /// Whether the kernel takes 64-bit initrd addresses.
    pub(super) fn takes_high_initrd(&self) -> bool {
        self.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0
    }

    /// The part of the file that is copied to the start of [`crate::boot::placement::Placement::kernel`].
    pub fn payload(&self) -> Range<u64> {
        self.payload.clone()
    }

    /// The command line as it is written to [`crate::layout::COMMAND_LINE`]: with a NUL.
    pub fn command_line(&self, text: &str) -> Result<Vec<u8>, CommandLineTooLong> {
        let max = self.cmdline_max.min(COMMAND_LINE_ROOM - 1);
        if text.len() > max {
            return Err(CommandLineTooLong {
                len: text.len(),
                max,
            });
        }
        Ok([text.as_bytes(), &[0]].concat())
    }

    /// Where the kernel wants to be, else the lowest place it can be at; both in the first 4 GiB, which are mapped.
    pub(super) fn kernel(&self, ram: &[RamRange]) -> Result<Range<u64>, PlaceError> {
        let fits = |start: u64| {
            let range = start..start.checked_add(self.init_size)?;
            (range.start >= HIGH_RAM && range.end <= REACH && placement::is_in_ram(ram, &range))
                .then_some(range)
        };
        let elsewhere = || {
            let starts = ram.iter().filter_map(|piece| {
                let lowest = piece.guest.max(HIGH_RAM);
                lowest.checked_next_multiple_of(self.alignment)
            });
            starts.filter_map(fits).next()
        };
        fits(self.pref_address)
            .or_else(|| self.relocatable.then(elsewhere).flatten())
            .ok_or_else(|| self.no_room(ram))
    }

    fn no_room(&self, ram: &[RamRange]) -> PlaceError {
        let lowest = match self.relocatable {
            true => HIGH_RAM.next_multiple_of(self.alignment),
            false => self.pref_address,
        };
        placement::no_room(ram, self.init_size, lowest)
    }
}

fn check_magic(head: &[u8], file_len: u64) -> Result<(), ImageError> {
    // Only a file that begins like a kernel is a truncated one: the boot flag comes before everything else of the header.
    if head.len() < field::VERSION + 2 {
        let need = field::END as u64;
        return match head.starts_with(b"MZ") && file_len < need {
            true => Err(ImageError::Truncated {
                have: file_len,
                need,
            }),
            false => Err(ImageError::NotAKernel),
        };
    }
    if word(head, field::BOOT_FLAG) != BOOT_FLAG || dword(head, field::HEADER) != MAGIC {
        return Err(ImageError::NotAKernel);
    }
    match word(head, field::VERSION) {
        version if version < OLDEST_VERSION => Err(ImageError::TooOld { version }),
        _ => Ok(()),
    }
}

fn check_flags(head: &[u8]) -> Result<(), ImageError> {
    if byte(head, field::LOADFLAGS) & LOADED_HIGH == 0 {
        return Err(ImageError::LoadedLow);
    }
    if word(head, field::XLOADFLAGS) & XLF_KERNEL_64 == 0 {
        return Err(ImageError::Only32Bit);
    }
    Ok(())
}

fn payload(head: &[u8], file_len: u64) -> Result<Range<u64>, ImageError> {
    // boot.rst: "for backwards compatibility, if the setup_sects field contains 0, the real value is 4".
    let setup_sects = match byte(head, field::SETUP_SECTS) {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let start = (setup_sects + 1) * SECTOR;
    // syssize counts paragraphs of 16 bytes. What follows (a signature) is not for the guest.
    let end = start + u64::from(dword(head, field::SYSSIZE)) * 16;
    if end <= start + ENTRY64 {
        return Err(damaged("syssize", dword(head, field::SYSSIZE).into()));
    }
    if end > file_len {
        return Err(ImageError::Truncated {
            have: file_len,
            need: end,
        });
    }
    Ok(start..end)
}

fn damaged(field: &'static str, value: u64) -> ImageError {
    ImageError::Damaged { field, value }
}

/// Reads of the header; what is not there is zero, which every check refuses.
fn bytes<const N: usize>(head: &[u8], at: usize) -> [u8; N] {
    head.get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

fn byte(head: &[u8], at: usize) -> u8 {
    u8::from_le_bytes(bytes(head, at))
}

fn word(head: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes(head, at))
}

fn dword(head: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(head, at))
}

fn qword(head: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes(head, at))
}
