//! Network interfaces by virtio and an emulated one beside an assigned one: over taps of L1's, where L1 hands out addresses.

use std::time::Duration;

use super::reading::Statistics;
use super::refusals::refused;
use super::vf::{SECOND, STATS, expect_back};
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "interfaces by vhost, by a thread, emulated and a VF work in one guest, and again after a reboot",
        machine: Machine::example,
        limit: Duration::from_secs(240),
        run: beside_a_vf,
    }]
}

/// Three taps, the second with several queues, each with an address of L1's and somebody who hands out others.
pub(super) const TAPS: &str = "modprobe -a tun vhost_net && chmod 666 /dev/net/tun || exit; \
    add() { [ -e /sys/class/net/tap$1 ] && return; ip tuntap add tap$1 mode tap user root $2 && ip addr add 10.9.$1.1/24 dev tap$1 && \
    ip link set tap$1 up || exit; touch /run/leases$1; \
    printf 'start 10.9.%s.20\\nend 10.9.%s.99\\ninterface tap%s\\noption subnet 255.255.255.0\\nlease_file /run/leases%s\\npidfile /run/udhcpd%s\\n' \
    $1 $1 $1 $1 $1 > /run/udhcpd$1.conf; busybox udhcpd /run/udhcpd$1.conf; }; add 0; add 1 multi_queue; add 2";

/// Looks at every interface, then does what is typed.
const LOOK: &str = "lab-dhcp || exit; for net in /sys/class/net/eth*; do nic=${net##*/}; driver=$(readlink $net/device/driver); \
    echo $nic ${driver##*/} pairs $(ethtool -l $nic 2>/dev/null | awk '/Combined/ { n = $2 } END { print n }'); done; \
    for to in 10.9.0.1 10.9.1.1 10.9.2.1 10.0.2.2; do ping -A -c 3 $to || exit; done; echo == works; read -r order; eval \"$order\"";

pub(super) fn beside_a_vf(l1: &Host) -> Result<()> {
    l1.sh(TAPS)?;
    let before = l1.state()?;
    expect_refusals(l1)?;
    l1.expect_unchanged(&before)?;
    let mib = l1.amount(16, 100);
    let ways: &[_] = l1.amount(&[["off", "on"]], &[["off", "on"], ["on", "off"]]);
    for [first, second] in ways {
        let networks = format!(
            "--net tap=tap0,vhost={first} --net tap=tap1,queues=2,vhost={second},mac=02:00:00:00:00:01 \
             --net tap=tap2,model=rtl8139"
        );
        carry_packets(l1, &networks, mib)?;
    }
    Ok(())
}

/// All interfaces, over a reboot; then many packets, which no vCPU leaves the kernel for.
fn carry_packets(l1: &Host, networks: &str, mib: u32) -> Result<()> {
    let server = l1.job("iperf3 -s", Duration::from_secs(200))?;
    let cpus = l1.amount(2, 4);
    let mut guest = l1
        .viaduct(&format!(
            "run --cpus {cpus} --memory 384M --vfio 03:10.3 {networks} --stats {STATS}"
        ))
        .script(LOOK)
        .start()?;
    for boot in [1, 2] {
        guest.wait_for("LAB-L2 init")?;
        let said = guest.wait_for("== works")?;
        expect(
            said.contains("02:00:00:00:00:01"),
            "the address is the one that was asked for",
        )?;
        let pings = said.matches("3 packets received").count();
        expect(pings == 4, "each interface reaches its other end")?;
        let pairs = said.contains("virtio_net pairs 1") && said.contains("virtio_net pairs 2");
        expect(pairs, "one has a pair of queues and the other two")?;
        expect(
            said.contains("8139too pairs"),
            "an emulated card has its driver",
        )?;
        if boot == 1 {
            expect_busy(l1)?;
            guest.type_in("reboot\n")?;
        }
    }
    let before = exits_at_registers(l1)?;
    guest.type_in(&format!(
        "cd /run; for to in 10.9.0.1 10.9.1.1; do for way in '' -R; do iperf3 $way -c $to -n {mib}M > said || exit; \
         tail -n 4 said >> all; done; done; echo; echo == carried; cat all; read -r order\n"
    ))?;
    guest.wait_for("\n== carried")?;
    let after = exits_at_registers(l1)?;
    let packets = packets(l1)?;
    let cost = format!("{packets} packets cost {} exits", after - before);
    l1.log("lab", &cost);
    // Each way through two taps, in segments of 64 KiB at the most.
    expect(packets >= 1_000, "packets went through the taps")?;
    // The emulated card hears what the host's own stack has to say now and then.
    expect(after - before <= 500, &cost)?;
    guest.type_in("\n")?;
    let said = guest.succeeds()?;
    let sums = said.matches("receiver").count();
    expect(
        !said.contains("error") && sums == 4,
        &format!("iperf3 reports what arrived four times, not {sums}, and no error"),
    )?;
    drop(server);
    expect_back(l1, SECOND)
}

/// Viaduct writes its statistics every second. The console is ports, the devices are memory.
fn exits_at_registers(l1: &Host) -> Result<u64> {
    l1.sh("sleep 1.5")?;
    let statistics = Statistics::read(l1, STATS)?;
    Ok(statistics.number("/exits/mmio_read")? + statistics.number("/exits/mmio_write")?)
}

/// How many packets both taps have seen, either way.
fn packets(l1: &Host) -> Result<u64> {
    let counts = l1.sh("cat /sys/class/net/tap[01]/statistics/[rt]x_packets")?;
    Ok(counts
        .lines()
        .filter_map(|line| line.parse::<u64>().ok())
        .sum())
}

/// What cannot be had is named, with what to do; nothing is changed for it.
fn expect_refusals(l1: &Host) -> Result<()> {
    let run = "viaduct run --kernel /lab/l2/vmlinuz --dry-run --net";
    refused(
        l1,
        &format!("{run} tap=lo"),
        1,
        &["lo is no tap", "ip tuntap add"],
    )?;
    let one = ["tap0 has one queue", "mode tap multi_queue"];
    refused(l1, &format!("{run} tap=tap0,queues=2"), 1, &one)?;
    let other = ["fd=9 is no open queue of a tap"];
    refused(l1, &format!("{run} fd=9"), 1, &other)?;
    let twice = ["tap0 is named twice"];
    refused(l1, &format!("{run} tap=tap0 --net tap=tap0"), 1, &twice)?;
    let foreign = ["tap0 may not be used by this user", "user $USER"];
    let nobody = "setpriv --reuid 65534 --clear-groups";
    refused(l1, &format!("{nobody} {run} tap=tap0"), 1, &foreign)
}

/// A guest's taps are its own, also one that has several queues; the kernel carries the packets of one of them.
fn expect_busy(l1: &Host) -> Result<()> {
    for tap in ["tap0", "tap1"] {
        let run = format!("viaduct run --kernel /lab/l2/vmlinuz --dry-run --net tap={tap}");
        let who = format!("{tap} is in use by process ");
        refused(l1, &run, 1, &[&who, " (viaduct)"])?;
    }
    let guests = "$(pgrep -fx 'viaduct run .*tap=tap0,.*')";
    let open = l1.sh(&format!(
        "for pid in {guests}; do ls -l /proc/$pid/fd; done"
    ))?;
    let kernels = open.matches("/dev/vhost-net").count();
    expect(kernels == 1 || kernels == 2, "the kernel has a part in it")
}
