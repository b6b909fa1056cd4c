//! What cards take of the guest's address space besides BARs where they were found: tables elsewhere, each other's memory.

use std::time::Duration;

use super::reading::{Statistics, number_after};
use super::vf::STATS;
use super::{Scenario, expect};
use crate::cards::{Cards, Machine};
use crate::disks::RANDOM_BYTES;
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "cards work whose MSI-X tables were given pages of their own",
            machine,
            limit: Duration::from_secs(150),
            run: relocated_tables,
        },
        Scenario {
            name: "accesses beside an MSI-X table are counted, and are none once the table has been moved",
            machine,
            limit: Duration::from_secs(120),
            run: beside_tables,
        },
        Scenario {
            name: "a card works with every access to its registers trapped",
            machine,
            limit: Duration::from_secs(120),
            run: trapped,
        },
        Scenario {
            name: "a card with a BAR of 8 GiB gives the guest all of it",
            machine,
            limit: Duration::from_secs(120),
            run: huge_bar,
        },
        Scenario {
            name: "a card copies by DMA into the memory of another card and out of it",
            machine,
            limit: Duration::from_secs(120),
            run: peer_to_peer,
        },
    ]
}

/// The DMA engine.
pub(super) const ENGINE: &str = "0000:00:07.0";

/// 01:00.0 is an NVMe controller, 02:00.0 a NIC with MSI-X, 00:07.0 a DMA engine, 00:08.0 memory on a card, 00:09.0 much of it, which
/// takes no memory of the runner's until it is written to.
pub(super) fn machine() -> Machine {
    let cards = "-device pcie-root-port,id=rp1,chassis=1,addr=02.0 -device pcie-root-port,id=rp2,chassis=2,addr=03.0 \
        -device nvme,bus=rp1,serial=lab,drive=d0 \
        -netdev user,id=n0 -device e1000e,bus=rp2,netdev=n0 \
        -device edu,addr=07.0,dma_mask=0xffffffffffff \
        -object memory-backend-ram,id=ram,size=1M,share=on -device ivshmem-plain,addr=08.0,memdev=ram \
        -object memory-backend-ram,id=huge,size=8G,share=on,reserve=off -device ivshmem-plain,addr=09.0,memdev=huge";
    Machine::with_cards(Cards::none().with_disk("d0").with(cards))
}

const WORK: &str = "lab-settle; lspci -vv | grep -E 'table:|PBA:'; lab-dhcp && ping -A -c 3 10.0.2.2 && \
    head -c 4194304 /dev/nvme0n1 | md5sum";

fn relocated_tables(l1: &Host) -> Result<()> {
    let guest = l1
        .viaduct(
            "run --cpus 2 --memory 384M --vfio 01:00.0,msix=relocate --vfio 02:00.0,msix=relocate",
        )
        .script(WORK)
        .start()?;
    let console = guest.succeeds()?;
    let moved = console.matches("offset=00000000").count() == 2
        && console.matches("offset=00001000").count() == 2;
    expect(
        moved,
        "table and pending bits are alone in a BAR, for each card",
    )?;
    expect(console.contains("3 packets received"), "ping 3/3")?;
    let sum = l1.disk("d0").md5(0..RANDOM_BYTES)?;
    expect(console.contains(&sum), "the disk has its content")
}

/// No card of QEMU's has anything there; but a guest can read it. The function's slot, the line of the BAR in `resource`, the offset
/// in it. Without drivers, whose BARs the kernel shows to nobody else.
const BESIDE: &str = "beside() { setpci -s $1.0 COMMAND=2; set -- $1 $(sed -n $2p /sys/bus/pci/devices/0000:00:0$1.0/resource) $3; \
    for i in $(seq 20); do busybox devmem $(($2 + $5)) 32 > /dev/null || exit; done; }; \
    beside 1 1 0x2800; beside 2 4 0x800";

