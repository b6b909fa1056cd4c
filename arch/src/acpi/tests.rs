use std::process::Command;

use super::*;

fn config(cpus: u32) -> AcpiConfig {
    AcpiConfig {
        cpus,
        memory64: layout::high_window(8 << 30, 40),
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn dword(table: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(table[at..at + 4].try_into().unwrap())
}

fn qword(table: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// Finds a table as an operating system does: from the RSDP by addresses.
fn find(tables: &AcpiTables, signature: &[u8; 4]) -> Vec<u8> {
    let at = |address: u64| {
        let blob = tables.blobs.iter().find(|blob| blob.0 == address);
        &blob.unwrap_or_else(|| panic!("nothing at {address:#x}")).1
    };
    let rsdp = at(tables.rsdp_address);
    let xsdt = at(qword(rsdp, 24));
    if signature == b"DSDT" {
        return at(qword(&find(tables, b"FACP"), 140)).clone();
    }
    let entries = xsdt[36..].chunks(8).map(|entry| at(qword(entry, 0)));
    let mut found = entries.filter(|table| table.starts_with(signature));
    found.next().unwrap().clone()
}

#[test]
fn every_table_has_its_length_and_a_checksum_of_zero() {
    let tables = tables(&config(4));
    for (address, table) in &tables.blobs {
        assert_eq!(sum(table), 0, "{address:#x}");
        if *address == tables.rsdp_address {
            assert!(table.starts_with(b"RSD PTR ") && sum(&table[..20]) == 0);
        } else {
            assert_eq!(dword(table, 4) as usize, table.len());
        }
    }
}

#[test]
fn tables_do_not_overlap_and_fit_even_with_254_cpus() {
    let mut blobs = tables(&config(254)).blobs;
    blobs.sort_unstable();
    let end = |blob: &(u64, Vec<u8>)| blob.0 + blob.1.len() as u64;
    assert!(blobs.windows(2).all(|two| end(&two[0]) <= two[1].0));
    assert!(blobs[0].0 == layout::ACPI_TABLES.start && end(&blobs[5]) <= RESET_VECTOR);
}

#[test]
fn the_madt_names_every_processor_once() {
    for cpus in [1, 2, 254] {
        let madt = find(&tables(&config(cpus)), b"APIC");
        assert_eq!(dword(&madt, 36), 0xfee0_0000);
        let mut rest = &madt[44..];
        let mut ids = Vec::new();
        let mut others = Vec::new();
        while let [kind, len, ..] = *rest {
            match kind {
                0 => ids.push(u32::from(rest[3])),
                _ => others.push(rest[..len.into()].to_vec()),
            }
            rest = &rest[len.into()..];
        }
        assert!(ids.into_iter().eq(0..cpus));
        let ioapic = vec![1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];
        assert_eq!(others, [ioapic, vec![4, 6, 0xff, 0, 0, 1]]);
    }
}

#[test]
fn the_fadt_describes_a_reduced_platform_with_reset_and_sleep_registers() {
    let fadt = find(&tables(&config(1)), b"FACP");
    assert_eq!(dword(&fadt, 112) & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
    let register = |at: usize| (fadt[at], fadt[at + 1], qword(&fadt, at + 4));
    assert_eq!((register(116), fadt[128]), ((1, 8, 0xcf9), 6));
    assert_eq!(register(244), (1, 8, 0x600));
    assert_eq!(register(256), (1, 8, 0x601));
}

#[test]
fn the_mcfg_has_bus_0() {
    let mcfg = find(&tables(&config(1)), b"MCFG");
    assert_eq!(qword(&mcfg, 44), ECAM.start);
    assert_eq!(mcfg[52..56], [0, 0, 0, 0]);
}

#[test]
fn a_guest_without_room_for_high_bars_has_one_window_less() {
    let with = find(&tables(&config(1)), b"DSDT");
    let none = AcpiConfig {
        cpus: 1,
        memory64: 0..0,
    };
    let without = find(&tables(&none), b"DSDT");
    // A QWord address space descriptor is 46 bytes long.
    assert_eq!(with.len() - without.len(), 46);
}

#[test]
fn the_ports_for_bars_are_those_of_the_layout_and_no_more() {
    let dsdt = find(&tables(&config(1)), b"DSDT");
    // WordIO: tag, length, type I/O, two bytes of flags, granularity, first, last.
    let found = dsdt
        .windows(12)
        .filter(|window| window[..4] == [0x88, 0x0d, 0, 1]);
    let found: Vec<_> = found
        .map(|w| (word(w, 8), word(w, 10)))
        .map(|(first, last)| u32::from(first)..u32::from(last) + 1)
        .collect();
    assert_eq!(found, [layout::PCI_IO]);
}

#[test]
fn the_dsdt_routes_every_pin_as_the_layout_says() {
    let dsdt = find(&tables(&config(1)), b"DSDT");
    // Package(4) { 0x0006ffff, 1, 0, gsi }: slot 6, INTB.
    let gsi = u8::try_from(layout::intx_gsi(6, 2)).unwrap();
    let entry = [0x0c, 0xff, 0xff, 0x06, 0x00, 0x01, 0x00, 0x0a, gsi];
    assert!(dsdt.windows(entry.len()).any(|window| window == entry));
}

#[test]
fn iasl_has_nothing_to_complain_about() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED (iasl is not installed; it is in acpica-tools)");
        return;
    }
    let folder = std::env::temp_dir().join(format!("viaduct-acpi-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let iasl = |options: &[&str]| {
        let run = Command::new("iasl")
            .args(options)
            .current_dir(&folder)
            .output();
        let run = run.unwrap();
        let said = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
        assert!(run.status.success(), "{said}");
        said
    };
    for (_, table) in &tables(&config(4)).blobs[..5] {
        std::fs::write(folder.join("table.dat"), table).unwrap();
        let said = iasl(&["-d", "table.dat"]).to_lowercase();
        assert!(
            !said.contains("invalid") && !said.contains("error"),
            "{said}"
        );
        if table.starts_with(b"DSDT") {
            let said = iasl(&["table.dsl"]);
            assert!(said.contains("0 Errors, 0 Warnings, 0 Remarks"), "{said}");
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}
