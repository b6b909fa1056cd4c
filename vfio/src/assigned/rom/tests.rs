use std::io::Write;

use super::*;
use crate::assigned::{fake::FakeHost, random::Random};

const ROM: u32 = 6;
const IDS: [u8; 4] = [0x86, 0x80, 0xca, 0x10];

/// A ROM of one PC-compatible image for the device `ids`, 1 KiB of code in 2 KiB of ROM.
fn image(ids: [u8; 4]) -> Vec<u8> {
    let mut rom = vec![0xff; 2048];
    rom[..1024].fill(0x90);
    rom[..3].copy_from_slice(&[0x55, 0xaa, 2]);
    rom[0x18..0x1a].copy_from_slice(&[0x40, 0]);
    rom[0x40..0x44].copy_from_slice(b"PCIR");
    rom[0x44..0x48].copy_from_slice(&ids);
    rom[0x54] = 0;
    rom
}

fn find(host: FakeHost, wanted: &Rom) -> (Arc<FakeHost>, Option<Arc<ExpansionRom>>) {
    let host = Arc::new(host);
    let behind: Arc<dyn HostFunction> = host.clone();
    let name = Assignable::Function("03:10.3".parse().unwrap());
    let found = ExpansionRom::find(&behind, &name, &IDS, wanted).unwrap();
    (host, found)
}

