//! Host resources of a guest: the pool of huge pages, a device bound by hand, inherited and new taps, vhost-net.

use std::time::Duration;

use super::reading::number_after;
use super::refusals::refused;
use super::vf::{SECOND, expect_back};
use super::{Scenario, boot, expect};
use crate::cards::Machine;
use crate::error::{Error, Result};
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "a guest with huge pages, a VF bound by hand, an inherited tap and one that run makes leaves the host as it was",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: prepared,
        },
        Scenario {
            name: "a VF works in a guest on a page of 1 GiB",
            machine: boot::large,
            limit: Duration::from_secs(120),
            run: gigantic,
        },
    ]
}

/// The host's pool of huge pages of one size.
struct Pool<'a> {
    l1: &'a Host,
    page_kib: u64,
}

impl Pool<'_> {
    /// Sets the size of the pool, and returns what the kernel made of it.
    fn resize(&self, pages: u64) -> Result<u64> {
        let dir = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", self.page_kib);
        let said = self.l1.sh(&format!(
            "echo {pages} > {dir}/nr_hugepages; echo total $(cat {dir}/nr_hugepages)"
        ))?;
        number_after(&said, "total ")
    }

    /// The number of free pages.
    fn free(&self) -> Result<u64> {
        let dir = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", self.page_kib);
        let said = self
            .l1
            .sh(&format!("echo free $(cat {dir}/free_hugepages)"))?;
        number_after(&said, "free ")
    }

    /// The guest has mapped this many pages, which is the whole pool.
    fn expect_taken(&self, pages: u64) -> Result<()> {
        expect(self.free()? == 0, "the guest has the pages of the pool")?;
        let sum = "awk '/_Hugetlb:/ { sum += $2 } END { print \"huge \" sum }' /proc/$(pgrep -fx 'viaduct run .*hugepages=.*')/smaps";
        let mapped = number_after(&self.l1.sh(sum)?, "huge ")?;
        expect(
            mapped == pages * self.page_kib,
            &format!("its memory is these pages: {mapped} KiB of it"),
        )
    }
}

/// A macvtap, whose character device a shell can open: `handed` is on one end of a veth pair, the address to ping on the other, `far`.
const HAND: &str = "modprobe -a tun vhost_net macvtap veth && ip link add near type veth peer name far && \
    ip addr add 10.9.7.1/24 dev far && ip link set far up && ip link set near up && \
    ip link add link near name handed address 02:00:00:00:07:02 type macvtap mode bridge && ip link set handed up";
const NETS: &str = "--net tap=made,mac=02:00:00:00:06:02 --net fd=3,mac=02:00:00:00:07:02";

/// Pings through all three interfaces, each found by its MAC address.
const PING: &str = "of() { net=$(grep -l $1 /sys/class/net/*/address); net=${net%/*}; net=${net##*/}; }; \
    of 52:54:00:03:10:03; lab-dhcp $net && ping -A -c 3 10.0.2.2 || exit; \
    for n in 6 7; do of 02:00:00:00:0$n:02; ip addr add 10.9.$n.2/24 dev $net; ip link set $net up; done; \
    echo == up; read -r order; for n in 6 7; do ping -A -c 3 10.9.$n.1 || exit; done";

fn prepared(l1: &Host) -> Result<()> {
    let pages = 128;
    let pool = Pool { l1, page_kib: 2048 };
    expect(pool.resize(pages)? == pages, "the host has huge pages")?;
    l1.sh(HAND)?;
    l1.bind_to_vfio(SECOND)?;
    let before = l1.bindings()?;
    let mut guest = l1
        .viaduct(&format!(
            "run --memory 256M,hugepages=2M --vfio 03:10.3,managed=off {NETS}"
        ))
        .redirect("3<> /dev/tap$(cat /sys/class/net/handed/ifindex)")
        .script(PING)
        .start()?;
    guest.wait_for("== up")?;
    pool.expect_taken(pages)?;
    l1.sh("ip addr add 10.9.6.1/24 dev made")?;
    let open = l1.sh("ls -l /proc/$(pgrep -fx 'viaduct run .*tap=made,.*')/fd")?;
    let kernels = open.matches("/dev/vhost-net").count();
    expect(
        kernels == 2,
        "by default the kernel carries the packets of both taps",
    )?;
    guest.type_in("\n")?;
    let said = guest.succeeds()?;
    let pings = said.matches("3 packets received").count();
    expect(pings == 3, "the VF and both taps reach their other ends")?;
    expect(pool.free()? == pages, "the pool has its pages again")?;
    expect(l1.bindings()? == before, "the VF is on vfio-pci as before")?;
    l1.sh("[ -e /sys/class/net/handed ] && [ ! -e /sys/class/net/made ]")?;
    pool.resize(0)?;
    l1.sh("ip link del near")?;
    l1.give_back(SECOND)?;
    expect_back(l1, SECOND)?;
    let bound = l1.bindings()?;
    let unbound = "viaduct run --kernel /lab/l2/vmlinuz --memory 64M --vfio 03:10.3,managed=off";
    refused(
        l1,
        unbound,
        1,
        &["0000:03:10.3: is bound to igbvf", "viaduct bind 03:10.3"],
    )?;
    expect(l1.bindings()? == bound, "and nothing has changed")?;
    without_vhost(l1)
}

/// A pending SIGTERM, which viaduct takes once the machine is set up.
const SET_UP: &str = "env --block-signal=TERM sh -c 'kill -TERM $$; exec viaduct run -v --kernel /lab/l2/vmlinuz --memory 64M --net tap=made2' 2>&1";

/// Without /dev/vhost-net, or without permission to open it, `vhost=auto` takes a thread.
fn without_vhost(l1: &Host) -> Result<()> {
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all";
    let ways = [
        (
            "mv /dev/vhost-net /dev/vhost-net.away",
            "",
            "modprobe vhost_net",
            "mv /dev/vhost-net.away /dev/vhost-net",
        ),
        (
            "ip tuntap add made2 mode tap user 65534; chmod 666 /dev/kvm /dev/net/tun; chmod 600 /dev/vhost-net",
            user,
            "ls -l /dev/vhost-net",
            "ip link del made2",
        ),
    ];
    for (before, user, advice, after) in ways {
        let said = l1.sh(&format!(
            "{before}; {user} {SET_UP}; echo status $?; {after}"
        ))?;
        for text in ["a thread carries the packets of made2", advice, "status 0"] {
            expect(said.contains(text), &format!("\"{text}\" in {said}"))?;
        }
        l1.sh("[ ! -e /sys/class/net/made2 ]")?;
    }
    Ok(())
}

fn gigantic(l1: &Host) -> Result<()> {
    let pool = Pool {
        l1,
        page_kib: 1 << 20,
    };
    if pool.free()? == 0 {
        let why = "this runner's processors have no pages of 1 GiB".into();
        return Err(Error::Skipped(why));
    }
    let mut guest = l1
        .viaduct("run --memory 1G,hugepages=1G --vfio 03:10.3")
        .script("lab-dhcp && ping -A -c 3 10.0.2.2 && echo == up; read -r order")
        .start()?;
    let said = guest.wait_for("== up")?;
    expect(
        said.contains("3 packets received"),
        "the VF reaches its other end",
    )?;
    pool.expect_taken(1)?;
    guest.type_in("\n")?;
    guest.succeeds()?;
    expect(pool.free()? == 1, "the pool has its page again")?;
    pool.resize(0)?;
    expect_back(l1, SECOND)
}
