//! Cards that Viaduct was not made with: of many makes, some of them decades old, all in one guest.

use std::time::Duration;

use super::alone::OBEY;
use super::table::{Card, Interrupts};
use super::{Scenario, expect, expect_works, expect_written};
use crate::cards::{Cards, Machine};
use crate::error::Result;
use crate::guest::Guest;
use crate::host::Host;

/// The slot of the first; the others follow.
const FIRST_SLOT: usize = 8;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "cards nobody tried before work in one guest, and one of them interrupts by several MSI vectors",
        machine,
        limit: Duration::from_secs(240),
        run: work_together,
    }]
}

fn machine() -> Machine {
    let plug = |cards: Cards, card: &Card| {
        let cards = cards.with(card.plug);
        card.disk.into_iter().fold(cards, Cards::with_disk)
    };
    Machine::with_cards(UNTRIED.iter().fold(Cards::none(), plug))
}

/// On the root bus, as conventional PCI has them: interrupts by the pin.
const OLD_NIC: Card = Card {
    name: "",
    works_alone: "",
    at: "",
    used_as: "nic",
    driver: "",
    interrupts: Interrupts::Intx,
    disk: None,
    plug: "",
};

/// The xHCI controller whose messages are MSI.
const MANY: usize = 7;

const UNTRIED: [Card; 9] = [
    Card {
        at: "0000:00:05.0",
        driver: "e1000",
        plug: "-netdev user,id=n5,net=10.0.5.0/24 -device e1000,netdev=n5,addr=05.0",
        ..OLD_NIC
    },
    Card {
        at: "0000:00:06.0",
        driver: "pcnet32",
        plug: "-netdev user,id=n6,net=10.0.6.0/24 -device pcnet,netdev=n6,addr=06.0",
        ..OLD_NIC
    },
    Card {
        at: "0000:00:07.0",
        driver: "e100",
        plug: "-netdev user,id=n7,net=10.0.7.0/24 -device i82557b,netdev=n7,addr=07.0",
        ..OLD_NIC
    },
    Card {
        at: "0000:00:08.0",
        driver: "tulip",
        plug: "-netdev user,id=n8,net=10.0.8.0/24 -device tulip,netdev=n8,addr=08.0",
        ..OLD_NIC
    },
    Card {
        at: "0000:00:09.0",
        driver: "ne2k-pci",
        plug: "-netdev user,id=n9,net=10.0.9.0/24 -device ne2k_pci,netdev=n9,addr=09.0",
        ..OLD_NIC
    },
    Card {
        at: "0000:01:00.0",
        driver: "vmxnet3",
        interrupts: Interrupts::Msix,
        plug: "-device pcie-root-port,id=rp1,chassis=1,addr=02.0 \
               -netdev user,id=n1,net=10.0.1.0/24 -device vmxnet3,netdev=n1,bus=rp1",
        ..OLD_NIC
    },
    Card {
        at: "0000:02:00.0",
        used_as: "disk",
        driver: "xhci_hcd",
        interrupts: Interrupts::Msix,
        disk: Some("stick"),
        plug: "-device pcie-root-port,id=rp2,chassis=2,addr=03.0 \
               -device nec-usb-xhci,id=nec,bus=rp2 -device usb-storage,bus=nec.0,drive=stick",
        ..OLD_NIC
    },
    Card {
        at: "0000:03:00.0",
        used_as: "disk",
        driver: "xhci_hcd",
        interrupts: Interrupts::Msi,
        disk: Some("other-stick"),
        plug: "-device pcie-root-port,id=rp3,chassis=3,addr=04.0 -device qemu-xhci,id=many,bus=rp3,msi=on,msix=off \
               -device usb-storage,bus=many.0,drive=other-stick",
        ..OLD_NIC
    },
    Card {
        at: "0000:00:0a.0",
        used_as: "sound",
        driver: "snd_hda_intel",
        interrupts: Interrupts::Msi,
        plug: "-audiodev none,id=silence -device intel-hda,addr=0a.0 -device hda-duplex,audiodev=silence",
        ..OLD_NIC
    },
];

fn places() -> impl Iterator<Item = (&'static Card, usize)> {
    UNTRIED.iter().zip(FIRST_SLOT..)
}

fn work_together(l1: &Host) -> Result<()> {
    let before = l1.bindings()?;
    let assigned: String = places()
        .map(|(card, slot)| format!(" --vfio {},addr={slot:02x}", card.at))
        .collect();
    let uses: String = places()
        .map(|(card, slot)| format!("lab-card {} {slot:x} & ", card.used_as))
        .collect();
    let mut guest = l1
        .viaduct(&format!("run --cpus 2 --memory 384M{assigned}"))
        .script(&format!("{uses} wait; {OBEY}"))
        .deadline_s(230)
        .start()?;
    let said = guest.wait_for("== used")?;
    for (card, slot) in places() {
        expect_works(l1, &said, card, slot)?;
    }
    expect_many_vectors(l1, &mut guest)?;
    guest.type_in("exit\n")?;
    let console = guest.succeeds()?;
    for (card, slot) in places() {
        let used = expect_works(l1, &console, card, slot)?;
        expect_written(l1, card, &used)?;
    }
    expect(l1.bindings()? == before, "all cards are given back")
}

/// Linux has one MSI vector do for all of that card's interrupters. Without its driver each of three interrupts by its own, and all 16
/// that the capability offers are the host's while they are enabled.
fn expect_many_vectors(l1: &Host, guest: &mut Guest<'_>) -> Result<()> {
    let slot = FIRST_SLOT + MANY;
    guest.type_in(&format!(
        "echo 0000:00:{slot:02x}.0 > /sys/bus/pci/drivers/xhci_hcd/unbind; lab-guest xhci {slot:x} msi 20\n"
    ))?;
    guest.wait_for(&format!(
        "xhci {slot:x} msi 20 ok: 20 messages from each of 3"
    ))?;
    guest.type_in(&format!(
        "setpci -s {slot:x}.0 CAP_MSI+2.w=41:71; echo asked for 16\n"
    ))?;
    guest.wait_for("\nasked for 16")?;
    expect_vectors(l1, 16)?;
    guest.type_in(&format!(
        "setpci -s {slot:x}.0 CAP_MSI+2.w=0:1; echo asked for none\n"
    ))?;
    guest.wait_for("\nasked for none")?;
    expect_vectors(l1, 0)
}

/// How many vectors the host has armed for the card with many.
fn expect_vectors(l1: &Host, count: usize) -> Result<()> {
    let card = UNTRIED[MANY].at;
    let found = l1.sh(&format!(
        "grep 'vfio-msi.*({card})' /proc/interrupts | wc -l"
    ))?;
    let what = format!(
        "the host has {count} MSI vectors for the card, not {}",
        found.trim()
    );
    expect(found.trim() == count.to_string(), &what)
}
