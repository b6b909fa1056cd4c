//! An ELF-64 executable as far as PVH needs it: what to load where, and the note that names the entry point (System V ABI, "Object
//! Files" and "Program Loading"; Xen's include/public/elfnote.h).
//!
//! The file may be anything; every read is bounds-checked. Only its first bytes and the notes are looked at here, since a vmlinux
//! can have hundreds of megabytes.

use std::ops::Range;

/// Bytes from the start of the file that [`Image::parse`] looks at: the program headers have to be within.
pub const HEAD_LEN: usize = 4096;

const MAGIC: &[u8; 4] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const EXECUTABLE: u16 = 2;
const SHARED: u16 = 3;
const X86_64: u16 = 62;
const HEADER_LEN: u64 = 64;
const PROGRAM_HEADER_LEN: u16 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

const NOTE_HEADER_LEN: usize = 12;
const XEN: &[u8] = b"Xen\0";
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PHYS32_ENTRY: u32 = 18;
/// A kernel's notes are a page at most; more is no kernel.
const NOTES_MAX: u64 = 64 << 10;

/// The file is not a kernel that can be started through PVH.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Another kind of ELF file.
    #[error("not an x86-64 ELF executable")]
    NotX86_64,
    /// The file is shorter than its headers say.
    #[error("the kernel image is truncated: {have} bytes where its headers say at least {need}")]
    Truncated {
        /// Length of the file in bytes.
        have: u64,
        /// What there should be.
        need: u64,
    },
    /// Nothing to load.
    #[error("the ELF file has nothing to load")]
    Empty,
    /// A header makes no sense.
    #[error("the kernel's ELF headers are damaged: {field} is {value:#x}")]
    Damaged {
        /// The field's name in `elf.h`.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// No PVH entry point.
    #[error("the ELF kernel has no PVH entry point (built without CONFIG_PVH)")]
    NoEntry,
}

/// A part of the file that goes to memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadSegment {
    /// Where it is in the file.
    pub file: Range<u64>,
    /// Where it goes; what is longer than `file` is filled with zeros.
    pub guest: Range<u64>,
}

/// The headers of an ELF executable, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    segments: Vec<LoadSegment>,
    notes: Vec<Range<u64>>,
}

/// Whether a file that begins like that is an ELF file, and not a bzImage.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

impl Image {
    /// Reads the headers of a file of `file_len` bytes from `head`, its first [`HEAD_LEN`] bytes (fewer if the file is shorter).
    pub fn parse(head: &[u8], file_len: u64) -> Result<Self, ImageError> {
        check_identity(head, file_len)?;
        let mut image = Self {
            segments: Vec::new(),
            notes: Vec::new(),
        };
        for header in program_headers(head, file_len)? {
            let file = file_range(header, file_len)?;
            match dword(header, 0) {
                PT_LOAD => image.segments.extend(load_segment(header, file)?),
                PT_NOTE if file.end - file.start <= NOTES_MAX => image.notes.push(file),
                _ => (),
            }
        }
        match image.segments.is_empty() {
            true => Err(ImageError::Empty),
            false => Ok(image),
        }
    }

    /// What to load.
    pub fn segments(&self) -> &[LoadSegment] {
        &self.segments
    }

    /// Where the notes are in the file; a few kilobytes at most. One of them names the entry point.
    pub fn notes(&self) -> &[Range<u64>] {
        &self.notes
    }

    /// The entry point, from the notes as they stand in the file at the ranges of [`Image::notes`].
    pub fn entry(&self, notes: &[Vec<u8>]) -> Result<u64, ImageError> {
        let mut entries = notes.iter().filter_map(|notes| entry_in_notes(notes));
        let entry = entries.next().ok_or(ImageError::NoEntry)?;
        match self.segments.iter().any(|s| s.guest.contains(&entry)) {
            true => Ok(entry),
            false => Err(damaged("XEN_ELFNOTE_PHYS32_ENTRY", entry)),
        }
    }
}

