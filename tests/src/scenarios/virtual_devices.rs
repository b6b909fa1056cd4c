//! Devices of ours beside an assigned one: disks and random numbers by virtio.

use std::time::Duration;

use super::refusals::refused;
use super::vf::{SECOND, STATS, exits_in_a_while, expect_back};
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "virtio disks and random numbers work beside a VF, and again after a reboot",
            machine: Machine::example,
            limit: Duration::from_secs(180),
            run: beside_a_vf,
        },
        Scenario {
            name: "a virtio disk is one guest's, and costs it I/O errors when its file is cut",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: one_guests,
        },
    ]
}

/// Looks at everything, writes what the next boot is to find, then does what is typed.
const LOOK: &str = "for disk in vda vdb; do head -c 4194304 /dev/$disk | md5sum; echo $disk ro $(cat /sys/block/$disk/ro); done; \
    dd if=/dev/vda bs=512 skip=20000 count=1 2>/dev/null | head -n 1; \
    echo kept | dd of=/dev/vda bs=512 seek=20000 conv=fsync 2>/dev/null; \
    cat /sys/class/misc/hw_random/rng_current; echo random $(head -c 64 /dev/hwrng | wc -c); \
    lab-dhcp || exit; ping -c 3 10.0.2.2 || exit; echo == works; read -r order; eval $order";
/// Each read is a request, and nothing is said meanwhile: a character on the console is an exit.
const MANY_READS: &str = "dd if=/dev/vda of=/dev/null bs=4k count=2000 iflag=direct 2>/dev/null && echo == read; read -r order\n";

fn beside_a_vf(l1: &Host) -> Result<()> {
    let sums: Vec<String> = ["d0", "d1"]
        .into_iter()
        .map(|name| make_disk(l1, name))
        .collect::<Result<_>>()?;
    let devices = "--vfio 03:10.3 --disk /run/d0.img --disk /run/d1.img,readonly --rng";
    let mut guest = l1
        .viaduct(&format!(
            "run --cpus 2 --memory 384M {devices} --stats {STATS}"
        ))
        .script(LOOK)
        .start()?;
    for boot in [1, 2] {
        guest.wait_for("LAB-L2 init")?;
        let said = guest.wait_for("== works")?;
        for sum in &sums {
            expect(said.contains(sum), "each disk reads as its file does")?;
        }
        let kinds = said.contains("vda ro 0") && said.contains("vdb ro 1");
        expect(kinds, "one can be written and the other cannot")?;
        let is_kept = said.lines().any(|line| line == "kept");
        expect(
            is_kept == (boot == 2),
            "what the first boot wrote the second finds",
        )?;
        let random = said.contains("virtio_rng") && said.contains("random 64");
        expect(random, "random numbers come from the host")?;
        expect(said.contains("3 packets received"), "the VF works as well")?;
        if boot == 1 {
            guest.type_in("reboot\n")?;
        }
    }
    let before = exits_in_a_while(l1)?;
    guest.type_in(MANY_READS)?;
    guest.wait_for("\n== read")?;
    let after = exits_in_a_while(l1)?;
    // The typed line and the word in answer are some; a request that exits would be thousands.
    let cost = format!("2000 reads cost {} exits", after - before);
    l1.log("lab", &cost);
    expect(after - before <= 1000, &cost)?;
    guest.type_in("\n")?;
    guest.succeeds()?;
    let kept = l1.sh("dd if=/run/d0.img bs=512 skip=20000 count=1 2>/dev/null | head -n 1")?;
    expect(kept.trim() == "kept", "what the guest wrote is in the file")?;
    expect_back(l1, SECOND)
}

/// A disk of 16 MiB in L1, the first four of them random; their sum.
fn make_disk(l1: &Host, name: &str) -> Result<String> {
    let path = format!("/run/{name}.img");
    let said = l1.sh(&format!(
        "head -c 4194304 /dev/urandom > {path}; md5sum < {path}; truncate -s 16M {path}"
    ))?;
    Ok(said
        .split_whitespace()
        .next()
        .unwrap_or("no sum")
        .to_owned())
}

/// Neither reads nor writes where there is nothing any more, and goes on.
const PAST_THE_CUT: &str = "head -c 4194304 /dev/vda | md5sum; echo == up; read -r order; \
    dd if=/dev/vda of=/dev/null bs=512 skip=8000 count=1 iflag=direct && exit 1; \
    dd if=/dev/zero of=/dev/vda bs=512 seek=8000 count=1 oflag=direct && exit 1; \
    dd if=/dev/vda of=/dev/null bs=512 count=1 iflag=direct";

fn one_guests(l1: &Host) -> Result<()> {
    let sum = make_disk(l1, "d2")?;
    let with_disk = "--memory 256M --disk /run/d2.img";
    let mut guest = l1
        .viaduct(&format!("run {with_disk}"))
        .script(PAST_THE_CUT)
        .start()?;
    expect(guest.wait_for("== up")?.contains(&sum), "it reads its disk")?;
    let pid = l1.sh("pgrep -fx 'viaduct run .*d2.img'")?;
    let holder = format!("is in use by process {} (viaduct)", pid.trim());
    let second = format!("viaduct run --kernel /lab/l2/vmlinuz --dry-run {with_disk}");
    refused(l1, &second, 1, &[&holder, ",readonly"])?;
    l1.sh("truncate -s 1M /run/d2.img")?;
    guest.type_in("\n")?;
    guest.wait_for("LAB-L2 exit 0")?;
    expect(guest.wait_for_end()? == 0, "the guest ends well")?;
    let said = guest.errors();
    expect(
        said.contains("blk0 (/run/d2.img): reading it: it has become shorter"),
        "the VMM says what happened to the file",
    )?;
    refused(l1, &second, 0, &[])
}
