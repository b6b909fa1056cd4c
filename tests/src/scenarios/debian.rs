//! A whole guest: Debian with systemd on a virtio disk, a VF for its network, a person who logs in.

use std::time::Duration;

use super::vf::{SECOND, expect_back};
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::guest::Guest;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "a Debian on a virtio disk starts all of its services, gets an address on its VF, and lets a person log in",
        machine: Machine::example,
        // On a fresh machine it installs Debian first.
        limit: Duration::from_secs(420),
        run: whole_system,
    }]
}

const DISK: &str = "/run/debian.img";
/// A block device of the host's with blocks of 4 KiB; prints its name.
const DATA: &str = "truncate -s 64M /run/data.img; modprobe loop; losetup -f --show --sector-size 4096 /run/data.img";
/// How much of it each of eight jobs has.
const PART_MIB: u32 = 8;
/// `running` is systemd's word for all that was to start having started, and nothing having failed.
const LOOK: &str = "echo state=$(systemctl is-system-running --wait); systemctl --failed --no-legend; \
    ip -4 -o addr show scope global | cat; findmnt -no SOURCE,FSTYPE,OPTIONS /; echo == $((20 + 1))\n";

fn whole_system(l1: &Host) -> Result<()> {
    l1.debian(DISK)?;
    let data = l1.sh(DATA)?;
    let data = data.trim();
    let devices = format!("--vfio 03:10.3 --disk {DISK} --disk {data},direct=on --rng");
    let mut guest = l1
        .viaduct(&format!("run --cpus 2 --memory 512M {devices}"))
        .kernel_words("root=/dev/vda rw")
        .deadline_s(240)
        .start()?;
    log_in(&mut guest)?;
    guest.type_in(LOOK)?;
    let said = guest.wait_for("== 21")?;
    let is_running = said.contains("state=running");
    expect(is_running, "systemd says that all is running")?;
    expect(said.contains("inet 10.0.2."), "the VF has an address")?;
    expect(said.contains("/dev/vda ext4 rw"), "its root is the disk")?;
    let total_mib = l1.amount(64, 2048);
    guest.type_in(&verify(total_mib))?;
    let said = guest.wait_for("== 42")?;
    expect(said.contains("blocks 4096"), "the guest knows its blocks")?;
    expect(said.contains("\nerr= 0\n"), "fio finds what it wrote")?;
    guest.type_in("echo kept > /root/word; poweroff\n")?;
    expect(guest.wait_for_end()? == 0, "the guest shuts down")?;
    expect_back(l1, SECOND)?;
    // It is a file system, whole, with what was written in it.
    let look = format!(
        "e2fsck -fn {DISK} && debugfs -R 'cat /root/word' {DISK}; rm {DISK}; losetup -d {data}"
    );
    let said = l1.sh(&look)?;
    expect(said.ends_with("kept\n"), "what it wrote is on its disk")
}

/// Eight jobs write, each its part of the disk, in pieces of any size and order, then read all of it and compare.
fn verify(total_mib: u32) -> String {
    let (part_mib, loops) = (PART_MIB, total_mib.div_ceil(8 * PART_MIB));
    format!(
        "echo blocks $(cat /sys/block/vdb/queue/logical_block_size); fio --name=j --filename=/dev/vdb --direct=1 --ioengine=libaio \
         --rw=randwrite --bsrange=4k-128k --iodepth=8 --numjobs=8 --size={part_mib}M --offset_increment={part_mib}M --loops={loops} \
         --verify=crc32c --group_reporting | grep -o 'err= [0-9]*'; echo == $((40 + 2))\n"
    )
}

/// As a person would, on the serial port, once there is somebody to ask who it is.
pub(crate) fn log_in(guest: &mut Guest<'_>) -> Result<()> {
    guest.wait_for("debian login: ")?;
    guest.type_in("root\n")?;
    guest.wait_for("Password: ")?;
    guest.type_in("lab\n")?;
    guest.wait_for("root@debian:~# ").map(drop)
}