fn read<const N: usize>(rom: &ExpansionRom, offset: u64) -> [u8; N] {
    let mut data = [0; N];
    rom.read(offset, &mut data);
    data
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn refused(bytes: &[u8]) -> String {
    read_file(file(bytes).path()).unwrap_err().to_string()
}

#[test]
fn the_devices_own_rom_is_read_at_the_first_access_and_only_then() {
    let (host, rom) = find(
        FakeHost::default().with_region(ROM, image(IDS), false),
        &Rom::On,
    );
    let rom = rom.unwrap();
    assert_eq!(rom.spec().size, 2048);
    host.bytes(ROM)[0x100] = 0x12;
    assert_eq!(read(&rom, 0x0ff), [0x90, 0x12]);
    host.bytes(ROM)[0x100] = 0x34;
    assert_eq!(read(&rom, 0x0ff), [0x90, 0x12]);
    assert_eq!(rom.write(0x100, &[0; 4]), Action::None);
    assert_eq!(read(&rom, 0x100), [0x12]);
    assert_eq!(read(&rom, 2046), [0xff; 4]);
    assert_eq!(read(&rom, u64::MAX), [0xff; 8]);
}

#[test]
fn a_rom_that_cannot_be_read_is_all_ones_until_it_can() {
    let host = FakeHost::default().with_region(ROM, image(IDS), false);
    let (host, rom) = find(host, &Rom::On);
    let rom = rom.unwrap();
    host.is_gone
        .store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(read(&rom, 0), [0xff; 4]);
    host.is_gone
        .store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(read(&rom, 0), [0x55, 0xaa]);
}

#[test]
fn a_device_without_a_rom_or_with_an_impossible_one_has_none() {
    assert!(find(FakeHost::default(), &Rom::On).1.is_none());
    let host = FakeHost::default().with_region(ROM, vec![0; (16 << 20) + 1], false);
    assert!(find(host, &Rom::On).1.is_none());
    let host = FakeHost::default().with_region(ROM, vec![0; 3000], false);
    assert_eq!(find(host, &Rom::On).1.unwrap().spec().size, 4096);
}

#[test]
fn rom_off_hides_it() {
    let host = FakeHost::default().with_region(ROM, image(IDS), false);
    assert!(find(host, &Rom::Off).1.is_none());
}

#[test]
fn a_file_takes_the_place_of_the_devices_own_as_it_is() {
    let other = file(&image([0x86, 0x80, 1, 2])[..1500]);
    let wanted = Rom::File(other.path().to_owned());
    let host = FakeHost::default().with_region(ROM, vec![0; 4096], false);
    let rom = find(host, &wanted).1.unwrap();
    assert_eq!(rom.spec().size, 2048);
    assert_eq!(read(&rom, 0x44), [0x86, 0x80, 1, 2]);
    assert_eq!(read(&rom, 1499), [0xff, 0xff]);
    let small = file(&[1]);
    let rom = find(FakeHost::default(), &Rom::File(small.path().to_owned())).1;
    assert_eq!(rom.unwrap().spec().size, SMALLEST);
}

#[test]
fn a_file_that_is_no_rom_is_refused_and_says_why() {
    assert_eq!(
        refused(&[]).split_once(": ").unwrap().1,
        "an expansion ROM has up to 16 MiB, this file has none\n  name a ROM image, or write rom=off"
    );
    assert!(refused(&vec![0; (16 << 20) + 1]).contains("this file has more"));
    assert!(read_file(file(&vec![0; 16 << 20]).path()).is_ok());
    let absent = read_file(Path::new("/nowhere/a.rom")).unwrap_err();
    assert!(
        absent
            .to_string()
            .starts_with("rom=/nowhere/a.rom\n  name a file")
    );
    assert!(read_file(Path::new("/")).is_err());
}

#[test]
fn a_rom_for_another_device_of_the_vendor_is_made_this_ones_and_adds_up() {
    let mut rom = image([0x86, 0x80, 0x46, 0x00]);
    name_device(&mut rom, IDS);
    assert_eq!(rom[0x44..0x48], IDS);
    let sum = rom[..1024]
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
    assert_eq!(sum, 0);
}

#[test]
fn a_rom_that_names_the_device_or_another_vendor_is_left_alone() {
    for ids in [IDS, [0x02, 0x10, 1, 2]] {
        let (before, mut rom) = (image(ids), image(ids));
        name_device(&mut rom, IDS);
        assert_eq!(rom, before);
    }
}

#[test]
fn an_efi_image_gets_the_name_but_no_checksum_into_its_header() {
    let mut rom = image([0x86, 0x80, 0x46, 0x00]);
    rom[0x54] = 3;
    let before = rom[..0x44].to_vec();
    name_device(&mut rom, IDS);
    assert_eq!((&rom[..0x44], &rom[0x44..0x48]), (&before[..], &IDS[..]));
}

#[test]
fn only_the_name_and_the_checksum_of_a_rom_of_garbage_change() {
    let mut random = Random::new(5);
    let (mut renamed, mut summed) = (0, 0);
    for len in (0..0x200).chain([2048, 4096].repeat(500)) {
        let mut rom: Vec<u8> = (0..len).map(|_| random.byte()).collect();
        for at in [0, 1] {
            if let Some(byte) = rom.get_mut(at) {
                *byte = SIGNATURE[at];
            }
        }
        if let Some(blocks) = rom.get_mut(2) {
            *blocks %= 12;
        }
        if let Some(pointer) = rom.get_mut(0x18..0x1a) {
            pointer.copy_from_slice(&[random.byte(), 0]);
        }
        let at = rom.get(0x18).map_or(usize::MAX / 2, |&at| at.into());
        if let Some(place) = rom.get_mut(at..at + 6) {
            place.copy_from_slice(b"PCIR\x86\x80");
        }
        if let Some(code_type) = rom.get_mut(at + 0x14) {
            *code_type %= 2;
        }
        let before = rom.clone();
        name_device(&mut rom, IDS);
        let changed: Vec<_> = (0..len).filter(|&at| rom[at] != before[at]).collect();
        let is_allowed = |place: &usize| *place == 6 || (at + 6..at + 8).contains(place);
        assert!(changed.iter().all(is_allowed), "{at:#x}: {changed:x?}");
        if changed.iter().any(|&place| place != 6) {
            renamed += 1;
            assert_eq!(rom[at + 4..at + 8], IDS);
        }
        if changed.contains(&6) {
            summed += 1;
            let image = &rom[..usize::from(rom[2]) * 512];
            assert_eq!(
                image
                    .iter()
                    .fold(0, |sum: u8, &byte| sum.wrapping_add(byte)),
                0
            );
        }
        let once = rom.clone();
        name_device(&mut rom, IDS);
        assert_eq!(rom, once, "it has its name already");
    }
    assert!(
        renamed > 900 && summed > 100,
        "{renamed} renamed, {summed} summed"
    );
}
