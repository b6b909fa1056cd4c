//! Virtio disks at their worst: a VMM that dies while it writes, a host that loses its power, one without room, a device that goes.

use std::time::Duration;

use super::refusals::refused;
use super::{Scenario, expect, hands};
use crate::cards::Machine;
use crate::disks::RANDOM_BYTES;
use crate::error::Result;
use crate::host::Host;

/// SIGKILL.
const KILL: i32 = 9;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "what a guest was told is stored is on the disk when the VMM is killed while it writes",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: killed_while_writing,
        },
        Scenario {
            name: "a full host and a device that goes cost a virtio disk I/O errors, and its guest nothing else",
            machine: Machine::example,
            limit: Duration::from_secs(150),
            run: full_and_gone,
        },
        Scenario {
            name: "a guest's flushed writes survive a power cut of the host, and unflushed ones in the host's page cache do not",
            machine: hands::machine,
            limit: Duration::from_secs(120),
            run: power_cut,
        },
    ]
}

/// Writes record after record, and says each one's number once it is flushed.
const RECORDS: &str = "i=0; while :; do echo \"record $i.\" | dd of=/dev/vda bs=512 seek=$((i * 7)) conv=sync,fsync,notrunc 2>/dev/null \
    && echo \"stored $i.\"; i=$((i + 1)); done";

fn killed_while_writing(l1: &Host) -> Result<()> {
    for round in 0..l1.amount(1, 10) {
        kill_after(l1, 25 + 7 * round)?;
    }
    // Hosts that have no io_uring, or do not let anybody have it: the path that unit tests take as well.
    let rounds = l1.amount(0, 10);
    l1.sh("sysctl -q kernel.io_uring_disabled=2")?;
    let without = (0..rounds).try_for_each(|round| {
        let said = kill_after(l1, 25 + 7 * round)?;
        expect(said.contains("no io_uring"), "the host is told of it")
    });
    l1.sh("sysctl -q kernel.io_uring_disabled=0")?;
    without
}

/// Kills the VMM after this many records; what it said.
fn kill_after(l1: &Host, last: u32) -> Result<String> {
    l1.sh("rm -f /run/records.img; truncate -s 16M /run/records.img")?;
    let devices = "run -v --memory 384M --disk /run/records.img";
    let mut guest = l1.viaduct(devices).script(RECORDS).start()?;
    guest.wait_for(&format!("stored {last}."))?;
    guest.signal(KILL)?;
    guest.wait_for_end()?;
    let stored = guest.console().lines().filter_map(|line| {
        let number = line.strip_prefix("stored ")?.strip_suffix('.')?;
        number.parse::<u32>().ok()
    });
    let looks: Vec<String> = stored
        .map(|number| {
            let read = format!(
                "dd if=/run/records.img bs=512 skip={} count=1 2>/dev/null",
                number * 7
            );
            format!("{read} | grep -aqx 'record {number}.'")
        })
        .collect();
    expect(looks.len() > 25, "it was told of what it stored")?;
    l1.sh(&looks.join(" && "))?;
    Ok(guest.errors().to_owned())
}

/// A file with more sectors than its file system has room for, and a disk that can be pulled; prints the latter's name.
const SET_UP: &str = "mkdir -p /run/small; mount -t tmpfs -o size=4M small /run/small; truncate -s 16M /run/small/full.img; \
    modprobe sd_mod; modprobe scsi_debug dev_size_mb=16; \
    until disk=$(ls /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block 2>/dev/null); do sleep 0.1; done; echo $disk";
/// Writes until nothing fits, reads what it wrote before, and goes on once there is room; then the other disk is pulled.
const USE: &str = "w() { dd if=/dev/zero of=/dev/$1 bs=64k count=$2 seek=$3 oflag=direct conv=fsync 2>/dev/null; }; \
    r() { dd if=/dev/$1 of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null; }; \
    w vda 16 0 || exit 1; w vda 200 0 && exit 2; r vda || exit 3; w vdb 4 0 || exit 4; echo == full; read -r order; \
    w vda 200 0 || exit 5; echo == room; read -r order; r vdb && exit 6; w vdb 1 0 && exit 7; r vda || exit 8";

