use std::process::Command;

use super::*;

fn config(cpus: u32) -> AcpiConfig {
    AcpiConfig {
        topology: Topology::of(cpus, None, None, None).unwrap(),
        memory64: layout::high_window(8 << 30, 40),
        has_vga: false,
        has_fw_cfg: false,
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
    assert!(
        blobs[0].0 == layout::ACPI_TABLES.start
            && end(&blobs[5]) <= layout::IGD_OPREGION.start.into()
    );
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
fn the_madt_has_apic_ids_with_gaps_where_the_topology_has_them() {
    let config = AcpiConfig {
        topology: Topology::of(6, Some(2), None, None).unwrap(),
        ..config(1)
    };
    let madt = find(&tables(&config), b"APIC");
    let entries = madt[44..44 + 6 * 8].chunks(8);
    let ids: Vec<_> = entries.map(|entry| (entry[2], entry[3])).collect();
    assert_eq!(ids, [(0, 0), (1, 1), (2, 2), (3, 4), (4, 5), (5, 6)]);
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
        memory64: 0..0,
        ..config(1)
    };
    let without = find(&tables(&none), b"DSDT");
    // A QWord address space descriptor is 46 bytes long.
    assert_eq!(with.len() - without.len(), 46);
}

#[test]
fn the_ports_behind_the_bridge_are_those_of_the_layout_and_no_more() {
    let bars = vec![layout::PCI_IO];
    assert_eq!(ports(&config(1)), bars);
    let vga = layout::VGA_PORTS.map(|range| range.start.into()..range.end.into());
    assert_eq!(ports(&with_vga()), [bars, vga.to_vec()].concat());
}

/// What the host bridge forwards of the ports.
fn ports(config: &AcpiConfig) -> Vec<Range<u32>> {
    let dsdt = find(&tables(config), b"DSDT");
    // WordIO: tag, length, type I/O, two bytes of flags, granularity, first, last.
    let found = dsdt
        .windows(12)
        .filter(|window| window[..4] == [0x88, 0x0d, 0, 1]);
    found
        .map(|w| (word(w, 8), word(w, 10)))
        .map(|(first, last)| u32::from(first)..u32::from(last) + 1)
        .collect()
}

#[test]
fn the_firmware_configuration_device_is_named_exactly_when_it_is_there() {
    let with = AcpiConfig {
        has_fw_cfg: true,
        ..config(1)
    };
    for (config, is_there) in [(with, true), (config(1), false)] {
        let dsdt = find(&tables(&config), b"DSDT");
        let is_named = dsdt.windows(8).any(|window| window == b"QEMU0002");
        assert_eq!(is_named, is_there);
        // IO: tag and length, 16 bits, first and last base, alignment, length.
        let ports = [0x47, 1, 0x10, 5, 0x10, 5, 1, 12];
        assert_eq!(dsdt.windows(8).any(|window| window == ports), is_there);
    }
}

fn with_vga() -> AcpiConfig {
    AcpiConfig {
        has_vga: true,
        ..config(1)
    }
}

#[test]
fn a_guest_is_told_of_vga_exactly_when_a_card_brings_it() {
    // DWordMemory: tag, length, type memory; first and last address of the frame buffer.
    let [first, last] = [layout::VGA_MEMORY.start, layout::VGA_MEMORY.end - 1];
    let addresses = [&first.to_le_bytes()[..4], &last.to_le_bytes()[..4]].concat();
    let names_memory = |config: &AcpiConfig| {
        let dsdt = find(&tables(config), b"DSDT");
        dsdt.windows(8).any(|window| window == addresses)
    };
    // FADT: the flags of the PC's architecture are at 109.
    let says_none = |config: &AcpiConfig| word(&find(&tables(config), b"FACP"), 109) & NO_VGA != 0;
    assert!(!names_memory(&config(1)) && says_none(&config(1)));
    assert!(names_memory(&with_vga()) && !says_none(&with_vga()));
}

#[test]
fn the_dsdt_routes_every_pin_as_the_layout_says() {
    let dsdt = find(&tables(&config(1)), b"DSDT");
    // Package(4) { 0x0006ffff, 1, 0, gsi }: slot 6, INTB.
    let gsi = u8::try_from(layout::intx_gsi(6, 2)).unwrap();
    let entry = [0x0c, 0xff, 0xff, 0x06, 0x00, 0x01, 0x00, 0x0a, gsi];
    assert!(dsdt.windows(entry.len()).any(|window| window == entry));
}

/// An I/O port descriptor (ACPI 6.5 §6.4.2.5): 16-bit decoding, base minimum and maximum, alignment, length.
fn port_descriptor(ports: &Range<u16>) -> Vec<u8> {
    let [low, high] = ports.start.to_le_bytes();
    let len = u8::try_from(ports.end - ports.start).unwrap();
    vec![0x47, 1, low, high, low, high, 1, len]
}

/// An extended interrupt descriptor (ACPI 6.5 §6.4.3.6) of one rising edge that the device consumes and shares with none.
fn edge_descriptor(gsi: u32) -> Vec<u8> {
    [&[0x89, 6, 0, 0b0011, 1], &gsi.to_le_bytes()[..]].concat()
}

#[test]
fn the_dsdt_has_every_device_with_the_ports_and_the_interrupt_of_the_layout() {
    let dsdt = find(&tables(&config(1)), b"DSDT");
    let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
    // Compressed EISA identifiers (ACPI 6.5 §19.3.4): PNP, then the product number.
    let pnp = |high: u8, low: u8| [0x0c, 0x41, 0xd0, high, low];
    for (name, id, resources) in [
        (
            "MBRD",
            &pnp(0x0c, 0x02)[..],
            port_descriptor(&layout::POWER_PORTS),
        ),
        ("COM1", &pnp(0x05, 0x01), port_descriptor(&layout::COM1)),
        ("COM1", &pnp(0x05, 0x01), edge_descriptor(layout::COM1_GSI)),
        ("RTC_", &pnp(0x0b, 0x00), port_descriptor(&layout::RTC)),
        ("PEVT", b"QEMU0001", port_descriptor(&layout::PVPANIC)),
        ("PWRB", &pnp(0x0c, 0x0c), b"PWRB".to_vec()),
        ("GED_", b"ACPI0013", edge_descriptor(layout::GED_GSI)),
        (
            "PCI0",
            &pnp(0x0a, 0x08),
            port_descriptor(&layout::PCI_CONFIG),
        ),
    ] {
        assert!(has(name.as_bytes()) && has(id) && has(&resources), "{name}");
    }
}

#[test]
fn the_ecam_is_reserved_in_its_full_length() {
    let dsdt = find(&tables(&config(1)), b"DSDT");
    // 32-bit fixed memory (ACPI 6.5 §6.4.3.4): tag, length, writable, base, length.
    let range = [ECAM.start, ECAM.end - ECAM.start].map(|n| u32::try_from(n).unwrap());
    let range = range.map(u32::to_le_bytes).concat();
    let descriptor = [&[0x86, 9, 0, 1], &range[..]].concat();
    assert!(dsdt.windows(12).any(|window| window == descriptor));
}

#[test]
fn the_event_register_is_one_port_long() {
    let dsdt = find(&tables(&config(1)), b"DSDT");
    let [low, high] = layout::GED.start.to_le_bytes();
    // OperationRegion(EREG, SystemIO, port, One), then a Field.
    let region = [
        &[0x5b, 0x80],
        &b"EREG"[..],
        &[1, 0x0b, low, high, 1, 0x5b, 0x81],
    ]
    .concat();
    assert!(dsdt.windows(region.len()).any(|window| window == region));
}

#[test]
fn the_guest_is_granted_aer_pme_ltr_and_the_pcie_capability_and_no_hot_plug() {
    let dsdt = find(&tables(&config(1)), b"DSDT");
    // Method(_OSC, 4, Serialized), and in it And(CDW3, granted, CDW3) (PCI Firmware 3.3 §4.5.1).
    let granted = [&[0x7b], &b"CDW3"[..], &[0x0a, 0b11_1100], b"CDW3"].concat();
    // And Or(CDW1, error, CDW1): unknown UUID, unknown revision, capabilities masked (ACPI 6.5 §6.2.11).
    let said = |bit: u8| [&[0x7d], &b"CDW1"[..], &[0x0a, bit], b"CDW1"].concat();
    for bytes in [&b"_OSC\x0c"[..], &granted, &said(4), &said(8), &said(16)] {
        assert!(dsdt.windows(bytes.len()).any(|window| window == bytes));
    }
}

#[test]
fn the_high_window_ends_at_its_last_address() {
    let dsdt = find(&tables(&config(1)), b"DSDT");
    let high = config(1).memory64;
    // QWord memory (ACPI 6.5 §6.4.3.5.1): granularity, first, last, translation, length.
    let window = [0, high.start, high.end - 1, 0, high.end - high.start];
    let window = window.map(u64::to_le_bytes).concat();
    assert!(dsdt.windows(40).any(|bytes| bytes == window));
}

#[test]
fn iasl_has_nothing_to_complain_about() {
    if Command::new("iasl").arg("-v").output().is_err() {
        return println!("SKIPPED (iasl is not installed; it is in acpica-tools)");
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
    for (_, table) in &tables(&with_vga()).blobs[..5] {
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
