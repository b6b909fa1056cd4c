//! The differentiated system description table: every device that the guest cannot find by itself, in `\_SB`, and soft-off.

use acpi_tables::{
    Aml,
    aml::{Name, Package, Scope},
    sdt::Sdt,
};

use super::{
    AcpiConfig, DSDT_REVISION, HEADER_LEN, OEM, OEM_REVISION, OEM_TABLE, bytes, devices, pci,
};
use crate::layout::SLEEP_TYPE_S5;

pub(super) fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    let devices = [
        pci::root(config),
        devices::motherboard(),
        devices::serial_port(),
        devices::clock(),
        devices::panic_port(),
        devices::power_button(),
        devices::event_device(),
        match config.has_fw_cfg {
            true => devices::firmware_configuration(),
            false => Vec::new(),
        },
    ];
    let mut dsdt = Sdt::new(
        *b"DSDT",
        HEADER_LEN,
        DSDT_REVISION,
        OEM,
        OEM_TABLE,
        OEM_REVISION,
    );
    dsdt.append_slice(&Scope::raw("\\_SB_".into(), devices.concat()));
    dsdt.append_slice(&bytes(&soft_off()));
    dsdt.as_slice().to_vec()
}

/// `_S5`, the only sleep state (ACPI 6.5 §7.4.2): what goes into SLP_TYP; the rest is reserved.
fn soft_off() -> impl Aml {
    let zero: u8 = 0;
    let values = Package::new(vec![&SLEEP_TYPE_S5, &zero, &zero, &zero]);
    Name::new("_S5_".into(), &values)
}
