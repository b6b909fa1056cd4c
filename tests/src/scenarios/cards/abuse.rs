//! What no driver does: a guest that writes to every register of configuration space, that switches a card off while it is at
//! work, and that has a device copy from and to where no memory of its own is.

use std::time::{Duration, Instant};

use super::alone::OBEY;
use super::table::{AHCI, CARDS, Card, E1000E, EDU, NVME, RTL8139, VF, machine};
use super::{Scenario, expect, expect_works};
use crate::agent::Event;
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "a storm of configuration writes costs a guest its cards until it reboots, and nobody anything else",
            machine,
            limit: Duration::from_secs(300),
            run: storm,
        },
        Scenario {
            name: "a device copies to the last byte of its guest's memory, and not beyond",
            machine,
            limit: Duration::from_secs(240),
            run: stray,
        },
    ]
}

/// In emulation the guest hangs nearly always while memory moves so often beside interrupts, with one processor in L1 and with two.
pub(super) fn thorough() -> Vec<Scenario> {
    vec![Scenario {
        name: "cards that stop decoding while they are at work work again after a reboot",
        machine,
        limit: Duration::from_secs(300),
        run: decoding,
    }]
}

/// What a host must never say. A device's copying that the IOMMU has stopped is not among it.
const HOST_ERRORS: &str = "BUG:|WARNING:|Call Trace|Oops|general protection|AER:|Hardware Error|hung_task|blocked for more";

/// The seed, so that a storm can be had again.
const SEED: u32 = 20_260_801;

/// Cards with and without MSI-X, with every kind of reset and none, with I/O ports, and one behind a physical function.
const STORMED: [usize; 6] = [VF, E1000E, RTL8139, NVME, AHCI, EDU];
/// Those that can be kept at work.
const AT_WORK: [usize; 3] = [E1000E, RTL8139, NVME];
const FIRST_SLOT: usize = 8;

fn places(cards: &[usize]) -> impl Iterator<Item = (&'static Card, usize)> {
    cards.iter().map(|card| &CARDS[*card]).zip(FIRST_SLOT..)
}

/// A guest with these cards. What is typed is done, so that it can be something else after a reboot.
fn start<'a>(l1: &'a Host, cards: &[usize], words: &str) -> Result<Guest<'a>> {
    l1.sh("dmesg --clear")?;
    let assigned: String = places(cards)
        .map(|(card, slot)| format!(" --vfio {},addr={slot:02x}", card.at))
        .collect();
    l1.viaduct(&format!("run --cpus 2 --memory 256M{assigned}"))
        .kernel_words(words)
        .script(OBEY)
        .deadline_s(280)
        .start()
}

/// Reboots the guest, finds every card working, and nothing in the host's log.
fn expect_recovery(l1: &Host, guest: &mut Guest<'_>, cards: &[usize]) -> Result<()> {
    guest.type_in("reboot\n")?;
    guest.wait_for("LAB-L2 init")?;
    guest.wait_for("== used")?;
    for (card, slot) in places(cards) {
        guest.type_in(&format!("lab-card {} {slot:x}\n", card.used_as))?;
        // Not the line that was typed, which says neither.
        guest.wait_for(&format!("card {} {slot:02x}.0 ", card.used_as))?;
        guest.wait_for("\n")?;
        expect_works(l1, guest.console(), card, slot)?;
    }
    guest.type_in("exit\n")?;
    guest.wait_for("LAB-L2 exit 0")?;
    expect(guest.wait_for_end()? == 0, "the guest powers off")?;
    let complaints = l1.sh(&format!(
        "dmesg > /run/dmesg && ! grep -E '{HOST_ERRORS}' /run/dmesg"
    ));
    complaints.map(drop)
}

/// Without their drivers: a message that is sent anywhere at all by a card at work may end the guest, as on a real machine.
fn storm(l1: &Host) -> Result<()> {
    let mut guest = start(l1, &STORMED, "")?;
    guest.wait_for("== used")?;
    for (_, slot) in places(&STORMED) {
        let device = format!("/sys/bus/pci/devices/0000:00:{slot:02x}.0");
        guest.type_in(&format!(
            "echo 0000:00:{slot:02x}.0 > {device}/driver/unbind; lab-guest storm {slot:x} {SEED} 2\n"
        ))?;
        guest.wait_for(&format!("storm {slot:x} {SEED} 2 ok"))?;
    }
    guest.type_in("echo alive $((6 * 7))\n")?;
    guest.wait_for("alive 42")?;
    expect_recovery(l1, &mut guest, &STORMED)
}

/// Keeps the cards at work from here on, and says when they are.
const WORK: &str = "lab-dhcp && echo work begins; for nic in eth0 eth1; do ping -A -q -I $nic 10.0.2.2 > /dev/null 2>&1 & done; \
    while dd if=/dev/nvme0n1 of=/dev/null bs=64k count=64 iflag=direct 2> /dev/null; do :; done &\n";

fn decoding(l1: &Host) -> Result<()> {
    let mut guest = start(l1, &AT_WORK, "")?;
    guest.wait_for("== used")?;
    guest.type_in(WORK)?;
    // Not where it was typed.
    guest.wait_for("\nwork begins")?;
    for (_, slot) in places(&AT_WORK) {
        guest.type_in(&format!("lab-guest decode {slot:x} 100\n"))?;
        guest.wait_for(&format!("decode {slot:x} 100 ok"))?;
    }
    expect_recovery(l1, &mut guest, &AT_WORK)
}

/// The last 2 MiB are not for the guest's kernel to use (it takes them for persistent memory), so the device may have them.
fn stray(l1: &Host) -> Result<()> {
    let mut guest = start(l1, &[EDU], "memmap=2M!254M")?;
    guest.wait_for("== used")?;
    guest.type_in("lab-guest edu 8 dma 0xfffc000\n")?;
    guest.wait_for("the last byte at 0xfffffff")?;
    let page = l1.job("/lab/l2/lab-guest page", Duration::from_secs(200))?;
    let address = match page.next(Instant::now() + Duration::from_secs(20))? {
        Some(Event::Stdout(said)) => String::from_utf8_lossy(&said).into_owned(),
        other => return Err(Error::Unexpected(format!("no page of L1's: {other:?}"))),
    };
    let address = address.trim().trim_start_matches("page at ");
    // A page of the host's own, and what comes right after the guest's memory.
    for address in [address, "0x10000000"] {
        guest.type_in(&format!("lab-guest edu 8 stray {address}\n"))?;
        guest.wait_for(&format!("stray {address} ok: "))?;
        let read = guest.wait_for("\n")?;
        expect(read.starts_with("read 0x00, all of it"), "nothing is read")?;
    }
    page.close_stdin()?;
    let intact = page.wait()?;
    expect(
        intact.code == 0 && intact.stdout.contains("the page is as it was"),
        "the host's page is as it was",
    )?;
    expect_recovery(l1, &mut guest, &[EDU])?;
    expect_reported(guest.errors(), address)
}

/// Viaduct says which device it was, and where to. Of the first attempts; then it says so ever less often.
fn expect_reported(errors: &str, address: &str) -> Result<()> {
    let device = CARDS[EDU].at;
    for attempt in ["write to", "read from"] {
        let report = format!("{device}: DMA {attempt} {address} refused by the IOMMU");
        expect(errors.contains(&report), &report)?;
    }
    Ok(())
}
