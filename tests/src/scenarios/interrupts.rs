//! Interrupts: the pin, alone and shared, on the guest's side and on the host's; from one kind to another; and that by which the host
//! wants a device back.

use std::time::Duration;

use super::cards::Use;
use super::reading::Statistics;
use super::refusals::refused;
use super::vf::STATS;
use super::{Scenario, expect};
use crate::cards::{Cards, Machine};
use crate::disks::RANDOM_BYTES;
use crate::error::{Error, Result};
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    let scenario = |name, seconds, run| Scenario {
        name,
        machine,
        limit: Duration::from_secs(seconds),
        run,
    };
    vec![
        scenario(
            "a card's pin interrupts its guest without a single exit",
            150,
            no_exits,
        ),
        scenario(
            "two cards interrupt by one line of the guest's, also after it has rebooted",
            240,
            shared_line,
        ),
        scenario(
            "a card that was told to use two kinds of messages at once works by the one that is left",
            120,
            both_kinds,
        ),
        scenario(
            "a host interrupts the guest whose card it wants back, and gets it",
            120,
            host_wants_it,
        ),
        scenario(
            "a card that cannot share its interrupt line is refused with the name of who has it, and works once it has gone",
            150,
            exclusive_line,
        ),
    ]
}

/// In emulation the guest hangs in about every second run.
pub(super) fn thorough() -> Vec<Scenario> {
    vec![Scenario {
        name: "cards follow their drivers from one kind of interrupt to another",
        machine,
        limit: Duration::from_secs(240),
        run: kinds_in_turn,
    }]
}

/// The NIC and the USB controller are on one line of the host's, and have nothing but their pins.
const NIC: &str = "0000:00:06.0";
const USB: &str = "0000:00:07.0";
/// A card with all three kinds of interrupt.
const CARD: &str = "0000:01:00.0";

/// With these, a SATA controller at 00:08.0, and at 02:00.0 a device that can report errors.
pub(super) fn machine() -> Machine {
    let cards = "-device pcie-root-port,id=rp1,chassis=1,addr=02.0 \
        -netdev user,id=n0 -device e1000e,bus=rp1,netdev=n0,id=card \
        -netdev user,id=n1 -device rtl8139,netdev=n1,addr=06.0 \
        -device usb-ehci,id=usb,addr=07.0 -device usb-storage,bus=usb.0,drive=stick \
        -device ich9-ahci,id=sata,addr=08.0 -device ide-hd,bus=sata.0,drive=disk \
        -device pcie-root-port,id=rp2,chassis=2,addr=03.0 \
        -device virtio-rng-pci,bus=rp2,aer=on,iommu_platform=on,id=failing";
    let cards = Cards::none().with(cards);
    Machine::with_cards(cards.with_disk("stick").with_disk("disk"))
}

/// How often the pin interrupted the host, which is once for each time that it interrupts the guest.
fn pin_interrupts(l1: &Host) -> Result<u64> {
    let count = "awk '/vfio-intx\\(0000:00:06.0\\)/ { for (i = 2; $i ~ /^[0-9]+$/; i++) sum += $i; print sum }' /proc/interrupts";
    let said = l1.sh(count)?;
    let what = || Error::Unexpected(format!("no count of {NIC}'s interrupts: {said}"));
    said.trim().parse().map_err(|_| what())
}