fn full_and_gone(l1: &Host) -> Result<()> {
    let disk = l1.sh(SET_UP)?;
    let disk = disk.trim();
    let devices = format!("--disk /run/small/full.img --disk /dev/{disk},direct=on,addr=0a");
    let run = format!("run --memory 384M {devices}");
    let mut guest = l1.viaduct(&run).script(USE).start()?;
    guest.wait_for("== full")?;
    expect(
        guest.errors().contains("No space left on device"),
        "the host is told that it is full",
    )?;
    l1.sh("mount -o remount,size=32M /run/small")?;
    guest.type_in("\n")?;
    guest.wait_for("== room")?;
    l1.sh(&format!("echo 1 > /sys/block/{disk}/device/delete"))?;
    guest.type_in("\n")?;
    guest.wait_for("LAB-L2 exit 0")?;
    expect(guest.wait_for_end()? == 0, "the guest ends well")?;
    let failures = guest
        .errors()
        .matches("the guest sees an I/O error")
        .count();
    expect(
        (1..20).contains(&failures),
        &format!("the host is told of some failures, and not of each: {failures}"),
    )?;
    // What the host has mounted is not a guest's.
    let mounted = "umount /run/small; modprobe -r scsi_debug; modprobe loop; truncate -s 16M /run/own.img; \
        loop=$(losetup -f --show /run/own.img) && mke2fs -q $loop && mkdir -p /run/own && mount $loop /run/own && echo $loop";
    let own = l1.sh(mounted)?;
    let dry = format!(
        "viaduct run --kernel /lab/l2/vmlinuz --dry-run --disk {}",
        own.trim()
    );
    refused(l1, &dry, 1, &["the host itself uses it"])?;
    l1.sh(&format!("umount /run/own && losetup -d {}", own.trim()))
        .map(drop)
}

const MIB: usize = 1 << 20;
/// Where the guest writes a record that it flushes, and one that it does not, behind the random part.
const FLUSHED_MIB: usize = 8;
const UNFLUSHED_MIB: usize = 16;

/// Zeroes a part of a disk, then writes both records on each, with flushes in between. Direct writes reach the host at once; only fsync
/// sends a flush.
const STORE: &str = "put() { for disk in vda vdb vdc; do \
    echo $2 record | dd of=/dev/$disk bs=1M seek=$1 conv=sync,notrunc oflag=direct 2>/dev/null || exit; done; }; \
    blkdiscard -z -o 1M -l 1M /dev/vda && put 8 flushed; echo == written; read -r order; \
    for disk in vda vdb vdc; do dd if=/dev/null of=/dev/$disk conv=notrunc,fsync 2>/dev/null || exit; done; \
    put 16 unflushed; echo == stored; read -r order";

fn power_cut(l1: &Host) -> Result<()> {
    // L1's kernel writes nothing back by itself for an hour.
    l1.sh("sysctl -q vm.dirty_writeback_centisecs=360000 vm.dirty_expire_centisecs=360000")?;
    let path = |serial: &str| {
        let found = l1.sh(&format!("grep -lx {serial} /sys/block/vd*/serial"))?;
        Ok(found.replace("/sys/block", "/dev").replace("/serial\n", ""))
    };
    let (first, second) = (path("d1")?, path("d2")?);
    let devices = format!(
        "--disk {first} --disk {second} --disk {},direct=on",
        path("d3")?
    );
    // The second disk gets no io_uring and falls back to the device's thread.
    let mut guest = l1
        .viaduct(&format!("run -v --memory 256M {devices}"))
        .under("strace -qqo /dev/null -e trace=io_uring_setup -e inject=io_uring_setup:error=EPERM:when=2")
        .script(STORE)
        .start()?;
    guest.wait_for("== written")?;
    for (disk, is_without) in [("blk0", false), ("blk1", true), ("blk2", false)] {
        let note = format!("{disk}: one request after the other");
        let so = guest.errors().contains(&note) == is_without;
        expect(so, "one of the disks has no io_uring")?;
    }
    let has = |disk: &str, mib: usize, record: &[u8]| {
        let found = l1.disk(disk).bytes(mib * MIB..mib * MIB + record.len());
        found.map(|found| found == record)
    };
    let flushed = |disk| has(disk, FLUSHED_MIB, b"flushed record\n");
    let early = flushed("d1")? || flushed("d2")?;
    expect(!early, "before its flush a record is not on the disk")?;
    let before = l1.flushes("d3")?;
    guest.type_in("\n")?;
    guest.wait_for("== stored")?;
    // A direct write is in the disk's file at once: only the flush command shows.
    expect(
        l1.flushes("d3")? > before,
        "the third disk is told to flush",
    )?;
    for disk in [first, second] {
        let read = format!("dd if={disk} bs=1M skip={UNFLUSHED_MIB} count=1 status=none");
        let said = l1.sh(&format!("{read} | head -n 1"))?;
        let kept = said == "unflushed record\n";
        expect(kept, "the host has the last record in its page cache")?;
    }
    l1.cut_power();
    for disk in ["d1", "d2"] {
        expect(flushed(disk)?, &format!("what was flushed is on {disk}"))?;
        let unflushed = has(disk, UNFLUSHED_MIB, b"unflushed record\n")?;
        expect(
            !unflushed,
            &format!("what was not flushed is not on {disk}"),
        )?;
    }
    let bytes = l1.disk("d1").bytes(0..RANDOM_BYTES)?;
    let zeroes = |part: &[u8]| part.iter().filter(|byte| **byte == 0).count();
    let zeroed = zeroes(&bytes[MIB..2 * MIB]);
    expect(zeroed == MIB, "what was zeroed reads as zeroes")?;
    // One in 256 of what is random.
    let others = zeroes(&bytes) - zeroed;
    expect(others < RANDOM_BYTES / 128, "nothing else was zeroed")
}
