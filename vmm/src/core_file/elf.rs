//! The format of a core file (System V ABI, ELF-64; NT_PRSTATUS as in Linux's include/uapi/linux/elf.h and elfcore.h): a header, a
//! program header for the notes and for each range of memory, the notes, and from the next page on the memory.

use arch::ram::RamRange;
use kvm_bindings::{kvm_regs, kvm_sregs};

const HEADER_LEN: u16 = 64;
const PROGRAM_HEADER_LEN: u16 = 56;
const PAGE: u64 = 4096;

const CLASS_64_LITTLE_VERSION_1: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
const TYPE_CORE: u16 = 4;
const MACHINE_X86_64: u16 = 62;
const VERSION: u32 = 1;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
const READ_WRITE_EXECUTE: u32 = 7;

const PRSTATUS: u32 = 1;
/// What the kernel calls the notes of processes, and everybody else those of processors.
const PRSTATUS_OWNER: &[u8] = b"CORE\0";
/// Length in bytes of what stands before the registers: signals, times, and who it was.
const PRSTATUS_HEAD: usize = 112;
/// Where in that the process's number is.
const PRSTATUS_PID: usize = 32;
/// Whether there are floating-point registers, and padding.
const PRSTATUS_TAIL: [u8; 8] = [0; 8];

/// A processor, as it stopped.
#[derive(Debug, Clone, Default)]
pub struct Cpu {
    /// The general registers.
    pub registers: kvm_regs,
    /// The segments.
    pub segments: kvm_sregs,
}

/// All that comes before the memory, and where in the file each range's begins.
pub(super) struct Head {
    pub(super) bytes: Vec<u8>,
    pub(super) places: Vec<u64>,
    /// Length in bytes of the whole file.
    pub(super) len: u64,
}

impl Head {
    pub(super) fn of(ranges: &[RamRange], notes: &[u8]) -> Self {
        // Ranges are few: reserved regions cut RAM into a handful.
        let count = u16::try_from(ranges.len()).unwrap_or(u16::MAX - 1) + 1;
        let notes_at = u64::from(HEADER_LEN) + u64::from(PROGRAM_HEADER_LEN) * u64::from(count);
        let notes_len = notes.len() as u64;
        let mut at = (notes_at + notes_len).next_multiple_of(PAGE);
        let mut bytes = header(count);
        bytes.extend(program_header(NOTE, notes_at, 0, notes_len));
        let mut places = Vec::new();
        for range in ranges {
            bytes.extend(program_header(LOAD, at, range.guest, range.len));
            places.push(at);
            at += range.len;
        }
        bytes.extend(notes);
        Self {
            bytes,
            places,
            len: at,
        }
    }
}

fn header(program_headers: u16) -> Vec<u8> {
    let mut header = CLASS_64_LITTLE_VERSION_1.to_vec();
    header.resize(16, 0);
    header.extend(TYPE_CORE.to_le_bytes());
    header.extend(MACHINE_X86_64.to_le_bytes());
    header.extend(VERSION.to_le_bytes());
    // No entry; program headers follow; no section headers; no flags.
    for value in [0, u64::from(HEADER_LEN), 0] {
        header.extend(value.to_le_bytes());
    }
    header.extend(0_u32.to_le_bytes());
    for value in [HEADER_LEN, PROGRAM_HEADER_LEN, program_headers, 0, 0, 0] {
        header.extend(value.to_le_bytes());
    }
    header
}

/// Virtual addresses are the guest's business, whose page tables are in its memory.
fn program_header(kind: u32, place: u64, physical: u64, len: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend(READ_WRITE_EXECUTE.to_le_bytes());
    let (virtual_address, align) = (0, 0);
    for value in [place, virtual_address, physical, len, len, align] {
        header.extend(value.to_le_bytes());
    }
    header
}

/// What was in a processor's registers. Threads are numbered from 1.
pub(super) fn prstatus(number: u32, cpu: &Cpu) -> Vec<u8> {
    let mut content = vec![0; PRSTATUS_HEAD];
    let pid = content.iter_mut().skip(PRSTATUS_PID);
    pid.zip((number + 1).to_le_bytes())
        .for_each(|(to, from)| *to = from);
    let (r, s) = (&cpu.registers, &cpu.segments);
    // struct user_regs_struct. There is no system call under way (orig_rax).
    let (no_call, selector) = (u64::MAX, |segment: u16| u64::from(segment));
    let registers = [
        r.r15,
        r.r14,
        r.r13,
        r.r12,
        r.rbp,
        r.rbx,
        r.r11,
        r.r10,
        r.r9,
        r.r8,
        r.rax,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        no_call,
        r.rip,
        selector(s.cs.selector),
        r.rflags,
        r.rsp,
        selector(s.ss.selector),
        s.fs.base,
        s.gs.base,
        selector(s.ds.selector),
        selector(s.es.selector),
        selector(s.fs.selector),
        selector(s.gs.selector),
    ];
    content.extend(registers.iter().flat_map(|value| value.to_le_bytes()));
    content.extend(PRSTATUS_TAIL);
    note(PRSTATUS_OWNER, PRSTATUS, &content)
}

fn note(owner: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for len in [owner.len(), content.len()] {
        note.extend(u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    }
    note.extend(kind.to_le_bytes());
    for part in [owner, content] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// The first note in `bytes`, if it is one of `owner`'s, whole.
pub(super) fn first_note<'a>(bytes: &'a [u8], owner: &[u8]) -> Option<&'a [u8]> {
    let (lens, rest) = bytes.split_first_chunk::<12>()?;
    let [o0, o1, o2, o3, c0, c1, c2, c3, ..] = *lens;
    let padded = |len: [u8; 4]| {
        let len = usize::try_from(u32::from_le_bytes(len)).ok()?;
        len.checked_next_multiple_of(4)
    };
    let (owner_len, content_len) = (padded([o0, o1, o2, o3])?, padded([c0, c1, c2, c3])?);
    let len = owner_len
        .checked_add(content_len)?
        .checked_add(lens.len())?;
    (rest.starts_with(owner) && content_len > 0).then_some(bytes.get(..len)?)
}
