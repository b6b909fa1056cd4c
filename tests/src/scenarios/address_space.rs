//! What cards take of the guest's address space besides BARs where they were found: tables elsewhere, each other's memory.

use std::time::Duration;

use super::vf::number_after;
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
            name: "a card copies by DMA into the memory of another card and out of it",
            machine,
            limit: Duration::from_secs(120),
            run: peer_to_peer,
        },
    ]
}

/// 01:00.0 is an NVMe controller, 02:00.0 a NIC with MSI-X, 00:07.0 a DMA engine, 00:08.0 memory on a card.
fn machine() -> Machine {
    let cards = "-device pcie-root-port,id=rp1,chassis=1,addr=02.0 -device pcie-root-port,id=rp2,chassis=2,addr=03.0 \
        -device nvme,bus=rp1,serial=lab,drive=d0 \
        -netdev user,id=n0 -device e1000e,bus=rp2,netdev=n0 \
        -device edu,addr=07.0,dma_mask=0xffffffffffff \
        -object memory-backend-ram,id=ram,size=1M,share=on -device ivshmem-plain,addr=08.0,memdev=ram";
    Machine::with_cards(Cards::none().with_disk("d0").with(cards))
}

const WORK: &str = "lab-settle; lspci -vv | grep -E 'table:|PBA:'; lab-dhcp && ping -c 3 10.0.2.2 && \
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
    let stats = l1.sh("cat /run/stats.json")?;
    expect(
        number_after(&stats, "\"peer_mappings_refused\": ") == 0,
        "nothing was refused",
    )
}
