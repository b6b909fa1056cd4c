//! A whole guest: Debian with systemd on a virtio disk, a VF and a virtio interface for its network, and people who log in: on the
//! serial port, on the virtio console and over the network.

use std::time::Duration;

use super::network::TAPS;
use super::vf::{SECOND, expect_back};
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "a Debian on a virtio disk starts all of its services, has a VF and a virtio interface, and lets people log in on every way",
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

/// A person's key, which the guest learns of by a credential: systemd puts it where sshd looks (systemd.system-credentials(7)).
const KEY: &str = "[ -e /run/key ] || ssh-keygen -q -t ed25519 -N '' -f /run/key";
/// Says nothing of the host to where it goes, and asks nobody.
const SSH: &str =
    "ssh -i /run/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR";

/// Logs in at the pseudoterminal $1 as a person does, and has it say where that is.
const LOG_IN: &str = r#"exec 3<>"$1"; stty -F "$1" raw -echo cols 97 rows 31
until_it_says() { said=; while read -r -t 60 -N 1 char <&3; do said+=$char; [[ $said == *"$1"* ]] && return; done; echo "$said"; exit 1; }
echo >&3; until_it_says 'login: '; echo root >&3; until_it_says 'Password: '; echo lab >&3; until_it_says '# '
echo 'echo on=$(tty) of $(stty size)' >&3; until_it_says 'on=/dev/hvc0 of 31 97'; echo exit >&3; echo logged in"#;

/// Over the virtio interface and on the virtio console.
fn other_ways(l1: &Host, said: &str, console: &str) -> Result<()> {
    let address = said
        .split_whitespace()
        .find_map(|word| word.strip_prefix("10.9.0."));
    let address = address.and_then(|rest| rest.split('/').next());
    let address = format!("10.9.0.{}", address.unwrap_or("?"));
    let session = l1.sh(&format!(
        "{SSH} root@{address} 'echo from $SSH_CONNECTION; hostname'"
    ))?;
    expect(
        session.contains("from 10.9.0.1 ") && session.ends_with("\ndebian\n"),
        &format!("ssh reaches the guest: {session}"),
    )?;
    l1.sh(&format!("cat > /run/log-in <<'END'\n{LOG_IN}\nEND"))?;
    let ended = l1.sh(&format!("bash /run/log-in {console}"))?;
    expect(ended == "logged in\n", "hvc0 has a login")
}

fn whole_system(l1: &Host) -> Result<()> {
    l1.debian(DISK)?;
    l1.sh(TAPS)?;
    l1.sh(KEY)?;
    let data = l1.sh(DATA)?;
    let data = data.trim();
    let devices = format!(
        "--vfio 03:10.3 --disk {DISK} --disk {data},direct=on --rng --net tap=tap0 --console pty \
         --credential ssh.authorized_keys.root:/run/key.pub"
    );
    let cpus = l1.amount(2, 4);
    let mut guest = l1
        .viaduct(&format!("run --cpus {cpus} --memory 512M {devices}"))
        .kernel_words("root=/dev/vda rw")
        .deadline_s(l1.amount(240, 1800))
        .start()?;
    log_in(&mut guest)?;
    let console = console_of(&guest)?;
    guest.type_in(LOOK)?;
    let said = guest.wait_for("== 21")?;
    let is_running = said.contains("state=running");
    expect(is_running, "systemd says that all is running")?;
    expect(said.contains("inet 10.0.2."), "the VF has an address")?;
    expect(said.contains("/dev/vda ext4 rw"), "its root is the disk")?;
    other_ways(l1, &said, &console)?;
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

/// The pseudoterminal of its virtio console, as the VMM said it.
fn console_of(guest: &Guest<'_>) -> Result<String> {
    let errors = guest.errors();
    let path = errors
        .lines()
        .find_map(|line| line.split("hvc0 is at ").nth(1));
    let path = path.map(|path| path.trim().to_owned());
    path.ok_or_else(|| Error::Unexpected(format!("no console hvc0 in {errors}")))
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
