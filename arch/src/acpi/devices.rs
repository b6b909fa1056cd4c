//! What is not PCI, as devices of the DSDT. Each function is one device, in AML.

use std::ops::Range;

use acpi_tables::{
    Aml,
    aml::{
        And, Arg, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
        FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion,
        OpRegionSpace, Path, ResourceTemplate, Store,
    },
};

use super::bytes;
use crate::layout::{
    COM1, COM1_GSI, ECAM, FW_CFG, GED, GED_GSI, GED_POWER_BUTTON, POWER_PORTS, PVPANIC, RTC,
};

/// The power button's notification: it was pressed (ACPI 6.5 §5.6.6).
const BUTTON_PRESSED: u8 = 0x80;

/// Addresses that belong to nobody else. Linux trusts the MCFG only if the ECAM is among them (PCI Firmware 3.3 §4.1.2).
pub(super) fn motherboard() -> Vec<u8> {
    let ecam_start = u32::try_from(ECAM.start).unwrap_or_default();
    let ecam_len = u32::try_from(ECAM.end - ECAM.start).unwrap_or_default();
    let ecam = Memory32Fixed::new(true, ecam_start, ecam_len);
    let power = io(POWER_PORTS);
    let resources = ResourceTemplate::new(vec![&ecam, &power]);
    device("MBRD", &EISAName::new("PNP0C02"), &[&crs(&resources)])
}

/// A 16550.
pub(super) fn serial_port() -> Vec<u8> {
    let ports = io(COM1);
    let interrupt = edge(COM1_GSI);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    device("COM1", &EISAName::new("PNP0501"), &[&crs(&resources)])
}

/// The CMOS clock. Without an interrupt: it has no alarm, and Linux polls a clock that says so.
pub(super) fn clock() -> Vec<u8> {
    let ports = io(RTC);
    let resources = ResourceTemplate::new(vec![&ports]);
    device("RTC_", &EISAName::new("PNP0B00"), &[&crs(&resources)])
}

/// QEMU's pvpanic, by QEMU's name, for which Linux has a driver.
pub(super) fn panic_port() -> Vec<u8> {
    let port = io(PVPANIC);
    let resources = ResourceTemplate::new(vec![&port]);
    device("PEVT", &"QEMU0001", &[&crs(&resources)])
}

/// QEMU's firmware configuration device, by QEMU's name.
pub(super) fn firmware_configuration() -> Vec<u8> {
    let ports = io(FW_CFG);
    let resources = ResourceTemplate::new(vec![&ports]);
    device("FWCF", &"QEMU0002", &[&crs(&resources)])
}

/// A power button without fixed hardware: the event device tells of it.
pub(super) fn power_button() -> Vec<u8> {
    device("PWRB", &EISAName::new("PNP0C0C"), &[])
}

/// The generic event device (ACPI 6.5 §5.6.9): one interrupt, and a register that says what for.
pub(super) fn event_device() -> Vec<u8> {
    let interrupt = edge(GED_GSI);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    let (port, len) = (GED.start, GED.end - GED.start);
    let region = OpRegion::new("EREG".into(), OpRegionSpace::SystemIO, &port, &len);
    let field = Field::new(
        "EREG".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"EVTS", 8)],
    );

    // One read takes all events, since reading clears them.
    let (pending, events) = (Local(0), Path::new("EVTS"));
    let take = Store::new(&pending, &events);
    let (bit, which) = (Local(1), GED_POWER_BUTTON);
    let test = And::new(&bit, &pending, &which);
    let pressed = Equal::new(&bit, &which);
    let (button, code) = (Path::new("\\_SB_.PWRB"), BUTTON_PRESSED);
    let notify = Notify::new(&button, &code);
    let if_pressed = If::new(&pressed, vec![&notify]);

    let (interrupt, raised) = (Arg(0), GED_GSI);
    let ours = Equal::new(&interrupt, &raised);
    let if_ours = If::new(&ours, vec![&take, &test, &if_pressed]);
    let event = Method::new("_EVT".into(), 1, true, vec![&if_ours]);
    device(
        "GED_",
        &"ACPI0013",
        &[&crs(&resources), &region, &field, &event],
    )
}

fn device(name: &str, hid: &dyn Aml, children: &[&dyn Aml]) -> Vec<u8> {
    let hid = Name::new("_HID".into(), hid);
    let zero: u8 = 0;
    let uid = Name::new("_UID".into(), &zero);
    let mut all: Vec<&dyn Aml> = vec![&hid, &uid];
    all.extend_from_slice(children);
    bytes(&Device::new(name.into(), all))
}

fn crs(resources: &ResourceTemplate<'_>) -> Name {
    Name::new("_CRS".into(), resources)
}

/// A fixed range of ports.
pub(super) fn io(ports: Range<u16>) -> IO {
    let [len, _] = (ports.end - ports.start).to_le_bytes();
    IO::new(ports.start, ports.start, 1, len)
}

/// A rising edge on an input of the I/O APIC that nobody else uses.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
