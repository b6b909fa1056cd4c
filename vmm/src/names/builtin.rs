//! The names that there are without `pci.ids`: what classes are (PCI Code and ID Assignment Specification), in the short words that
//! people use, and the vendors that most devices are from.

/// What a class code of 24 bits stands for.
pub fn class(code: u32) -> &'static str {
    let [_, base, sub, interface] = code.to_be_bytes();
    match (base, sub, interface) {
        (0x01, ..) => storage(sub, interface),
        (0x0c, ..) => serial_bus(sub, interface),
        (0x00, 0x01, _) | (0x03, 0x00, _) => "VGA",
        (0x02, 0x00, _) => "Ethernet",
        (0x02, 0x07, _) => "InfiniBand",
        (0x02, 0x08, _) => "fabric",
        (0x02, ..) => "network",
        (0x03, 0x02, _) => "3D",
        (0x03, ..) => "display",
        (0x04, 0x00, _) => "video",
        (0x04, 0x01 | 0x03, _) => "audio",
        (0x04, ..) => "multimedia",
        (0x05, 0x02, _) => "CXL memory",
        (0x05, ..) => "memory",
        (0x06, 0x00, _) => "host bridge",
        (0x06, 0x01, _) => "ISA bridge",
        (0x06, 0x04 | 0x09, _) => "PCI bridge",
        (0x06, ..) => "bridge",
        (0x07, 0x00 | 0x02, _) => "serial",
        (0x07, 0x01, _) => "parallel",
        (0x07, ..) => "communication",
        (0x08, 0x05, _) => "SD host",
        (0x08, 0x06, _) => "IOMMU",
        (0x08, ..) => "system",
        (0x09, ..) => "input",
        (0x0b, ..) => "processor",
        (0x0d, 0x11, _) => "Bluetooth",
        (0x0d, ..) => "wireless",
        (0x10, ..) => "encryption",
        (0x11, ..) => "signal",
        (0x12, ..) => "accelerator",
        (0x40, ..) => "co-processor",
        _ => "other",
    }
}

fn storage(sub: u8, interface: u8) -> &'static str {
    match (sub, interface) {
        (0x00, _) => "SCSI",
        (0x01, _) => "IDE",
        (0x04, _) => "RAID",
        (0x05, _) => "ATA",
        (0x06, _) => "SATA",
        (0x07, _) => "SAS",
        (0x08, 0x02 | 0x03) => "NVMe",
        (0x09, _) => "UFS",
        _ => "storage",
    }
}

fn serial_bus(sub: u8, interface: u8) -> &'static str {
    match (sub, interface) {
        (0x00, _) => "FireWire",
        (0x03, 0x00) => "USB UHCI",
        (0x03, 0x10) => "USB OHCI",
        (0x03, 0x20) => "USB EHCI",
        (0x03, 0x30) => "USB xHCI",
        (0x03, 0x40) => "USB4",
        (0x03, _) => "USB",
        (0x04, _) => "Fibre Channel",
        (0x05, _) => "SMBus",
        (0x06, _) => "InfiniBand",
        (0x07, _) => "IPMI",
        (0x09, _) => "CAN",
        _ => "serial bus",
    }
}

/// What a vendor is called.
pub(super) fn vendor(id: u16) -> Option<&'static str> {
    Some(match id {
        0x1000 => "Broadcom/LSI",
        0x1002 | 0x1022 => "AMD",
        0x10de => "NVIDIA",
        0x10ec => "Realtek",
        0x1077 => "QLogic",
        0x1344 => "Micron",
        0x144d => "Samsung",
        0x14c3 => "MediaTek",
        0x14e4 => "Broadcom",
        0x15ad => "VMware",
        0x15b3 => "Mellanox",
        0x15b7 => "SanDisk",
        0x168c => "Qualcomm Atheros",
        0x1912 => "Renesas",
        0x1987 => "Phison",
        0x1af4 | 0x1b36 => "Red Hat",
        0x1b21 => "ASMedia",
        0x1b4b => "Marvell",
        0x1c5c => "SK hynix",
        0x1d6a => "Aquantia",
        0x1d0f => "Amazon",
        0x1e0f => "Kioxia",
        0x8086 => "Intel",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_go_by_the_words_that_people_use() {
        for (code, name) in [
            (0x02_0000, "Ethernet"),
            (0x01_0802, "NVMe"),
            (0x01_0601, "SATA"),
            (0x0c_0330, "USB xHCI"),
            (0x03_0000, "VGA"),
            (0x06_0400, "PCI bridge"),
            (0xff_0000, "other"),
        ] {
            assert_eq!(class(code), name, "{code:06x}");
        }
    }
}
