//! What scenarios see of guests whose devices are reached through VFIO's container, once more through iommufd.

use std::time::Duration;

use super::reading::Statistics;
use super::vf::STATS;
use super::{Scenario, address_space, cards, dma, expect, reset, several, vf};
use crate::cards::Machine;
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "through iommufd, a VF works in a guest of viaduct and goes back to its driver",
            machine: example,
            limit: Duration::from_secs(150),
            run: vf::vf_works,
        },
        Scenario {
            name: "through iommufd, two VFs work in one guest, and again after it has rebooted",
            machine: example,
            limit: Duration::from_secs(180),
            run: several::two_vfs_and_a_reboot,
        },
        Scenario {
            name: "through iommufd, two guests have a VF each, and a third is told who has it",
            machine: example,
            limit: Duration::from_secs(150),
            run: several::two_guests,
        },
        Scenario {
            name: "through iommufd, DMA outside of the guest's memory reaches nothing and is told of with device and address",
            machine: with_engine,
            limit: Duration::from_secs(120),
            run: |l1| dma::stray_dma(l1, address_space::ENGINE),
        },
        Scenario {
            name: "through iommufd, a BAR that other devices cannot be let into is a warning",
            machine: with_engine,
            limit: Duration::from_secs(120),
            run: no_peers,
        },
        Scenario {
            name: "through iommufd, all cards work in one guest, and again after it has rebooted",
            machine: || cards::machine().through_iommufd(),
            limit: Duration::from_secs(300),
            run: |l1| cards::work_through_reboots(l1, 1),
        },
        Scenario {
            name: "through iommufd, each device is reset by the best way it has, and those of one bus together",
            machine: || reset::of_all_kinds().through_iommufd(),
            limit: Duration::from_secs(300),
            run: reset::by_the_best_way,
        },
    ]
}

fn example() -> Machine {
    Machine::example().through_iommufd()
}

/// With a DMA engine at 00:07.0, and memory on a card at 00:08.0.
fn with_engine() -> Machine {
    address_space::machine().through_iommufd()
}

/// iommufd maps no memory that is not RAM.
fn no_peers(l1: &Host) -> Result<()> {
    let mut guest = l1
        .viaduct("run --memory 256M --vfio 00:07.0 --vfio 00:08.0,addr=02 --stats /run/stats.json")
        .script("setpci -s 2.0 COMMAND=2; lab-guest edu 01.0 dma")
        .start()?;
    let console = guest.wait_for("LAB-L2 exit 0")?;
    expect(guest.wait_for_end()? == 0, "poweroff is exit status 0")?;
    expect(
        console.contains("dma ok"),
        "DMA into the guest's own memory is right all the same",
    )?;
    let told = "warn: 0000:00:08.0: other devices cannot reach its BAR";
    expect(guest.errors().contains(told), "it is said of the BAR")?;
    let memory = Statistics::read(l1, STATS)?.device("0000:00:08.0")?;
    let refused = memory.number("/peer_mappings_refused")?;
    expect(refused > 0, "it is counted")
}
