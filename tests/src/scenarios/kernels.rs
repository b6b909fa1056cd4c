//! Other kernels of Debian's: that of the release before, and the newest, from the backports, in guests and on the host. What other
//! scenarios see of the stock kernel, once more; in a thorough run only, for the kernels are fetched first.

use std::time::Duration;

use super::cards::{CARDS, EDU};
use super::{Scenario, amd, dma, doctor, expect, network, vf, virtual_devices};
use crate::cards::{DebianKernel, HostKernel, Machine};
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    let scenario = |name, machine, seconds, run| Scenario {
        name,
        machine,
        limit: Duration::from_secs(seconds),
        run,
    };
    vec![
        scenario(
            "with bookworm's kernel in the guest, a VF works and goes back to its driver",
            bookworm_guests,
            150,
            vf::vf_works,
        ),
        scenario(
            "with bookworm's kernel in the guest, virtio disks and random numbers work beside a VF, and again after a reboot",
            bookworm_guests,
            180,
            virtual_devices::beside_a_vf,
        ),
        scenario(
            "with bookworm's kernel in the guest, interfaces by vhost, by a thread, emulated and a VF work, and again after a reboot",
            bookworm_guests,
            240,
            network::beside_a_vf,
        ),
        scenario(
            "with the backports' kernel in the guest, a VF works and goes back to its driver",
            backports_guests,
            150,
            vf::vf_works,
        ),
        scenario(
            "with the backports' kernel in the guest, virtio disks and random numbers work beside a VF, and again after a reboot",
            backports_guests,
            180,
            virtual_devices::beside_a_vf,
        ),
        scenario(
            "with the backports' kernel in the guest, interfaces by vhost, by a thread, emulated and a VF work, and again after a reboot",
            backports_guests,
            240,
            network::beside_a_vf,
        ),
        scenario(
            "with the backports' kernel on the host, doctor finds it ready",
            backports_host,
            150,
            ready,
        ),
        scenario(
            "with the backports' kernel on the host, a VF works in a guest and goes back to its driver",
            backports_host,
            150,
            vf::vf_works,
        ),
        scenario(
            "with the backports' kernel on the host, a VF and a card that interrupts by its pin work in one guest",
            backports_host,
            150,
            amd::vf_and_pin,
        ),
        scenario(
            "with the backports' kernel on the host, DMA outside of the guest's memory reaches nothing and is told of",
            backports_host,
            120,
            |l1| dma::stray_dma(l1, CARDS[EDU].at),
        ),
    ]
}

fn bookworm_guests() -> Machine {
    Machine::example().guest_kernel(DebianKernel::Bookworm)
}

fn backports_guests() -> Machine {
    Machine::example().guest_kernel(DebianKernel::Backports)
}

fn backports_host() -> Machine {
    Machine::with_cards(amd::cards()).kernel(HostKernel::Backports)
}

fn ready(l1: &Host) -> Result<()> {
    let (runs, release) = (l1.sh("uname -r")?, l1.image().host_release()?);
    let what = format!("the host runs {release}, not {}", runs.trim());
    expect(runs.trim() == release, &what)?;
    doctor::ready(l1)
}
