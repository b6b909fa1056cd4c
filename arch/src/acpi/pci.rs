//! The PCI host bridge as a device of the DSDT: what it decodes, how its interrupt pins are wired, what the guest may control.
//!
//! ACPI 6.5 §6.2.13 (`_PRT`), §19.6 (resources); PCI Firmware 3.3 §4.5 (`_OSC`).

use std::ops::Range;

use acpi_tables::{
    Aml,
    aml::{
        AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else,
        Equal, If, Local, Method, Name, NotEqual, Or, Package, PackageBuilder, Path,
        ResourceTemplate, Return, Store, Uuid,
    },
};

use super::{AcpiConfig, bytes, devices::io};
use crate::layout::{
    ECAM_LAST_BUS, PCI_CONFIG, PCI_IO, PCI_MMIO32, VGA_MEMORY, VGA_PORTS, intx_gsi,
};

const OSC_PCI_HOST_BRIDGE: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
const OSC_REVISION: u8 = 1;
// `_OSC`, first dword: what went wrong.
const OSC_UNKNOWN_UUID: u8 = 1 << 2;
const OSC_UNKNOWN_REVISION: u8 = 1 << 3;
const OSC_CAPABILITIES_MASKED: u8 = 1 << 4;
/// `_OSC`, control field, what the guest may have: PME (bit 2), AER (3), the PCIe capability (4), LTR (5). Not hot-plug of either
/// kind (0, 1): slots are hot-plugged by ACPI.
const OSC_GRANTED: u8 = 0b11_1100;

/// The last slot of a bus.
const LAST_SLOT: u8 = 31;

pub(super) fn root(config: &AcpiConfig) -> Vec<u8> {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let zero: u8 = 0;
    let numbers = ["_UID", "_SEG", "_BBN"].map(|name| Name::new(name.into(), &zero));
    let [uid, segment, bus] = &numbers;
    let crs = resources(config);
    let prt = routing();
    let osc = control();
    let osc = Raw(osc);
    bytes(&Device::new(
        "PCI0".into(),
        vec![&hid, &cid, uid, segment, bus, &crs, &prt, &osc],
    ))
}

/// AML that is made already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// `_CRS`: the bus, the configuration ports, and the windows that BARs can be in. The windows are not marked prefetchable: a BAR
/// that is not must be allowed into the high one too. What is forwarded is exactly what is said here: a BAR that a guest moved
/// elsewhere would answer nowhere. The legacy VGA addresses are not for BARs; they are named for the card that brings them.
fn resources(config: &AcpiConfig) -> Name {
    let buses = AddressSpace::new_bus_number(0_u16, ECAM_LAST_BUS.into());
    let config_ports = io(PCI_CONFIG);
    let word = |port: u32| u16::try_from(port).unwrap_or(u16::MAX);
    let ports = AddressSpace::new_io(word(PCI_IO.start), word(PCI_IO.end - 1), None);
    let mut all: Vec<&dyn Aml> = vec![&buses, &config_ports, &ports];
    let vga_ports = VGA_PORTS.map(|range| AddressSpace::new_io(range.start, range.end - 1, None));
    let (vga, memory32) = (memory(&VGA_MEMORY), memory(&PCI_MMIO32));
    if config.has_vga {
        all.extend(vga_ports.iter().map(|ports| ports as &dyn Aml));
        all.push(&vga);
    }
    all.push(&memory32);
    let high = &config.memory64;
    let memory64 = (!high.is_empty()).then(|| {
        let cacheable = AddressSpaceCacheable::NotCacheable;
        AddressSpace::new_memory(cacheable, true, high.start, high.end - 1, None)
    });
    all.extend(memory64.iter().map(|window| window as &dyn Aml));
    Name::new("_CRS".into(), &ResourceTemplate::new(all))
}

/// A window of memory below 4 GiB.
fn memory(range: &Range<u64>) -> AddressSpace<u32> {
    let low = |address: u64| u32::try_from(address).unwrap_or(u32::MAX);
    let cacheable = AddressSpaceCacheable::NotCacheable;
    AddressSpace::new_memory(cacheable, true, low(range.start), low(range.end - 1), None)
}

/// `_PRT`: each slot's four pins, wired to inputs of the I/O APIC for good.
fn routing() -> Name {
    let mut entries = PackageBuilder::new();
    for device in 1..=LAST_SLOT {
        for pin in 0..4_u8 {
            // All functions of the device.
            let address = u32::from(device) << 16 | 0xffff;
            let (no_link, gsi) = (0_u8, intx_gsi(device, pin + 1));
            entries.add_element(&Package::new(vec![&address, &pin, &no_link, &gsi]));
        }
    }
    Name::new("_PRT".into(), &entries)
}

/// `_OSC`: which features the guest drives itself.
fn control() -> Vec<u8> {
    let (uuid, revision, capabilities) = (Arg(0), Arg(1), Arg(3));
    let (status, control, wanted) = (Path::new("CDW1"), Path::new("CDW3"), Local(0));
    let (status_at, control_at) = (0_u8, 8_u8);
    let status_field = CreateDWordField::new(&status, &capabilities, &status_at);
    let control_field = CreateDWordField::new(&control, &capabilities, &control_at);

    let known_revision = OSC_REVISION;
    let other_revision = NotEqual::new(&revision, &known_revision);
    let say_revision = Or::new(&status, &status, &OSC_UNKNOWN_REVISION);
    let if_revision = If::new(&other_revision, vec![&say_revision]);

    let save = Store::new(&wanted, &control);
    let grant = And::new(&control, &control, &OSC_GRANTED);
    let cut = NotEqual::new(&control, &wanted);
    let say_cut = Or::new(&status, &status, &OSC_CAPABILITIES_MASKED);
    let if_cut = If::new(&cut, vec![&say_cut]);

    let pci = Uuid::new(OSC_PCI_HOST_BRIDGE);
    let is_pci = Equal::new(&uuid, &pci);
    let if_pci = If::new(
        &is_pci,
        vec![&control_field, &if_revision, &save, &grant, &if_cut],
    );
    let say_uuid = Or::new(&status, &status, &OSC_UNKNOWN_UUID);
    let otherwise = Else::new(vec![&say_uuid]);
    let answer = Return::new(&capabilities);
    // Serialized, because it makes named fields.
    bytes(&Method::new(
        "_OSC".into(),
        4,
        true,
        vec![&status_field, &if_pci, &otherwise, &answer],
    ))
}