fn beside_tables(l1: &Host) -> Result<()> {
    let run =
        "run --memory 256M --vfio 01:00.0,msix=relocate --vfio 02:00.0 --stats /run/stats.json";
    let guest = l1
        .viaduct(run)
        .kernel_words("modprobe.blacklist=nvme,e1000e");
    guest.script(BESIDE).start()?.succeeds()?;
    let statistics = Statistics::read(l1, STATS)?;
    let counted = |device| {
        let device = statistics.device(device)?;
        device.number("/accesses_beside_msix")
    };
    let (moved, in_place) = (counted("0000:01:00.0")?, counted("0000:02:00.0")?);
    expect(
        in_place == 20,
        &format!("20 accesses are counted, not {in_place}"),
    )?;
    expect(
        moved == 0,
        &format!("where the table was none is, not {moved}"),
    )
}

fn trapped(l1: &Host) -> Result<()> {
    let guest = l1
        .viaduct("run --memory 256M --vfio 02:00.0,mmap=off --stats /run/stats.json")
        .script("lab-dhcp && ping -A -c 3 10.0.2.2")
        .start()?;
    let console = guest.succeeds()?;
    expect(console.contains("3 packets received"), "ping 3/3")?;
    let card = Statistics::read(l1, STATS)?.device("0000:02:00.0")?;
    let registers = card.number("/trapped_accesses/0")?;
    expect(registers > 100, "accesses to its registers are counted")
}

/// Writes to the first and the last word of BAR 2, after one word that says where it is and how long.
const ENDS: &str = "setpci -s 1.0 COMMAND=2; set -- $(sed -n 3p /sys/bus/pci/devices/0000:00:01.0/resource); \
    echo length $(($2 - $1 + 1)); echo above $(($1 >> 32)); \
    busybox devmem $1 32 0x12345678; last=$(printf 0x%x $(($2 - 3))); busybox devmem $last 32 0x9abcdef0; \
    echo ends $(busybox devmem $1 32) $(busybox devmem $last 32)";
/// The same words as the host finds them.
const ENDS_IN_HOST: &str = "cd /sys/bus/pci/devices/0000:00:09.0; echo 1 > enable; set -- $(sed -n 3p resource); \
    busybox devmem $1 32; busybox devmem $(printf 0x%x $(($2 - 3))) 32";

fn huge_bar(l1: &Host) -> Result<()> {
    let guest = l1.viaduct("run --memory 256M --vfio 00:09.0,addr=01 --stats /run/stats.json");
    let console = guest.script(ENDS).start()?.succeeds()?;
    expect(
        console.contains("length 8589934592"),
        "the guest sees 8 GiB",
    )?;
    let above = number_after(&console, "above ")?;
    expect(above > 0, "they are above 4 GiB")?;
    expect(
        console.contains("ends 0x12345678 0x9ABCDEF0"),
        "both ends hold what is written to them",
    )?;
    let words = l1.sh(ENDS_IN_HOST)?;
    expect(words == "0x12345678\n0x9ABCDEF0\n", "and are the card's")?;
    let memory = Statistics::read(l1, STATS)?.device("0000:00:09.0")?;
    let exits = memory.number("/trapped_accesses/2")?;
    expect(exits == 0, "without an exit")
}

/// BAR 2 of slot 2 is the memory.
const COPY: &str = "setpci -s 2.0 COMMAND=2; set -- $(sed -n 3p /sys/bus/pci/devices/0000:00:02.0/resource); \
    lab-guest edu 01.0 dma $1";

fn peer_to_peer(l1: &Host) -> Result<()> {
    let guest = l1
        .viaduct("run --memory 256M --vfio 00:07.0,addr=01 --vfio 00:08.0,addr=02 --stats /run/stats.json")
        .script(COPY)
        .start()?;
    let console = guest.succeeds()?;
    expect(
        console.contains(" ok: 6 copies there and back"),
        "six copies, to the byte",
    )?;
    let statistics = Statistics::read(l1, STATS)?;
    for device in ["0000:00:07.0", "0000:00:08.0"] {
        let refused = statistics
            .device(device)?
            .number("/peer_mappings_refused")?;
        expect(refused == 0, &format!("{device}: nothing was refused"))?;
    }
    let reached = statistics
        .device("0000:00:08.0")?
        .number("/peer_mappings")?;
    // Its driver has turned decoding on; it is counted until the guest ends.
    expect(reached > 0, "the memory is mapped for others")
}
