//! What a guest talks to its host by, besides the network: a virtio console, sockets, and a balloon for its memory.

use std::time::Duration;

use super::reading::md5;
use super::refusals::refused;
use super::vf::{SECOND, expect_back};
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::guest::Guest;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "sockets carry a MiB either way between a guest and its host, beside a VF and again after a reboot",
            machine: Machine::example,
            limit: Duration::from_secs(180),
            run: sockets,
        },
        Scenario {
            name: "the host's kernel carries sockets too, where it can, and a number is one guest's",
            machine: Machine::example,
            limit: Duration::from_secs(150),
            run: kernel_sockets,
        },
        Scenario {
            name: "the host has back what a guest gives up and what is free in it, but not of a guest with a card",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: balloon,
        },
        Scenario {
            name: "hvc0 is typed on, printed on and resized beside a VF, and again after a reboot",
            machine: Machine::example,
            limit: Duration::from_secs(150),
            run: console,
        },
    ]
}

/// Its person is on hvc0: the driver is a module, so that the kernel's own console stays the serial port.
const TALK: &str = "exec </dev/hvc0 >/dev/hvc0 2>&1; echo == up; read -r word; echo heard $word; \
    until [ \"$(stty size)\" = \"$word\" ]; do sleep 0.1; done; echo == resized; \
    seq 300; lab-dhcp || exit; ping -A -c 3 10.0.2.2 || exit; echo == works; read -r order; eval $order";

fn console(l1: &Host) -> Result<()> {
    let mut guest = l1
        .viaduct("run --memory 256M --vfio 03:10.3 --serial null --console stdio")
        .script(TALK)
        .on_terminal()
        .start()?;
    for size in ["50 132", "24 80"] {
        guest.wait_for("== up")?;
        guest.type_in(&format!("{size}\n"))?;
        guest.wait_for(&format!("heard {size}"))?;
        let (rows, columns) = size.split_once(' ').unwrap_or_default();
        l1.sh(&format!(
            "stty -F $(readlink /proc/$(pgrep -x viaduct)/fd/0) rows {rows} cols {columns}"
        ))?;
        guest.wait_for("== resized")?;
        let printed = guest.wait_for("== works")?;
        let printed = printed.lines().filter_map(|line| line.trim().parse().ok());
        let numbers: Vec<u32> = printed.take(300).collect();
        let all: Vec<u32> = (1..=300).collect();
        expect(numbers == all, "what is printed comes whole and in order")?;
        if size == "50 132" {
            guest.type_in("reboot -f\n")?;
        }
    }
    guest.type_in("poweroff -f\n")?;
    guest.wait_for_end()?;
    let ended_well = guest.console().lines().any(|line| line == "status 0");
    expect(ended_well, "the exit status is 0")?;
    expect_back(l1, SECOND)
}

/// Has the host's bytes summed, then sends its own, which the host's program may not be there yet for.
const EXCHANGE: &str = "head -c 1048576 /dev/urandom > /run/own; echo == own $(md5sum < /run/own); \
    socat -u VSOCK-LISTEN:1000 - | md5sum > /run/sum; echo == heard $(cat /run/sum); \
    until socat -u FILE:/run/own VSOCK-CONNECT:2:2000; do sleep 0.2; done 2>/dev/null";
const PING: &str = "lab-dhcp || exit; ping -A -c 3 10.0.2.2 || exit";
const NEXT: &str = "echo == works; read -r order; eval $order";

/// The host's commands that send `/run/bytes` to the guest's port 1000, and that sum what it sends to the host's port 2000.
struct Side {
    send: &'static str,
    take: &'static str,
}

/// The guest's program may not be there yet either: then there is no OK.
const UNIX: Side = Side {
    send: "until { echo CONNECT 1000; cat /run/bytes; } | socat -t 30 - UNIX-CONNECT:/run/v 2>/dev/null | grep OK; do sleep 0.2; done",
    take: "timeout 50 socat -u UNIX-LISTEN:/run/v_2000,unlink-early - | md5sum",
};
const KERNEL: Side = Side {
    send: "until socat -u FILE:/run/bytes VSOCK-CONNECT:3:1000; do sleep 0.2; done 2>/dev/null",
    take: "timeout 50 socat -u VSOCK-LISTEN:2000 - | md5sum",
};

fn sockets(l1: &Host) -> Result<()> {
    let guest = l1
        .viaduct("run --memory 256M --vfio 03:10.3 --vsock 3,/run/v")
        .script(&format!("{EXCHANGE}; {PING}; {NEXT}"))
        .start()?;
    exchange_twice(l1, guest, &UNIX, |_| Ok(()))?;
    l1.sh("[ ! -e /run/v ]")?;
    expect_back(l1, SECOND)
}

