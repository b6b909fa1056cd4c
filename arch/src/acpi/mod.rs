//! The ACPI tables: how the guest learns what there is. ACPI 6.5; PCI Firmware 3.3 for MCFG and `_OSC`.
//!
//! Hardware-reduced ACPI (ACPI 6.5 §4.1): no PM timer, no SMI, no fixed buttons; Linux then also leaves the 8259 and the 8254 alone.
//! Left out: processor objects (the MADT names them all, and there is no power state to describe), FACS, HPET.

mod devices;
mod dsdt;
mod pci;

#[cfg(test)]
mod tests;

use std::ops::Range;

use acpi_tables::{
    Aml,
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    mcfg::MCFG,
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};

use crate::{
    cpuid::topology::Topology,
    layout::{self, ECAM, ECAM_LAST_BUS, IOAPIC, LAPIC, RSDP},
};

const OEM: [u8; 6] = *b"VIADCT";
const OEM_TABLE: [u8; 8] = *b"VIADUCT ";
const OEM_REVISION: u32 = 1;

const HEADER_LEN: u32 = 36;
/// 2 and later: integers have 64 bits (ACPI 6.5 §5.2.11.1).
const DSDT_REVISION: u8 = 2;
/// As of ACPI 6.3; nothing newer is in it.
const MADT_REVISION: u8 = 5;
/// Each table starts on its own cache line.
const TABLE_ALIGN: u64 = 64;

// MADT structures (ACPI 6.5 §5.2.12.2, .3, .7): type and length.
const LOCAL_APIC: [u8; 2] = [0, 8];
const IO_APIC: [u8; 2] = [1, 12];
const LOCAL_APIC_NMI: [u8; 2] = [4, 6];
const ENABLED: u32 = 1;
const ALL_PROCESSORS: u8 = 0xff;

/// FADT, IA-PC boot architecture flags (ACPI 6.5 §5.2.9.3): do not probe for VGA. The clear bits say as much: no 8042 and no
/// other device on ISA that ACPI does not name, MSI allowed, the CMOS clock is there.
const NO_VGA: u16 = 1 << 2;

/// The CMOS clock's register for the century.
const RTC_CENTURY: u8 = 0x32;

/// What differs from guest to guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiConfig {
    /// The vCPUs; [`layout::MAX_CPUS`] at most.
    pub topology: Topology,
    /// Where 64-bit BARs go: [`layout::high_window`].
    pub memory64: Range<u64>,
    /// Whether a card answers at the legacy VGA addresses.
    pub has_vga: bool,
    /// Whether the firmware configuration device is there.
    pub has_fw_cfg: bool,
}

/// The tables, ready to be written to guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiTables {
    /// Where the root pointer is, as the boot protocols want to know.
    pub rsdp_address: u64,
    /// What goes where.
    pub blobs: Vec<(u64, Vec<u8>)>,
}

/// The tables of a guest.
pub fn tables(config: &AcpiConfig) -> AcpiTables {
    let mut area = Area {
        next: RSDP + TABLE_ALIGN,
        blobs: Vec::new(),
    };
    let dsdt = area.place(dsdt::dsdt(config));
    let fadt = area.place(fadt(dsdt, config.has_vga));
    let madt = area.place(madt(config.topology));
    let mcfg = area.place(mcfg());

    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = area.place(bytes(&xsdt));
    area.blobs.push((RSDP, bytes(&Rsdp::new(OEM, xsdt))));
    AcpiTables {
        rsdp_address: RSDP,
        blobs: area.blobs,
    }
}

/// Hands out addresses behind the RSDP.
struct Area {
    next: u64,
    blobs: Vec<(u64, Vec<u8>)>,
}

impl Area {
    fn place(&mut self, table: Vec<u8>) -> u64 {
        let address = self.next;
        let end = address + table.len() as u64;
        let limit = layout::SMBIOS_TABLE.start;
        assert!(end <= limit, "ACPI tables up to {end:#x}");
        self.next = end.next_multiple_of(TABLE_ALIGN);
        self.blobs.push((address, table));
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64, has_vga: bool) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::ResetRegSup)
        // Set means absent: no fixed power and sleep buttons, no fixed RTC wake-up.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc);
    fadt.iapc_boot_arch = if has_vga { 0 } else { NO_VGA }.into();
    fadt.century = RTC_CENTURY;
    fadt.reset_reg = port(layout::RESET.start);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_REGISTERS.start);
    fadt.sleep_status_reg = port(layout::SLEEP_REGISTERS.start + 1);
    bytes(&fadt.finalize())
}

/// A one-byte register at an I/O port.
fn port(number: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        number.into(),
    )
}

/// Processors, the I/O APIC, and NMI on every processor's LINT1. No source overrides: with a hardware-reduced platform there are no
/// ISA interrupts, every device's GSI stands in the DSDT. acpi_tables knows too few structures, so they are spelled here.
fn madt(topology: Topology) -> Vec<u8> {
    let mut madt = Sdt::new(
        *b"APIC",
        HEADER_LEN,
        MADT_REVISION,
        OEM,
        OEM_TABLE,
        OEM_REVISION,
    );
    madt.append_slice(&low_address(LAPIC.start));
    // Flags: no 8259 pair to disable.
    madt.append_slice(&0_u32.to_le_bytes());
    // Linux numbers its CPUs in this order, so that vCPU 1 is its CPU 1.
    let ids = topology.apic_ids().map_while(|id| u8::try_from(id).ok());
    for (number, id) in (0..u8::MAX).zip(ids) {
        madt.append_slice(&LOCAL_APIC);
        madt.append_slice(&[number, id]);
        madt.append_slice(&ENABLED.to_le_bytes());
    }
    madt.append_slice(&IO_APIC);
    // ID (KVM's power-on value) and a reserved byte, then address and first GSI.
    madt.append_slice(&[0, 0]);
    madt.append_slice(&low_address(IOAPIC.start));
    madt.append_slice(&0_u32.to_le_bytes());
    madt.append_slice(&LOCAL_APIC_NMI);
    // Flags (polarity and trigger as the bus has them) and the pin.
    madt.append_slice(&[ALL_PROCESSORS, 0, 0, 1]);
    madt.as_slice().to_vec()
}

/// An address below 4 GiB.
fn low_address(address: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = address.to_le_bytes();
    [a, b, c, d]
}

fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(ECAM.start, 0, 0, ECAM_LAST_BUS);
    bytes(&mcfg)
}
