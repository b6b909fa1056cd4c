use super::*;
use crate::{e820, ram, random::Random};

const MIB: u64 = 1 << 20;
const ENTRY: u64 = 0x100_0370;
const NOTES_AT: usize = 0x400;

fn note(name: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for len in [name.len(), value.len()] {
        note.extend(u32::try_from(len).unwrap().to_le_bytes());
    }
    note.extend(kind.to_le_bytes());
    for part in [name, value] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

fn program_header(kind: u32, file: Range, guest: u64, guest_len: u64) -> Vec<u8> {
    let mut header = Vec::from(kind.to_le_bytes());
    header.extend(5_u32.to_le_bytes());
    for value in [file.0, u64::MAX, guest, file.1, guest_len, 4096] {
        header.extend(value.to_le_bytes());
    }
    header
}

/// Offset and length.
type Range = (u64, u64);

/// A kernel of two segments, the second with BSS, and notes of which the third is the one.
fn vmlinux() -> Vec<u8> {
    let notes = [
        note(b"Linux\0", 257, &[1, 2, 3]),
        note(b"Xen\0", 6, b"linux\0"),
        note(b"Xen\0", 18, &ENTRY.to_le_bytes()[..4]),
    ]
    .concat();
    let mut file = vec![0; 0x3000];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[32] = 64;
    file[54] = 56;
    file[56] = 3;
    let headers = [
        program_header(1, (0x1000, 0x1000), 0x100_0000, 0x1000),
        program_header(1, (0x2000, 0x1000), 0x200_0000, 0x10_0000),
        program_header(4, (NOTES_AT as u64, notes.len() as u64), 0, 0),
    ]
    .concat();
    file[64..64 + headers.len()].copy_from_slice(&headers);
    file[NOTES_AT..NOTES_AT + notes.len()].copy_from_slice(&notes);
    file
}

fn parse(file: &[u8]) -> Result<Image, ImageError> {
    let head = &file[..file.len().min(HEAD_LEN)];
    Image::parse(head, file.len() as u64)
}

fn entry(file: &[u8]) -> Result<u64, ImageError> {
    let image = parse(file)?;
    let range = |r: &std::ops::Range<u64>| {
        let [start, end] = [r.start, r.end].map(|at| usize::try_from(at).unwrap());
        file[start..end].to_vec()
    };
    let notes: Vec<_> = image.notes().iter().map(range).collect();
    image.entry(&notes)
}

#[test]
fn segments_and_entry_are_found() {
    let image = parse(&vmlinux()).unwrap();
    let second = LoadSegment {
        file: 0x2000..0x3000,
        guest: 0x200_0000..0x210_0000,
    };
    assert_eq!(image.segments().len(), 2);
    assert_eq!(image.segments()[1], second);
    assert_eq!(entry(&vmlinux()), Ok(ENTRY));
}

#[test]
fn an_entry_of_64_bits_is_read_too() {
    let notes = note(b"Xen\0", 18, &ENTRY.to_le_bytes());
    assert_eq!(entry_in_notes(&notes), Some(ENTRY));
    assert_eq!(entry_in_notes(&note(b"Xen\0", 18, b"")), None);
    assert_eq!(entry_in_notes(&note(b"GNU\0", 18, &[0; 4])), None);
}

/// An ELF file of nothing but headers, which are `headers`.
fn headers_only(headers: &[Vec<u8>]) -> Vec<u8> {
    let mut file = vmlinux()[..64].to_vec();
    file[56] = u8::try_from(headers.len()).unwrap();
    file.extend(headers.concat());
    file
}

#[test]
fn a_file_may_end_with_its_headers_and_a_segment_without_a_byte_is_none() {
    let zeros = program_header(1, (0, 0), 0x100_0000, 0x1000);
    let nothing = program_header(1, (0, 0), 0x100_0000, 0);
    let image = parse(&headers_only(&[zeros.clone(), nothing.clone()])).unwrap();
    assert_eq!(image.segments().len(), 1);
    assert_eq!(image.segments()[0].guest, 0x100_0000..0x100_1000);
    assert_eq!(parse(&headers_only(&[nothing])), Err(ImageError::Empty));
    assert_eq!(parse(&headers_only(&[])), Err(ImageError::Empty));
    let file = headers_only(&[zeros]);
    assert!(matches!(
        parse(&file[..file.len() - 1]),
        Err(ImageError::Truncated { .. })
    ));
}

#[test]
fn notes_of_more_than_64_kib_are_not_read() {
    let load = program_header(1, (0, 0), 0x100_0000, 0x1000);
    for (len, is_read) in [(0x1_0000, true), (0x1_0001, false)] {
        let notes = program_header(4, (0x1000, len), 0, 0);
        let head = headers_only(&[load.clone(), notes]);
        let image = Image::parse(&head, 0x10_0000).unwrap();
        assert_eq!(image.notes().len(), usize::from(is_read), "{len:#x}");
    }
}

#[test]
#[should_panic(expected = "200 ranges of memory")]
fn a_memory_map_that_the_start_info_has_no_room_for_is_never_written_over_the_zero_page() {
    let memory = ram::plan(64 * MIB, &[]).unwrap();
    let placement = place(&parse(&vmlinux()).unwrap(), ENTRY, &memory, 0).unwrap();
    start_info(&placement, &vec![e820::map(&memory)[0]; 200]);
}

#[test]
fn what_cannot_be_started_is_named_for_what_it_is() {
    let with = |at: usize, byte: u8| {
        let mut file = vmlinux();
        file[at] = byte;
        file
    };
    assert!(!is_elf(b"MZ"));
    assert_eq!(parse(b"MZ"), Err(ImageError::NotX86_64));
    assert_eq!(parse(&with(4, 1)), Err(ImageError::NotX86_64));
    assert_eq!(parse(&with(18, 183)), Err(ImageError::NotX86_64));
    assert_eq!(parse(&with(56, 0)), Err(ImageError::Empty));
    assert_eq!(entry(&with(56, 2)), Err(ImageError::NoEntry));
    assert!(matches!(
        parse(&with(54, 32)),
        Err(ImageError::Damaged {
            field: "e_phentsize",
            ..
        })
    ));
    // The entry's note sends us where nothing is loaded.
    let outside = with(NOTES_AT + 24 + 24 + 16 + 3, 0x7e);
    assert!(matches!(entry(&outside), Err(ImageError::Damaged { .. })));
}

#[test]
fn a_truncated_file_says_how_much_is_missing() {
    let file = vmlinux();
    for (len, need) in [(20, 64), (0x80, 64 + 3 * 56), (0x2800, 0x3000)] {
        let have = len as u64;
        assert_eq!(
            parse(&file[..len]),
            Err(ImageError::Truncated { have, need })
        );
    }
}

#[test]
fn the_kernel_stays_where_it_is_and_the_initrd_goes_behind_its_bss() {
    let image = parse(&vmlinux()).unwrap();
    let memory = ram::plan(64 * MIB, &[]).unwrap();
    let placement = place(&image, ENTRY, &memory, 30 * MIB).unwrap();
    assert_eq!(placement.kernel, 0x100_0000..0x210_0000);
    assert_eq!(placement.initrd, Some(34 * MIB..64 * MIB));
    let small = ram::plan(32 * MIB, &[]).unwrap();
    let error = place(&image, ENTRY, &small, 0).unwrap_err();
    assert!(matches!(
        error,
        PlaceError::Kernel {
            need_mib: 17,
            have_mib: 16,
            ..
        }
    ));
    let error = place(&image, ENTRY, &memory, 32 * MIB).unwrap_err();
    assert!(matches!(error, PlaceError::Initrd { need_mib: 66, .. }));
}

#[test]
fn a_kernel_over_the_boot_structures_is_refused() {
    let mut file = vmlinux();
    file[64 + 24..64 + 32].copy_from_slice(&0x7000_u64.to_le_bytes());
    let memory = ram::plan(64 * MIB, &[]).unwrap();
    assert!(place(&parse(&file).unwrap(), ENTRY, &memory, 0).is_err());
}

#[test]
fn a_kernel_that_32_bit_code_cannot_reach_is_refused() {
    let mut file = vmlinux();
    file[64 + 24..64 + 32].copy_from_slice(&0x1_0000_0000_u64.to_le_bytes());
    let memory = ram::plan(6 << 30, &[]).unwrap();
    assert!(place(&parse(&file).unwrap(), ENTRY, &memory, 0).is_err());
}

#[test]
fn the_start_info_points_to_its_parts() {
    let memory = ram::plan(5 << 30, &[]).unwrap();
    let placement = place(&parse(&vmlinux()).unwrap(), ENTRY, &memory, MIB).unwrap();
    let map = e820::map(&memory);
    let page = start_info(&placement, &map);
    let qword = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
    let part = |at: usize| usize::try_from(qword(at) - PVH_START_INFO.start).unwrap();
    assert_eq!(page[..8], [0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0]);
    assert_eq!(
        (qword(8), qword(24), qword(32)),
        (1 << 32, 0x2_0000, 0xe_0000)
    );
    let (module, table) = (part(16), part(40));
    let initrd = placement.initrd.unwrap();
    assert_eq!((qword(module), qword(module + 8)), (initrd.start, MIB));
    assert_eq!(qword(48), map.len() as u64);
    for (i, entry) in map.iter().enumerate() {
        let at = table + i * 24;
        assert_eq!((qword(at), qword(at + 8)), (entry.start, entry.len));
        assert_eq!(qword(at + 16), entry.kind as u64);
    }
    assert_eq!(page.len(), table + map.len() * 24);
}

#[test]
fn what_is_placed_of_a_damaged_file_lies_in_ram_and_its_parts_do_not_overlap() {
    let mut random = Random::new(3);
    let memory = ram::plan(64 * MIB, &[]).unwrap();
    let is_in_ram = |range: &std::ops::Range<u64>| {
        memory
            .iter()
            .any(|piece| piece.guest <= range.start && range.end <= piece.end())
    };
    let (mut placed, mut refused, mut damaged) = (0, 0, 0);
    for _ in 0..20_000 {
        let mut file = vmlinux();
        for _ in 0..random.below(6) {
            let at = [random.index(64 + 3 * 56), NOTES_AT + random.index(80)];
            file[at[random.index(2)]] = random.byte();
        }
        file.truncate(random.index(2 * file.len()));
        let (Ok(image), Ok(entry)) = (parse(&file), entry(&file)) else {
            damaged += 1;
            continue;
        };
        for segment in image.segments() {
            assert!(segment.file.start <= segment.file.end);
            assert!(segment.file.end <= file.len() as u64);
            let (from, to) = (&segment.file, &segment.guest);
            assert!(from.end - from.start <= to.end - to.start);
        }
        let initrd_len = random.magnitude(27);
        let Ok(placement) = place(&image, entry, &memory, initrd_len) else {
            refused += 1;
            continue;
        };
        placed += 1;
        let kernel = &placement.kernel;
        assert!(kernel.start >= HIGH_RAM && kernel.contains(&placement.entry));
        for segment in image.segments() {
            assert!(is_in_ram(&segment.guest));
            assert!(kernel.start <= segment.guest.start && segment.guest.end <= kernel.end);
        }
        let initrd = placement.initrd.clone().unwrap_or(kernel.end..kernel.end);
        assert_eq!(initrd.end - initrd.start, initrd_len);
        assert!(initrd_len == 0 || initrd.start % 4096 == 0);
        assert!(initrd.start >= kernel.end && is_in_ram(&initrd));
        let page = start_info(&placement, &e820::map(&memory));
        assert_eq!(page[12], u8::from(initrd_len > 0), "modules");
    }
    assert!(
        placed > 1000 && refused > 100 && damaged > 1000,
        "{placed} {refused} {damaged}"
    );
}
