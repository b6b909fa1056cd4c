//! A core file, read as a debugger reads it.

use std::{fs, os::unix::fs::MetadataExt};

use super::*;

const HIGH: u64 = 1 << 32;
const RANGES: [RamRange; 2] = [
    RamRange {
        guest: 0,
        len: 1 << 20,
    },
    RamRange {
        guest: HIGH,
        len: 2 << 20,
    },
];

fn memory() -> GuestMemoryMmap {
    let ranges = RANGES.map(|range| {
        (
            GuestAddress(range.guest),
            usize::try_from(range.len).unwrap(),
        )
    });
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn place(value: u64) -> usize {
    usize::try_from(value).unwrap()
}

/// Type, place in the file, physical address, length of each segment.
fn segments(core: &[u8]) -> Vec<(u32, u64, u64, u64)> {
    let first = place(u64_at(core, 32));
    let headers = (0..usize::from(u16_at(core, 56))).map(|number| first + 56 * number);
    headers
        .map(|at| {
            let [place, physical, len] = [8, 24, 32].map(|field| u64_at(core, at + field));
            assert_eq!(
                u64_at(core, at + 40),
                len,
                "as long in memory as in the file"
            );
            (u32_at(core, at), place, physical, len)
        })
        .collect()
}

/// Owner, type and content of each note.
fn notes(core: &[u8]) -> Vec<(Vec<u8>, u32, Vec<u8>)> {
    let (kind, start, _, len) = segments(core)[0];
    assert_eq!(kind, 4);
    let mut rest = &core[place(start)..place(start + len)];
    let mut notes = Vec::new();
    while !rest.is_empty() {
        let [owner, content, kind] = [0, 4, 8].map(|field| u32_at(rest, field));
        let (owner, content) = (owner as usize, content as usize);
        let content_at = 12 + owner.next_multiple_of(4);
        notes.push((
            rest[12..12 + owner].to_vec(),
            kind,
            rest[content_at..content_at + content].to_vec(),
        ));
        rest = &rest[content_at + content.next_multiple_of(4)..];
    }
    notes
}

fn written(remains: &Remains<'_>) -> (Vec<u8>, fs::Metadata) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("core");
    remains.write(&path, || None).unwrap();
    (fs::read(&path).unwrap(), path.metadata().unwrap())
}

#[test]
fn a_core_file_has_all_memory_at_its_addresses_and_holes_where_it_is_zero() {
    let memory = memory();
    memory.write_slice(b"low", GuestAddress(0x5000)).unwrap();
    let last = HIGH + (2 << 20) - 4;
    memory.write_slice(b"high", GuestAddress(last)).unwrap();
    let (core, metadata) = written(&Remains {
        memory: &memory,
        ranges: &RANGES,
        cpus: Vec::new(),
        note: None,
    });
    assert_eq!(core[..6], *b"\x7fELF\x02\x01");
    assert_eq!([u16_at(&core, 16), u16_at(&core, 18)], [4, 62]);
    let segments = segments(&core);
    let loaded: Vec<_> = segments[1..]
        .iter()
        .map(|&(kind, _, physical, len)| (kind, physical, len))
        .collect();
    assert_eq!(loaded, [(1, 0, 1 << 20), (1, HIGH, 2 << 20)]);
    let low = place(segments[1].1) + 0x5000;
    assert_eq!(core[low..low + 3], *b"low");
    assert!(core.ends_with(b"high"));
    assert!(metadata.blocks() * 512 < 1 << 20, "most of it is holes");
}

#[test]
fn each_processor_has_a_note_with_its_registers() {
    let mut cpus = [Cpu::default(), Cpu::default()];
    for (number, cpu) in (1..).zip(&mut cpus) {
        cpu.registers.rip = 0x1000 * number;
        cpu.registers.rsp = 0x2000 * number;
        cpu.registers.r15 = 0x3000 * number;
        cpu.segments.cs.selector = 0x10;
        cpu.segments.gs.base = 0x4000 * number;
    }
    let (core, _) = written(&Remains {
        memory: &memory(),
        ranges: &RANGES,
        cpus: cpus.to_vec(),
        note: None,
    });
    for (number, (owner, kind, status)) in (1..).zip(notes(&core)) {
        assert_eq!((owner.as_slice(), kind), (&b"CORE\0"[..], 1));
        // sizeof(struct elf_prstatus)
        assert_eq!(status.len(), 336);
        assert_eq!(u32_at(&status, 32), number);
        let register = |index: usize| u64_at(&status, 112 + 8 * index);
        let number = u64::from(number);
        // user_regs_struct: r15 first, rip 16th, cs 17th, rsp 19th, gs_base 22nd.
        assert_eq!(register(0), 0x3000 * number);
        assert_eq!(register(16), 0x1000 * number);
        assert_eq!(register(17), 0x10);
        assert_eq!(register(19), 0x2000 * number);
        assert_eq!(register(22), 0x4000 * number);
    }
    assert_eq!(notes(&core).len(), 2);
}

/// What the kernel would write.
fn vmcoreinfo(text: &[u8]) -> Vec<u8> {
    let mut note = [11_u32, u32::try_from(text.len()).unwrap(), 0]
        .map(u32::to_le_bytes)
        .concat();
    note.extend(b"VMCOREINFO\0\0");
    note.extend(text);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

#[test]
fn what_the_kernel_says_of_itself_is_among_the_notes_and_nothing_else_is() {
    let memory = memory();
    let at = GuestAddress(0x8000);
    let told = |bytes: &[u8], note: Note| {
        memory.write_slice(&[0; 0x2000], at).unwrap();
        memory.write_slice(bytes, at).unwrap();
        let (core, _) = written(&Remains {
            memory: &memory,
            ranges: &RANGES,
            cpus: Vec::new(),
            note: Some(note),
        });
        notes(&core)
    };
    let (len, text) = (0x1000, b"OSRELEASE=6.12\nKERNELOFFSET=0\n\n");
    let found = told(&vmcoreinfo(text), Note { address: at, len });
    assert_eq!(found, [(b"VMCOREINFO\0".to_vec(), 0, text.to_vec())]);
    let mut foreign = vmcoreinfo(text);
    foreign[12] = b'X';
    let mut endless = vmcoreinfo(text);
    endless[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    for bytes in [foreign, endless, Vec::new()] {
        assert!(told(&bytes, Note { address: at, len }).is_empty());
    }
    for (address, len) in [(at.0, 4), (1 << 40, 0x1000), (u64::MAX - 5, u32::MAX)] {
        let address = GuestAddress(address);
        assert!(told(&vmcoreinfo(text), Note { address, len }).is_empty());
    }
}

#[test]
fn who_does_not_want_to_wait_for_it_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("core");
    let remains = Remains {
        memory: &memory(),
        ranges: &RANGES,
        cpus: Vec::new(),
        note: None,
    };
    let mut looks = 0;
    let interrupted = || {
        looks += 1;
        (looks > 3).then_some("SIGTERM")
    };
    let error = remains.write(&path, interrupted).unwrap_err();
    assert!(error.to_string().contains("ended by SIGTERM"));
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
}
