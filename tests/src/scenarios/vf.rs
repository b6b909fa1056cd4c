//! A virtual function in a guest: found, driven, as fast as the hardware lets it, and given back.

use std::time::Duration;

use super::reading::{Statistics, number_after};
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::host::Host;

pub(super) const FIRST: &str = "0000:03:10.1";
pub(super) const SECOND: &str = "0000:03:10.3";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "a VF works in a guest of viaduct and goes back to its driver",
            machine: Machine::example,
            limit: Duration::from_secs(150),
            run: vf_works,
        },
        Scenario {
            name: "packets of a VF cost no userspace exit",
            machine: Machine::example,
            limit: Duration::from_secs(180),
            run: packets_cost_no_exit,
        },
    ]
}

/// What the guest of `vf_works` looks at.
const LOOK: &str = "echo kernel $(uname -r); lspci -nnks 6; lab-dhcp || exit; echo == counts; grep eth0 /proc/interrupts; echo == capabilities; \
    lspci -vvs 6; echo == ping; ping -A -c 3 10.0.2.2; grep eth0 /proc/interrupts; \
    echo kinds $(sort -u /sys/bus/pci/devices/0000:00:06.0/msi_irqs/*); echo == complaints; \
    echo boots $(dmesg | grep -c 'Linux version'); dmesg | grep -E \
    \"ACPI.*([Ee]rror|[Ww]arn)|BAR.*(can't|fail)|Call Trace|WARNING:|BUG:|irq .*nobody|Unknown NMI\"; true";

pub(super) fn vf_works(l1: &Host) -> Result<()> {
    let mut guest = l1
        .viaduct("run --cpus 2 --memory 512M --vfio 03:10.3,addr=06")
        .script(LOOK)
        .start()?;
    let found = guest.wait_for("== counts")?;
    let kernel = format!("kernel {}\n", l1.image().guest_release()?);
    expect(
        found.contains(&kernel),
        &format!("the guest has the {kernel}"),
    )?;
    expect(found.contains("00:06.0"), "the VF is at 00:06.0")?;
    expect(found.contains("[8086:10ca]"), "it is an 82576 VF")?;
    expect(found.contains("in use: igbvf"), "it is on igbvf")?;
    expect(
        found.contains("52:54:00:03:10:03"),
        "the guest has the MAC that was set through the PF",
    )?;
    let before = guest.wait_for("== capabilities")?;
    expect_sane_capabilities(&guest.wait_for("== ping")?)?;
    let after = guest.wait_for("== complaints")?;
    expect(
        after.contains("3 packets received"),
        "ping 3/3 through the VF",
    )?;
    expect(after.contains("kinds msix\n"), "its interrupts are MSI-X")?;
    expect(
        interrupts(&after) > interrupts(&before),
        "pinging interrupts",
    )?;
    let complaints = guest.wait_for("LAB-L2 exit")?;
    // That the log is there is seen by a line of every boot.
    expect(
        complaints.trim() == "boots 1\nLAB-L2 exit",
        &format!("the guest's kernel complains about nothing: {complaints}"),
    )?;
    expect(guest.wait_for_end()? == 0, "poweroff is exit status 0")?;
    expect_back(l1, SECOND)
}

/// The function is on igbvf, which works.
pub(super) fn expect_back(l1: &Host, function: &str) -> Result<()> {
    expect(
        l1.driver(function)?.as_deref() == Some("igbvf"),
        &format!("{function} is back on igbvf"),
    )?;
    expect(
        l1.has_lease(function)?,
        &format!("{function} gets a lease on the host"),
    )
}

fn expect_sane_capabilities(lspci: &str) -> Result<()> {
    expect(lspci.contains("MSI-X: Enable+ Count=3"), "MSI-X is on")?;
    expect(
        lspci.contains("Root Complex Integrated Endpoint"),
        "it is an endpoint of a root bus",
    )?;
    for wrong in ["SR-IOV", "(ARI)", "!!!", "(rev ff)", "Unknown header"] {
        let what = format!("lspci says nothing of {wrong}");
        expect(!lspci.contains(wrong), &what)?;
    }
    Ok(())
}

/// All counts of an excerpt of /proc/interrupts: `24:  12  0  PCI-MSIX-0000:00:06.0  0-edge  eth0-tx-0`
fn interrupts(text: &str) -> u64 {
    let lines = text.lines().filter(|line| line.contains("PCI-MSI"));
    lines
        .flat_map(|line| {
            line.split_whitespace()
                .skip(1)
                .map_while(|word| word.parse::<u64>().ok())
        })
        .sum()
}

/// Silent from the first to the last packet, for every character on the console is an exit.
const MANY_PACKETS: &str = "lab-dhcp || exit; cd /sys/class/net/eth0/statistics; \
    count() { echo $(($(cat rx_packets) + $(cat tx_packets))); }; before=$(count); echo == quiet; sleep 3; \
    iperf3 -c 10.0.2.100 -t 10 > /run/there 2>&1 || failed=1; sleep 1; \
    iperf3 -c 10.0.2.100 -t 10 -R > /run/back 2>&1 || failed=1; sleep 4; \
    tail -n 4 /run/there /run/back; echo packets $(($(count) - before)); exit $failed";
pub(super) const STATS: &str = "/run/stats.json";

fn packets_cost_no_exit(l1: &Host) -> Result<()> {
    let limit = Duration::from_secs(120);
    let server = l1.job("iperf3 -s -1 && iperf3 -s -1", limit)?;
    let mut guest = l1
        .viaduct(&format!(
            "run --cpus 2 --memory 384M --vfio 03:10.3,mac=52:54:00:aa:bb:cc --stats {STATS}"
        ))
        .script(MANY_PACKETS)
        .start()?;
    let lease = guest.wait_for("== quiet")?;
    expect(
        lease.contains("52:54:00:aa:bb:cc"),
        "the guest has the MAC of mac=",
    )?;
    let before = exits_in_a_while(l1)?;
    let iperf = server.wait()?;
    let after = exits_in_a_while(l1)?;
    expect(iperf.code == 0, "iperf3 ran both ways against the PF")?;
    let result = guest.succeeds()?;
    let sums = result.matches("receiver").count();
    expect(
        !result.contains("error") && sums == 2,
        "iperf3 reports what arrived either way, and no error",
    )?;
    let packets = number_after(&result, "\npackets ")?;
    l1.log(
        "lab",
        &format!("{packets} packets, exits {before} to {after}"),
    );
    expect(packets >= 100_000, "100,000 packets went through the VF")?;
    expect(
        after - before <= 100,
        &format!("{packets} packets cost {} exits", after - before),
    )?;
    let after = l1.sh("viaduct sriov 03:00.1")?;
    let own = after.contains("52:54:00:03:10:03") && !after.contains("52:54:00:aa:bb:cc");
    expect(own, "the VF has its own MAC again")?;
    expect_back(l1, SECOND)
}

/// Viaduct writes its statistics every second.
pub(super) fn exits_in_a_while(l1: &Host) -> Result<u64> {
    l1.sh("sleep 1.5")?;
    Statistics::read(l1, STATS)?.number("/exits/total")
}
