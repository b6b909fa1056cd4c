//! The cards: how each is plugged into L1, and what it does in a guest whose stock driver is left to choose.

use crate::cards::{Cards, Machine};

/// How a card interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupts {
    /// It has none.
    None,
    Intx,
    Msi,
    Msix,
}

impl Interrupts {
    /// As `lab-card` says it. A card without interrupts is one whose pin's count stays 0.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::None | Self::Intx => "intx",
            Self::Msi => "msi",
            Self::Msix => "msix",
        }
    }
}

/// One card.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Card {
    /// What it is called in a table.
    pub(crate) name: &'static str,
    /// The sentence that its scenario is named by.
    pub(crate) works_alone: &'static str,
    /// Where it is in L1.
    pub(crate) at: &'static str,
    /// What a person would use it as: the kind that `lab-card` knows.
    pub(crate) used_as: &'static str,
    /// The guest's driver; none for `edu`, which `lab-guest` drives.
    pub(crate) driver: &'static str,
    pub(crate) interrupts: Interrupts,
    /// The lab's disk on it.
    pub(crate) disk: Option<&'static str>,
    /// QEMU's arguments that plug it in, unless the example card is it.
    pub(crate) plug: &'static str,
}

pub(crate) const IGB: usize = 0;
pub(crate) const VF: usize = 1;
pub(crate) const E1000E: usize = 2;
pub(crate) const RTL8139: usize = 3;
pub(crate) const NVME: usize = 4;
pub(crate) const AHCI: usize = 5;
pub(crate) const XHCI: usize = 7;
pub(crate) const VGA: usize = 9;
pub(crate) const EDU: usize = 10;
pub(crate) const SERIAL: usize = 11;

/// L1 with all of them.
pub(crate) fn machine() -> Machine {
    // The serial card's wire leads to L1's second serial port. QEMU's end of both is a socket of this process's.
    let wire = format!(
        "socket,abstract=on,path=viaduct-lab-{}-wire",
        std::process::id()
    );
    let cards = Cards::sriov().with(&format!(
        "-chardev {wire},id=wire,server=on,wait=off -chardev {wire},id=wire-end"
    ));
    let plug = |cards: Cards, card: &Card| {
        let cards = cards.with(card.plug);
        match card.disk {
            Some(disk) => cards.with_disk(disk),
            None => cards,
        }
    };
    Machine::with_cards(CARDS.iter().fold(cards, plug))
}

/// One of each class.
pub(crate) const CARDS: [Card; 12] = [
    Card {
        name: "igb",
        works_alone: "an igb works alone in a guest",
        at: "0000:03:00.0",
        used_as: "nic",
        driver: "igb",
        interrupts: Interrupts::Msix,
        disk: None,
        plug: "",
    },
    Card {
        name: "igb VF",
        works_alone: "a VF of an igb works alone in a guest",
        at: "0000:03:10.1",
        used_as: "nic",
        driver: "igbvf",
        interrupts: Interrupts::Msix,
        disk: None,
        plug: "",
    },
    Card {
        name: "e1000e",
        works_alone: "an e1000e works alone in a guest",
        at: "0000:04:00.0",
        used_as: "nic",
        driver: "e1000e",
        interrupts: Interrupts::Msix,
        disk: None,
        plug: "-device pcie-root-port,id=rp4,chassis=4,addr=05.0 \
               -netdev user,id=n4,net=10.0.4.0/24 -device e1000e,bus=rp4,netdev=n4",
    },
    Card {
        name: "rtl8139",
        works_alone: "an rtl8139 works alone in a guest",
        at: "0000:00:08.0",
        used_as: "nic",
        driver: "8139cp",
        interrupts: Interrupts::Intx,
        disk: None,
        plug: "-netdev user,id=n8,net=10.0.8.0/24 -device rtl8139,netdev=n8,addr=08.0",
    },
    Card {
        name: "nvme",
        works_alone: "an NVMe disk works alone in a guest, and keeps what was written",
        at: "0000:05:00.0",
        used_as: "disk",
        driver: "nvme",
        interrupts: Interrupts::Msix,
        disk: Some("nvme"),
        plug: "-device pcie-root-port,id=rp5,chassis=5,addr=06.0 \
               -device nvme,bus=rp5,drive=nvme,serial=lab",
    },
    Card {
        name: "ahci",
        works_alone: "an AHCI controller works alone in a guest, and its disk keeps what was written",
        at: "0000:00:09.0",
        used_as: "disk",
        driver: "ahci",
        interrupts: Interrupts::Msi,
        disk: Some("sata"),
        plug: "-device ahci,id=ahci,addr=09.0 -device ide-hd,bus=ahci.0,drive=sata",
    },
    Card {
        name: "megasas",
        works_alone: "a MegaRAID SAS controller works alone in a guest, and its disk keeps what was written",
        at: "0000:00:0a.0",
        used_as: "disk",
        driver: "megaraid_sas",
        interrupts: Interrupts::Msix,
        disk: Some("sas"),
        plug: "-device megasas,id=megasas,addr=0a.0 -device scsi-hd,bus=megasas.0,drive=sas",
    },
    Card {
        name: "qemu-xhci",
        works_alone: "an xHCI controller works alone in a guest, with a stick, a keyboard and a mouse",
        at: "0000:06:00.0",
        used_as: "disk",
        driver: "xhci_hcd",
        interrupts: Interrupts::Msix,
        disk: Some("stick"),
        plug: "-device pcie-root-port,id=rp6,chassis=6,addr=07.0 -device qemu-xhci,id=xhci,bus=rp6 \
               -device usb-storage,bus=xhci.0,drive=stick -device usb-kbd,bus=xhci.0 -device usb-mouse,bus=xhci.0",
    },
    Card {
        name: "usb-ehci",
        works_alone: "an EHCI controller works alone in a guest, with a stick",
        at: "0000:00:0b.0",
        used_as: "disk",
        driver: "ehci-pci",
        interrupts: Interrupts::Intx,
        disk: Some("slow-stick"),
        plug: "-device usb-ehci,id=ehci,addr=0b.0 -device usb-storage,bus=ehci.0,drive=slow-stick",
    },
    Card {
        name: "secondary-vga",
        works_alone: "a VGA card works alone in a guest, and shows what the guest draws",
        at: "0000:00:0c.0",
        used_as: "fb",
        driver: "bochs-drm",
        interrupts: Interrupts::None,
        disk: None,
        plug: "-device secondary-vga,id=screen,addr=0c.0",
    },
    Card {
        name: "edu",
        works_alone: "an edu device computes, interrupts and copies alone in a guest",
        at: "0000:00:0d.0",
        used_as: "edu",
        driver: "",
        interrupts: Interrupts::None,
        disk: None,
        plug: "-device edu,dma_mask=0xffffffffffffffff,addr=0d.0",
    },
    // Its wire leads to L1's second serial port.
    Card {
        name: "pci-serial",
        works_alone: "a serial card works alone in a guest",
        at: "0000:00:0e.0",
        used_as: "serial",
        driver: "serial",
        interrupts: Interrupts::Intx,
        disk: None,
        plug: "-device pci-serial,chardev=wire,addr=0e.0 -device isa-serial,chardev=wire-end",
    },
];