/// The PVH entry point, if one of the notes in a note segment names it.
pub fn entry_in_notes(mut notes: &[u8]) -> Option<u64> {
    loop {
        let header = notes.get(..NOTE_HEADER_LEN)?;
        let padded = |at| {
            usize::try_from(dword(header, at))
                .ok()?
                .checked_next_multiple_of(4)
        };
        let (name_len, value_len) = (padded(0)?, padded(4)?);
        let value_at = NOTE_HEADER_LEN.checked_add(name_len)?;
        let end = value_at.checked_add(value_len)?;
        let name = notes.get(NOTE_HEADER_LEN..value_at)?;
        let value = notes.get(value_at..end)?;
        if name == XEN && dword(header, 8) == PHYS32_ENTRY {
            return match *value {
                [a, b, c, d] => Some(u32::from_le_bytes([a, b, c, d]).into()),
                _ => value.try_into().ok().map(u64::from_le_bytes),
            };
        }
        notes = notes.get(end..)?;
    }
}

fn check_identity(head: &[u8], file_len: u64) -> Result<(), ImageError> {
    if !is_elf(head) {
        return Err(ImageError::NotX86_64);
    }
    if (head.len() as u64) < HEADER_LEN {
        return Err(ImageError::Truncated {
            have: file_len,
            need: HEADER_LEN,
        });
    }
    let class = (head[4], head[5]);
    let kind = (word(head, 16), word(head, 18));
    if class != (CLASS_64, LITTLE_ENDIAN) || !matches!(kind, (EXECUTABLE | SHARED, X86_64)) {
        return Err(ImageError::NotX86_64);
    }
    match word(head, 54) {
        PROGRAM_HEADER_LEN => Ok(()),
        other => Err(damaged("e_phentsize", other.into())),
    }
}

fn program_headers(head: &[u8], file_len: u64) -> Result<impl Iterator<Item = &[u8]>, ImageError> {
    let start = qword(head, 32);
    let len = u64::from(word(head, 56)) * u64::from(PROGRAM_HEADER_LEN);
    let end = start.checked_add(len).ok_or(damaged("e_phoff", start))?;
    if end > file_len {
        return Err(ImageError::Truncated {
            have: file_len,
            need: end,
        });
    }
    let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    let table = range.and_then(|(start, end)| head.get(start..end));
    // In the file but not near its start, which is where linkers put it.
    let table = table.ok_or(damaged("e_phoff", start))?;
    Ok(table.chunks_exact(PROGRAM_HEADER_LEN.into()))
}

/// `p_offset` and `p_filesz`.
fn file_range(header: &[u8], file_len: u64) -> Result<Range<u64>, ImageError> {
    let (start, len) = (qword(header, 8), qword(header, 32));
    let end = start.checked_add(len).ok_or(damaged("p_filesz", len))?;
    if end > file_len {
        return Err(ImageError::Truncated {
            have: file_len,
            need: end,
        });
    }
    Ok(start..end)
}

/// `p_paddr` and `p_memsz`; nothing for a segment without a byte.
fn load_segment(header: &[u8], file: Range<u64>) -> Result<Option<LoadSegment>, ImageError> {
    let (start, len) = (qword(header, 24), qword(header, 40));
    let end = start.checked_add(len).ok_or(damaged("p_memsz", len))?;
    if len < file.end - file.start {
        return Err(damaged("p_memsz", len));
    }
    let guest = start..end;
    Ok((len > 0).then_some(LoadSegment { file, guest }))
}

fn damaged(field: &'static str, value: u64) -> ImageError {
    ImageError::Damaged { field, value }
}

/// Reads of a header whose length is checked; what is not there would be zero.
fn bytes<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let rest = header.get(at..).unwrap_or_default();
    rest.first_chunk().copied().unwrap_or([0; N])
}

fn word(header: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes(header, at))
}

fn dword(header: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(header, at))
}

fn qword(header: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes(header, at))
}