fn no_exits(l1: &Host) -> Result<()> {
    let mut guest = l1
        .viaduct("run --memory 256M --vfio 00:06.0,addr=06 --stats /run/stats.json")
        .script("lab-card nic 06 || exit; ping -q -i 0.02 10.0.2.2 > /dev/null & echo == pings; read -r; kill $!")
        .start()?;
    let said = guest.wait_for("== pings")?;
    expect_by_pin(&said, "nic", 6, "8139cp")?;
    // Written once a second.
    let counted = || {
        l1.sh("sleep 2")?;
        let exits = Statistics::read(l1, STATS)?.number("/exits/total")?;
        Ok((pin_interrupts(l1)?, exits))
    };
    let before = counted()?;
    l1.sh("sleep 5")?;
    let after = counted()?;
    let (interrupts, exits) = (after.0 - before.0, after.1 - before.1);
    l1.log("lab", &format!("{interrupts} interrupts, {exits} exits"));
    expect(
        interrupts >= 50,
        "the card interrupts while it is pinged through",
    )?;
    expect(exits * 10 < interrupts, "an interrupt is no exit")?;
    guest.type_in("\n")?;
    guest.succeeds()?;
    expect(
        l1.driver(NIC)?.as_deref() == Some("8139cp"),
        "the NIC is back",
    )
}

/// The card works by this driver, and by interrupts of its pin.
fn expect_by_pin(console: &str, kind: &str, slot: usize, driver: &str) -> Result<Use> {
    let used = Use::said(console, kind, slot)?;
    let as_expected = used.driver == driver && used.interrupts == "intx" && used.count > 0;
    let what = format!("{driver} works by interrupts of the pin: {used:?}");
    expect(as_expected, &what)?;
    Ok(used)
}

/// Both at once, then what the guest has on that line.
const BOTH: &str = "lab-card nic 06 > /run/nic & lab-card disk 0b; wait; cat /run/nic; \
    grep fasteoi /proc/interrupts; echo == done; read -r order; eval $order";

fn shared_line(l1: &Host) -> Result<()> {
    // INTA of slot 6 and INTD of slot 11: one input of the guest's interrupt controller.
    let mut guest = l1
        .viaduct("run --cpus 2 --memory 256M --vfio 00:06.0,addr=06 --vfio 00:07.0,addr=0b")
        .script(BOTH)
        .deadline_s(200)
        .start()?;
    let known = l1.disk("stick").md5(0..RANDOM_BYTES)?;
    for order in ["reboot -f\n", "true\n"] {
        let said = guest.wait_for("== done")?;
        expect_by_pin(&said, "nic", 6, "8139cp")?;
        let stick = expect_by_pin(&said, "disk", 0x0b, "ehci-pci")?;
        expect(stick.fact("read") == known, "the stick's content")?;
        let line = said.lines().find(|line| line.contains("ehci_hcd"));
        let shared =
            line.is_some_and(|line| line.contains(" 22-fasteoi ") && line.contains("eth0"));
        expect(shared, "both are on one line of the guest's")?;
        guest.type_in(order)?;
    }
    guest.succeeds()?;
    expect(
        l1.driver(USB)?.as_deref() == Some("ehci-pci"),
        "the controller is back",
    )
}

/// Takes the kind of interrupt from each driver that it has, and gives it back. The NIC's has a parameter: 2 is MSI-X, 0 INTx. (1, MSI,
/// it tests, finds wanting in QEMU's card on any machine, and goes on with INTx.) The disk's is told by the kernel.
const IN_TURN: &str = "for mode in 2 0 2 0; do rmmod e1000e; modprobe e1000e IntMode=$mode; lab-card nic 05 || exit; done; \
    sata=0000:00:04.0; cd /sys/bus/pci/drivers/ahci; for msi in 0 1 0 1; do echo $sata > unbind; \
    echo $msi > ../../devices/$sata/msi_bus; echo $sata > bind; lab-card disk 04 || exit; done";

