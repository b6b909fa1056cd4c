//! The lab itself, and what Viaduct is measured against: QEMU's microvm in the same L1.

use std::time::Duration;

use super::{Scenario, expect};
use crate::cards::Machine;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "the simulated host has KVM, an IOMMU and a card with two VFs",
            machine: Machine::example,
            limit: Duration::from_secs(60),
            run: host_is_complete,
        },
        Scenario {
            name: "the simulated host runs on the runner's KVM where there is one",
            machine: Machine::example,
            limit: Duration::from_secs(30),
            run: host_is_on_kvm,
        },
        Scenario {
            name: "a VF works in a guest of the reference QEMU",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: vf_under_reference,
        },
        Scenario {
            name: "a guest without a script gives a shell, and its VMM takes signals",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: shell_and_signal,
        },
    ]
}

fn host_is_complete(l1: &Host) -> Result<()> {
    l1.sh("test -c /dev/kvm -a -c /dev/vfio/vfio")?;
    for vf in ["0000:03:10.1", "0000:03:10.3"] {
        l1.sh(&format!("test -d /sys/bus/pci/devices/{vf}/iommu_group"))?;
        expect(
            l1.driver(vf)?.as_deref() == Some("igbvf"),
            &format!("{vf} is on igbvf"),
        )?;
    }
    let code = l1.output("echo out; echo err >&2; exit 7", Duration::from_secs(10))?;
    expect(
        code.code == 7 && code.stdout == "out\n" && code.stderr == "err\n",
        "the agent tells all",
    )
}

fn host_is_on_kvm(l1: &Host) -> Result<()> {
    if let Engine::Emulation(why) = Engine::of_runner() {
        return Err(Error::Skipped(why.clone()));
    }
    l1.sh("dmesg | grep 'Hypervisor detected: KVM'").map(drop)
}

fn vf_under_reference(l1: &Host) -> Result<()> {
    l1.bind_to_vfio("0000:03:10.3")?;
    let guest = l1
        .reference(1, "512M", &["0000:03:10.3"])
        .script("lab-dhcp && ping -A -c 3 10.0.2.2 && grep eth0 /proc/interrupts")
        .start()?;
    let console = guest.succeeds()?;
    expect(
        console.contains("52:54:00:03:10:03"),
        "the guest has the MAC that was set through the PF",
    )?;
    expect(
        console.contains("PCI-MSIX"),
        "the VF's interrupts are MSI-X",
    )?;
    expect(
        console.contains("3 packets received"),
        "ping 3/3 through the VF",
    )?;
    l1.give_back("0000:03:10.3")?;
    expect(
        l1.driver("0000:03:10.3")?.as_deref() == Some("igbvf"),
        "the VF is back on igbvf",
    )
}

fn shell_and_signal(l1: &Host) -> Result<()> {
    let mut guest = l1
        .reference(1, "256M", &[])
        .kernel_words("lab.word")
        .deadline_s(60)
        .start()?;
    guest.wait_for("A shell in the guest")?;
    guest.type_in("echo sum $((40 + 2)) $(grep -c lab.word /proc/cmdline)\n")?;
    guest.wait_for("sum 42 1")?;
    let said_so = guest.console().lines().any(|line| line == "LAB-L2 init");
    expect(said_so, "init says that it is there")?;
    guest.signal(libc::SIGTERM)?;
    guest.wait_for_end()?;
    expect(
        guest.errors().contains("terminating on signal 15"),
        "the VMM says why it ended",
    )
}