fn kernel_sockets(l1: &Host) -> Result<()> {
    let second = "viaduct run --kernel /lab/l2/vmlinuz --memory 128M --vsock";
    l1.sh("modprobe -r vhost_vsock; [ ! -e /dev/vhost-vsock ] || rm /dev/vhost-vsock")?;
    let absent = ["modprobe vhost_vsock", "--vsock 3,/run/guest.vsock"];
    refused(l1, &format!("{second} 3"), 1, &absent)?;
    l1.sh("modprobe vhost_vsock")?;
    let guest = l1
        .viaduct("run --memory 256M --vsock 3")
        .script(&format!("{EXCHANGE}; {NEXT}"))
        .start()?;
    exchange_twice(l1, guest, &KERNEL, |l1| {
        let taken = "the number 3 is another guest's";
        refused(l1, &format!("{second} 3"), 1, &[taken, "--vsock 4"])
    })
}

/// A MiB either way, before and after a reboot, with a look at the host in between.
fn exchange_twice(
    l1: &Host,
    mut guest: Guest<'_>,
    side: &Side,
    look: impl Fn(&Host) -> Result<()>,
) -> Result<()> {
    let sum = l1.sh("head -c 1048576 /dev/urandom > /run/bytes; md5sum < /run/bytes")?;
    for boot in [1, 2] {
        guest.wait_for("== own ")?;
        let own = guest.wait_for("\n")?;
        l1.sh(side.send)?;
        guest.wait_for("== heard ")?;
        let heard = guest.wait_for("\n")?;
        expect(
            md5(&heard)? == md5(&sum)?,
            "the guest gets what the host sent",
        )?;
        let taken = l1.sh(side.take)?;
        expect(
            md5(&taken)? == md5(&own)?,
            "the host gets what the guest sent",
        )?;
        guest.wait_for("== works")?;
        look(l1)?;
        guest.type_in(if boot == 1 { "reboot -f\n" } else { "\n" })?;
    }
    guest.succeeds().map(drop)
}

/// Fills most of its memory, so that the host has to have it, and frees it again.
const FILL: &str = "mount -t tmpfs -o size=250M t /mnt; echo == up; read -r order; head -c 209715200 /dev/zero > /mnt/f; \
    echo == full; read -r order; rm /mnt/f; echo == free; read -r order; grep MemTotal /proc/meminfo; read -r order";
/// What of the guest's RAM the host has in memory, KiB; waits until it is on the wanted side of a number.
const RESIDENT: &str = "pid=$(pgrep -fx 'viaduct run .*--balloon.*'); \
    resident() { awk '$1 ~ /-/ { large = 0 } $1 == \"Size:\" { large = $2 >= 262144 } $1 == \"Rss:\" && large { sum += $2 } END { print sum + 0 }' \
    /proc/$pid/smaps; }";

fn balloon(l1: &Host) -> Result<()> {
    let run = "viaduct run --kernel /lab/l2/vmlinuz --memory 384M";
    let pinned = ["all of it stays pinned", "--memory 256M"];
    let with_card = format!("{run} --vfio 03:10.3 --balloon 128M");
    refused(l1, &with_card, 1, &pinned)?;
    let reports = format!("{run} --vfio 03:10.3 --balloon reporting=on");
    refused(l1, &reports, 1, &["stays pinned", "leave --balloon out"])?;
    let much = format!("{run} --balloon 300M");
    refused(
        l1,
        &much,
        1,
        &["leaves too little to live", "--balloon 288M"],
    )?;
    let mut guest = l1
        .viaduct("run --memory 384M --balloon 64M,reporting=on --stats /run/balloon.json")
        .script(FILL)
        .start()?;
    guest.wait_for("== up")?;
    l1.sh("until grep -q 'balloon_bytes\": 67108864' /run/balloon.json; do sleep 0.5; done")?;
    guest.type_in("\n")?;
    guest.wait_for("== full")?;
    l1.sh(&format!(
        "{RESIDENT}; until [ $(resident) -gt 200000 ]; do sleep 0.5; done; resident > /run/full"
    ))?;
    guest.type_in("\n")?;
    guest.wait_for("== free")?;
    // Linux reports what is free in pieces of 2 MiB, some two seconds after; what lies between pages in use stays.
    l1.sh(&format!(
        "{RESIDENT}; until [ $(resident) -lt $(($(cat /run/full) - 98304)) ]; do sleep 0.5; done"
    ))?;
    guest.type_in("\n\n")?;
    guest.succeeds().map(drop)
}