fn kinds_in_turn(l1: &Host) -> Result<()> {
    let guest = l1
        .viaduct("run --cpus 2 --memory 256M --vfio 01:00.0,addr=05 --vfio 00:08.0,addr=04")
        .script(IN_TURN)
        .deadline_s(220)
        .start()?;
    let console = guest.succeeds()?;
    let cards = console.lines().filter(|line| line.starts_with("card "));
    let kinds: Vec<_> = cards
        .filter_map(|line| line.split("irq=").nth(1)?.split(' ').next())
        .collect();
    let are = |kind: &&str, expected: &str| {
        let count = kind
            .strip_prefix(expected)
            .and_then(|rest| rest.strip_prefix(':'));
        count.is_some_and(|count| count.parse::<u64>().is_ok_and(|count| count > 0))
    };
    let expected = ["msix", "intx", "msix", "intx", "intx", "msi", "intx", "msi"];
    let as_expected = kinds.len() == expected.len()
        && kinds.iter().zip(expected).all(|(kind, one)| are(kind, one));
    expect(as_expected, &format!("{kinds:?} are {expected:?}"))?;
    let known = l1.disk("disk").md5(0..RANDOM_BYTES)?;
    let right = console.matches(&format!(" read={known} ")).count();
    expect(
        right == 4,
        &format!("the disk has its content each of 4 times, not {right}"),
    )
}

/// Software must not (PCIe 6.0 §6.1.4). The driver uses MSI-X and knows nothing of it. Vectors the host has armed are said by kind.
const BOTH_KINDS: &str = "lab-card nic 05 || exit; setpci -s 5.0 CAP_MSI+2.w=1:1; echo == both; read -r; \
    setpci -s 5.0 CAP_MSI+2.w=0:1; echo == one; read -r; ping -A -q -c 3 10.0.2.2";

fn both_kinds(l1: &Host) -> Result<()> {
    let plan = l1.viaduct("run --memory 256M --vfio 01:00.0,addr=05");
    let mut guest = plan.script(BOTH_KINDS).start()?;
    for (said, kind) in [("== both", "vfio-msi["), ("== one", "vfio-msix[")] {
        guest.wait_for(said)?;
        let armed = l1.sh(&format!("grep -F '({CARD})' /proc/interrupts"))?;
        let alone = armed.matches("vfio-").count() == armed.matches(kind).count();
        expect(alone, &format!("{kind} and nothing else in:\n{armed}"))?;
        guest.type_in("\n")?;
    }
    let console = guest.succeeds()?;
    expect(console.contains("3 packets received"), "ping after both")
}

fn host_wants_it(l1: &Host) -> Result<()> {
    let plan = l1.viaduct("run --memory 256M --vfio 01:00.0");
    let mut guest = plan.script("lab-dhcp; echo == up; sleep 100").start()?;
    guest.wait_for("== up")?;
    // Without anybody to answer, this write would not come back.
    let unbind = format!("echo {CARD} > /sys/bus/pci/drivers/vfio-pci/unbind");
    let unbound = l1.output(&unbind, Duration::from_secs(20))?;
    expect(unbound.code == 0, "the host's unbind comes back")?;
    expect(guest.wait_for_end()? == 1, "the guest ends with status 1")?;
    let why = format!("the host wants {CARD} back");
    expect(guest.errors().contains(&why), &why)?;
    expect(
        l1.driver(CARD)?.as_deref() == Some("e1000e"),
        "the card is back",
    )
}

fn exclusive_line(l1: &Host) -> Result<()> {
    // As if no device had an INTx disable bit.
    l1.sh("modprobe -r vfio_pci; modprobe vfio_pci nointxmask=1")?;
    let run = "run --memory 256M --vfio 00:06.0,addr=06";
    let before = l1.bindings()?;
    let command = l1.viaduct(run).script("lab-card nic 06").command()?;
    refused(
        l1,
        &command,
        1,
        &[
            "0000:00:06.0: its INTx pin cannot share IRQ 22 with ehci_hcd:usb",
            "/proc/interrupts",
        ],
    )?;
    expect(l1.bindings()? == before, "the NIC is back on its driver")?;
    l1.sh(&format!("viaduct bind {USB}"))?;
    let said = l1
        .viaduct(run)
        .script("lab-card nic 06")
        .start()?
        .succeeds()?;
    expect_by_pin(&said, "nic", 6, "8139cp")?;
    l1.sh(&format!("viaduct unbind {USB} && modprobe -r vfio_pci"))?;
    Ok(())
}
