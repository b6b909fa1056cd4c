use super::*;
use crate::ram;

const UUID: [u8; 16] = [
    0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
];

fn config() -> SmbiosConfig {
    SmbiosConfig {
        serial: "42".to_owned(),
        uuid: Some(UUID),
        oem_strings: vec!["one".to_owned(), "two=2".to_owned()],
        ..SmbiosConfig::default()
    }
}

fn made(config: &SmbiosConfig) -> Vec<(u64, Vec<u8>)> {
    tables(config, &ram::plan(5 << 30, &[]).unwrap()).unwrap()
}

/// A structure as whoever walks the table finds it.
struct Found {
    kind: u8,
    formatted: Vec<u8>,
    strings: Vec<String>,
}

/// Each structure has its length, and its strings end with two NULs.
fn walk(table: &[u8]) -> Vec<Found> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < table.len() {
        let len = usize::from(table[at + 1]);
        let formatted = table[at..at + len].to_vec();
        let rest = &table[at + len..];
        let end = rest.windows(2).position(|two| two == [0, 0]).unwrap();
        let strings = rest[..end].split(|byte| *byte == 0);
        let strings = strings
            .filter(|text| !text.is_empty())
            .map(|text| String::from_utf8(text.to_vec()).unwrap());
        found.push(Found {
            kind: table[at],
            strings: strings.collect(),
            formatted,
        });
        at += len + end + 2;
    }
    assert_eq!(
        at,
        table.len(),
        "the last structure ends where the table does"
    );
    found
}

fn of(found: &[Found], kind: u8) -> &Found {
    found.iter().find(|one| one.kind == kind).unwrap()
}

#[test]
fn the_entry_point_is_where_linux_looks_and_names_the_table() {
    let blobs = made(&config());
    let (at, entry) = &blobs[0];
    assert!((0xf_0000..0x10_0000).contains(at) && at % 16 == 0);
    assert_eq!(&entry[..5], b"_SM3_");
    assert_eq!(usize::from(entry[6]), entry.len());
    let sum = entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!(sum, 0);
    let (table_at, table) = &blobs[1];
    assert_eq!(entry[16..24], table_at.to_le_bytes());
    assert_eq!(
        entry[12..16],
        u32::try_from(table.len()).unwrap().to_le_bytes()
    );
}

#[test]
fn every_structure_has_the_length_of_its_version_and_a_handle_of_its_own() {
    let blobs = made(&config());
    let found = walk(&blobs[1].1);
    // As of SMBIOS 3.0.
    let lengths = [
        (0, 0x18),
        (1, 0x1b),
        (3, 0x16),
        (11, 5),
        (16, 0x17),
        (17, 0x28),
        (19, 0x1f),
        (19, 0x1f),
        (32, 0xb),
        (127, 4),
    ];
    let seen: Vec<_> = found
        .iter()
        .map(|one| (one.kind, one.formatted.len()))
        .collect();
    assert_eq!(seen, lengths);
    let mut handles: Vec<_> = found
        .iter()
        .map(|one| one.formatted[2..4].to_vec())
        .collect();
    handles.sort_unstable();
    handles.dedup();
    assert_eq!(handles.len(), lengths.len());
}

#[test]
fn the_system_is_named_and_has_the_uuid_that_was_asked_for() {
    let blobs = made(&config());
    let found = walk(&blobs[1].1);
    let system = of(&found, 1);
    assert_eq!(system.strings, ["Viaduct", "Virtual Machine", "42"]);
    assert_eq!(system.formatted[4..8], [1, 2, 0, 3]);
    let uuid = [
        0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee,
        0xff,
    ];
    assert_eq!(system.formatted[8..24], uuid);
    // DSP0134 3.0 §7.1.1: the characteristics are not supported.
    assert_eq!(of(&found, 0).formatted[10..18], 8_u64.to_le_bytes());
    // systemd-detect-virt(1) looks at this bit.
    assert_eq!(of(&found, 0).formatted[0x13] & 1 << 4, 1 << 4);
}

#[test]
fn oem_strings_are_there_in_their_order_and_without_any_there_is_no_structure() {
    let blobs = made(&config());
    let found = walk(&blobs[1].1);
    assert_eq!(of(&found, 11).strings, ["one", "two=2"]);
    assert_eq!(of(&found, 11).formatted[4], 2);
    let none = made(&SmbiosConfig::default());
    let found = walk(&none[1].1);
    assert!(!found.is_empty() && found.iter().all(|one| one.kind != 11));
}

#[test]
fn the_memory_structures_tell_of_all_memory() {
    let blobs = made(&config());
    let found = walk(&blobs[1].1);
    assert_eq!(
        of(&found, 16).formatted[15..23],
        (5_u64 << 30).to_le_bytes()
    );
    assert_eq!(of(&found, 17).formatted[28..32], 5120_u32.to_le_bytes());
    let mapped: Vec<_> = found.iter().filter(|one| one.kind == 19).collect();
    assert_eq!(mapped[0].formatted[15..23], 0_u64.to_le_bytes());
    assert_eq!(mapped[1].formatted[15..23], (4_u64 << 30).to_le_bytes());
    // The last byte of each range (DSP0134 3.0 §7.20, "Extended Ending Address").
    for (one, end) in mapped.iter().zip([3_u64 << 30, 6 << 30]) {
        assert_eq!(one.formatted[23..31], (end - 1).to_le_bytes());
    }
}

#[test]
fn the_table_may_fill_its_room_to_the_last_byte() {
    let ram = ram::plan(64 << 20, &[]).unwrap();
    let room = usize::try_from(SMBIOS_TABLE.end - SMBIOS_TABLE.start).unwrap();
    let of = |len: usize| {
        let config = SmbiosConfig {
            oem_strings: vec!["x".repeat(len)],
            ..SmbiosConfig::default()
        };
        tables(&config, &ram).map(|blobs| blobs[1].1.len())
    };
    let rest = of(1).unwrap() - 1;
    assert_eq!(of(room - rest), Ok(room));
    assert_eq!(
        of(room - rest + 1),
        Err(SmbiosError::TooLarge {
            len: room + 1,
            room
        })
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let ram = ram::plan(64 << 20, &[]).unwrap();
    let large = SmbiosConfig {
        oem_strings: vec!["x".repeat(40_000)],
        ..SmbiosConfig::default()
    };
    assert!(matches!(tables(&large, &ram), Err(SmbiosError::TooLarge { len, .. }) if len > 40_000));
    let many = SmbiosConfig {
        oem_strings: vec!["x".to_owned(); 256],
        ..SmbiosConfig::default()
    };
    assert_eq!(tables(&many, &ram), Err(SmbiosError::TooMany(256)));
    let most = SmbiosConfig {
        oem_strings: vec!["x".to_owned(); 255],
        ..SmbiosConfig::default()
    };
    let found = walk(&tables(&most, &ram).unwrap()[1].1);
    assert_eq!(of(&found, 11).strings.len(), 255);
}
