use super::*;
use crate::{layout, ram, random::Random};

const MIB: u64 = 1 << 20;
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const LOADFLAGS: usize = 0x211;
const VERSION: usize = 0x206;
const RELOCATABLE: usize = 0x234;
const XLOADFLAGS: usize = 0x236;
const INIT_SIZE: usize = 0x260;

/// The head of an image with the numbers of Debian's 6.12 kernel, but for its size.
fn debian() -> Vec<u8> {
    let mut head = vec![0; HEAD_LEN];
    // What is not the header: none of it may get into the zero page.
    head[..SETUP_SECTS].fill(0xee);
    for (at, value) in [
        (SETUP_SECTS, &[0x27][..]),
        (SYSSIZE, &(8_u32 << 20 >> 4).to_le_bytes()),
        (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
        (0x202, b"HdrS"),
        (VERSION, &[0x0f, 0x02]),
        (LOADFLAGS, &[1]),
        (0x22c, &0x7fff_ffff_u32.to_le_bytes()),
        (0x230, &0x20_0000_u32.to_le_bytes()),
        (RELOCATABLE, &[1]),
        (XLOADFLAGS, &[0x7f, 0]),
        (0x238, &2047_u32.to_le_bytes()),
        (0x258, &0x100_0000_u64.to_le_bytes()),
        (INIT_SIZE, &(62_u32 << 20).to_le_bytes()),
    ] {
        head[at..at + value.len()].copy_from_slice(value);
    }
    head
}

const FILE_LEN: u64 = 0x28 * 512 + 8 * MIB + 1000;

fn parse(head: &[u8]) -> Result<SetupHeader, ImageError> {
    SetupHeader::parse(head, FILE_LEN)
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut head = debian();
    head[at..at + bytes.len()].copy_from_slice(bytes);
    head
}

fn memory(mib: u64) -> Vec<RamRange> {
    ram::plan(mib * MIB, &[]).unwrap()
}

fn dword(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
}

#[test]
fn the_payload_is_what_syssize_says_and_no_signature() {
    let header = parse(&debian()).unwrap();
    assert_eq!(header.payload(), 0x5000..0x5000 + 8 * MIB);
}

#[test]
fn zero_setup_sectors_mean_four() {
    let header = parse(&with(SETUP_SECTS, &[0])).unwrap();
    assert_eq!(header.payload().start, 5 * 512);
}

#[test]
fn what_is_no_kernel_is_named_for_what_it_is() {
    use ImageError::*;
    assert_eq!(parse(b""), Err(NotAKernel));
    assert_eq!(parse(&[0x7f; HEAD_LEN]), Err(NotAKernel));
    assert_eq!(parse(&with(0x202, b"hdrs")), Err(NotAKernel));
    assert_eq!(
        parse(&with(VERSION, &[0x0a, 0x02])),
        Err(TooOld { version: 0x20a })
    );
    assert_eq!(parse(&with(LOADFLAGS, &[0])), Err(LoadedLow));
    assert_eq!(parse(&with(XLOADFLAGS, &[0x7e])), Err(Only32Bit));
    assert!(matches!(
        parse(&with(INIT_SIZE, &[0; 4])),
        Err(Damaged {
            field: "init_size",
            ..
        })
    ));
    assert!(matches!(
        parse(&with(0x201, &[3])),
        Err(Damaged { field: "jump", .. })
    ));
    let old = parse(&with(VERSION, &[0x0a, 0x02])).unwrap_err();
    assert!(old.to_string().contains("boot protocol 2.10,"), "{old}");
}

#[test]
fn a_truncated_image_says_how_much_is_missing() {
    assert_eq!(
        SetupHeader::parse(&debian(), 1 << 20),
        Err(ImageError::Truncated {
            have: 1 << 20,
            need: 0x5000 + 8 * MIB
        })
    );
    let error = SetupHeader::parse(&debian()[..0x210], 0x210).unwrap_err();
    assert!(matches!(error, ImageError::Truncated { .. }), "{error}");
    let mut begins_as_efi = debian();
    begins_as_efi[..2].copy_from_slice(b"MZ");
    let error = SetupHeader::parse(&begins_as_efi[..100], 100).unwrap_err();
    assert!(matches!(error, ImageError::Truncated { .. }), "{error}");
}

#[test]
fn a_header_that_ends_with_the_last_field_needed_is_long_enough() {
    let end = 0x264;
    let jump = |end: usize| with(0x201, &[u8::try_from(end - 0x202).unwrap()]);
    assert!(parse(&jump(end)[..end]).is_ok());
    assert!(matches!(
        parse(&jump(end - 1)),
        Err(ImageError::Damaged { field: "jump", .. })
    ));
}

#[test]
fn a_file_is_a_truncated_kernel_from_the_version_on_and_before_only_if_it_begins_as_one() {
    let mut begins_as_efi = debian();
    begins_as_efi[..2].copy_from_slice(b"MZ");
    for len in 2..0x264 {
        let have = len as u64;
        let truncated = |need| Err(ImageError::Truncated { have, need });
        let parse = |head: &[u8]| SetupHeader::parse(&head[..len], have);
        match len {
            ..0x208 => assert_eq!(parse(&debian()), Err(ImageError::NotAKernel), "{len:#x}"),
            // The header says itself where it ends.
            _ => assert_eq!(parse(&debian()), truncated(0x26c), "{len:#x}"),
        }
        assert!(
            matches!(parse(&begins_as_efi), Err(ImageError::Truncated { .. })),
            "{len:#x}"
        );
    }
}

#[test]
fn the_oldest_version_that_is_taken_is_2_12() {
    assert!(parse(&with(VERSION, &[0x0c, 0x02])).is_ok());
    assert_eq!(
        parse(&with(VERSION, &[0x0b, 0x02])),
        Err(ImageError::TooOld { version: 0x20b })
    );
}

#[test]
fn sizes_are_taken_up_to_what_they_bound_and_refused_one_step_beyond() {
    let payload = parse(&debian()).unwrap().payload();
    let len = u32::try_from(payload.end - payload.start).unwrap();
    let init_size = |len: u32| parse(&with(INIT_SIZE, &len.to_le_bytes()));
    assert!(init_size(len).is_ok() && init_size(len - 1).is_err());
    let of_file = |len: u64| SetupHeader::parse(&debian(), len);
    assert!(of_file(payload.end).is_ok() && of_file(payload.end - 1).is_err());
    // There has to be something at the 64-bit entry point, 0x200 bytes into the payload.
    let syssize = |paragraphs: u32| parse(&with(SYSSIZE, &paragraphs.to_le_bytes()));
    assert!(syssize(0x21).is_ok());
    assert_eq!(
        syssize(0x20),
        Err(ImageError::Damaged {
            field: "syssize",
            value: 0x20
        })
    );
}

#[test]
fn the_kernel_goes_where_it_wants_and_the_initrd_below_initrd_addr_max() {
    let placement = place(&parse(&debian()).unwrap(), &memory(4096), 30 * MIB).unwrap();
    assert_eq!(placement.kernel, 0x100_0000..0x100_0000 + 62 * MIB);
    assert_eq!(placement.entry, 0x100_0200);
    assert_eq!(placement.initrd, Some(0x8000_0000 - 30 * MIB..0x8000_0000));
}

#[test]
fn a_relocatable_kernel_moves_when_memory_is_short_and_another_does_not() {
    let ram = memory(66);
    let moved = place(&parse(&debian()).unwrap(), &ram, 0).unwrap();
    assert_eq!(moved.kernel.start, 0x20_0000);
    let fixed = parse(&with(RELOCATABLE, &[0])).unwrap();
    let error = place(&fixed, &ram, 0).unwrap_err();
    assert!(matches!(
        error,
        PlaceError::Kernel {
            need_mib: 62,
            have_mib: 50,
            ..
        }
    ));
    // 16 MiB, below which this one cannot be, and its 62.
    assert!(
        error
            .to_string()
            .ends_with("\n  give the guest more:  --memory 78M"),
        "{error}"
    );
    assert!(place(&fixed, &memory(78), 0).is_ok());
}

#[test]
fn an_initrd_larger_than_2_gib_goes_above_4_gib() {
    let placement = place(&parse(&debian()).unwrap(), &memory(8192), 3 << 30).unwrap();
    assert_eq!(placement.initrd, Some(0x1_8000_0000..0x2_4000_0000));
    let needed = place(&parse(&debian()).unwrap(), &memory(4096), 3 << 30).unwrap_err();
    let PlaceError::Initrd { need_mib, .. } = needed else {
        panic!("{needed}");
    };
    assert!(place(&parse(&debian()).unwrap(), &memory(need_mib), 3 << 30).is_ok());
    let without = parse(&with(XLOADFLAGS, &[1])).unwrap();
    let error = place(&without, &memory(8192), 3 << 30).unwrap_err();
    assert!(matches!(error, PlaceError::InitrdUnreachable { .. }));
}

#[test]
fn the_zero_page_has_the_header_and_what_the_loader_adds() {
    let header = parse(&debian()).unwrap();
    let ram = memory(8192);
    let placement = place(&header, &ram, 3 << 30).unwrap();
    let map = e820::map(&ram);
    let page = zero_page(&header, &placement, &map, None);
    assert_eq!(&page[0x202..0x206], b"HdrS");
    assert_eq!(page[0x210], 0xff);
    assert_eq!(dword(&page[..], 0x228), 0x2_0000);
    assert_eq!(dword(&page[..], 0x070), 0xe_0000);
    assert_eq!(
        (dword(&page[..], 0x218), dword(&page[..], 0x0c0)),
        (0x8000_0000, 1)
    );
    assert_eq!(
        (dword(&page[..], 0x21c), dword(&page[..], 0x0c4)),
        (0xc000_0000, 0)
    );
    assert_eq!(usize::from(page[0x1e8]), map.len());
    let qword = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
    assert_eq!((qword(0x2d0 + 8), page[0x2d0 + 16]), (0x9_fc00, 1));
    for (at, entry) in (0x2d0..).step_by(20).zip(&map) {
        assert_eq!((qword(at), qword(at + 8)), (entry.start, entry.len));
        assert_eq!(dword(&page[..], at + 16), entry.kind as u32);
    }
    // The sentinel and everything else that is not the header.
    assert!(!page.contains(&0xee));
}

#[test]
fn the_zero_page_begins_with_the_display_if_there_is_one() {
    let header = parse(&debian()).unwrap();
    let ram = memory(512);
    let (placement, map) = (place(&header, &ram, 0).unwrap(), e820::map(&ram));
    let mut host = vec![0xee; 4096];
    host[..SCREEN_INFO_LEN].fill(0);
    host[6..16].copy_from_slice(&[3, 80, 0, 0, 0, 0, 0, 0, 25, 1]);
    let screen = Screen::parse(&host).unwrap();
    let [with, without] =
        [Some(&screen), None].map(|screen| zero_page(&header, &placement, &map, screen));
    assert_eq!(with[..16], host[..16]);
    assert_eq!(without[..SCREEN_INFO_LEN], [0; SCREEN_INFO_LEN]);
    assert_eq!(with[SCREEN_INFO_LEN..], without[SCREEN_INFO_LEN..]);
}

#[test]
fn the_command_line_has_to_fit() {
    let header = parse(&debian()).unwrap();
    assert_eq!(header.command_line("quiet").unwrap(), b"quiet\0");
    assert_eq!(header.command_line(&"x".repeat(2047)).unwrap().len(), 2048);
    let error = header.command_line(&"x".repeat(2048)).unwrap_err();
    assert_eq!((error.len, error.max), (2048, 2047));
    // A kernel that takes any length gets what there is room for with its NUL.
    let endless = parse(&with(0x238, &[0xff; 4])).unwrap();
    let room = layout::COMMAND_LINE_ROOM;
    let longest = endless.command_line(&"x".repeat(room - 1)).unwrap();
    assert_eq!(longest.len(), room);
    assert!(endless.command_line(&"x".repeat(room)).is_err());
}

#[test]
fn what_is_placed_of_a_damaged_image_lies_in_ram_and_its_parts_do_not_overlap() {
    let mut random = Random::new(2);
    let (mut placed, mut refused, mut damaged) = (0, 0, 0);
    for _ in 0..50_000 {
        let mut head = debian();
        for _ in 0..random.below(8) {
            let at = 0x1f1 + random.index(0x80);
            head[at] = random.byte();
        }
        head.truncate(random.index(2 * HEAD_LEN));
        let len = head.len() as u64 + random.magnitude(40);
        let Ok(header) = SetupHeader::parse(&head, len) else {
            damaged += 1;
            continue;
        };
        assert!(header.payload().end <= len);
        let ram = memory(2 + random.below(5000) * 2);
        let is_in_ram = |range: &std::ops::Range<u64>| {
            ram.iter()
                .any(|piece| piece.guest <= range.start && range.end <= piece.end())
        };
        let initrd_len = random.magnitude(34);
        let Ok(placement) = place(&header, &ram, initrd_len) else {
            refused += 1;
            continue;
        };
        placed += 1;
        let kernel = &placement.kernel;
        assert!(is_in_ram(kernel) && kernel.contains(&placement.entry));
        let initrd = placement.initrd.clone().unwrap_or(kernel.end..kernel.end);
        assert_eq!(initrd.end - initrd.start, initrd_len);
        assert!(initrd.start >= kernel.end && is_in_ram(&initrd));
        // The length, and its upper half (ramdisk_size, ext_ramdisk_size).
        let page = zero_page(&header, &placement, &e820::map(&ram), None);
        let halves = [0x21c, 0x0c4].map(|at| u64::from(dword(&page[..], at)));
        assert_eq!(halves[0] | halves[1] << 32, initrd_len);
    }
    let enough = placed > 1000 && refused > 100 && damaged > 1000;
    assert!(
        enough,
        "{placed} placed, {refused} refused, {damaged} damaged"
    );
}
