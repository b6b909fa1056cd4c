//! Devices of ours beside an assigned one: disks and random numbers by virtio.

use std::collections::HashSet;
use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};

use super::reading::{md5, number_after};
use super::refusals::refused;
use super::vf::{SECOND, STATS, exits_in_a_while, expect_back};
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::guest::Guest;
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
    cat /sys/class/misc/hw_random/rng_current; for i in 1 2; do \
    echo random $(head -c 256 /dev/hwrng | base64 -w0); done; \
    lab-dhcp || exit; ping -A -c 3 10.0.2.2 || exit; echo == works; read -r order; eval $order";
/// Each read is a request, and nothing is said meanwhile: a character on the console is an exit.
const MANY_READS: &str = "dd if=/dev/vda of=/dev/null bs=4k count=2000 iflag=direct 2>/dev/null && echo == read; \
    read -r order; eval $order\n";
/// Discards the second MiB, zeroes the third (WRITE_ZEROES), zeroes and unmaps the fourth; the read-only disk refuses. Then prints how
/// many bytes of each MiB are not zero.
const DISCARD: &str = "blkdiscard -o 1M -l 1M /dev/vda && blkdiscard -z -o 2M -l 1M /dev/vda && fallocate -p -o 3M -l 1M /dev/vda || exit; \
    blkdiscard -l 1M /dev/vdb && exit 1; for at in 0 1 2 3; do \
    set -- $* $(dd if=/dev/vda bs=1M skip=$at count=1 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c); done; echo; echo left $*; exit 0\n";

pub(super) fn beside_a_vf(l1: &Host) -> Result<()> {
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
    let mut random = Vec::new();
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
        expect(said.contains("virtio_rng"), "random numbers are virtio's")?;
        let reads = said.lines().filter_map(|line| line.strip_prefix("random "));
        random.extend(reads.filter_map(|text| BASE64_STANDARD.decode(text).ok()));
        expect(said.contains("3 packets received"), "the VF works as well")?;
        if boot == 1 {
            guest.type_in("reboot\n")?;
        }
    }
    expect(random.len() == 4, "there are four reads of random numbers")?;
    expect_random(&random.concat())?;
    let before = exits_in_a_while(l1)?;
    guest.type_in(MANY_READS)?;
    guest.wait_for("\n== read")?;
    let after = exits_in_a_while(l1)?;
    // The typed line and the word in answer are some; a request that exits would be thousands.
    let cost = format!("2000 reads cost {} exits", after - before);
    l1.log("lab", &cost);
    expect(after - before <= 1000, &cost)?;
    expect_discards(l1, guest)?;
    let kept = l1.sh("dd if=/run/d0.img bs=512 skip=20000 count=1 2>/dev/null | head -n 1")?;
    expect(kept.trim() == "kept", "what the guest wrote is in the file")?;
    expect_back(l1, SECOND)
}

/// A KiB that may be random: no piece comes twice, and nearly every byte does, about as often as any other. Fails by chance once in
/// 10^9 times at most.
fn expect_random(bytes: &[u8]) -> Result<()> {
    expect(bytes.len() == 1024, "there is a KiB of random numbers")?;
    let pieces: HashSet<&[u8]> = bytes.chunks(16).collect();
    expect(pieces.len() == 64, "no 16 bytes come twice")?;
    // 256 * (1 - (255/256)^1024) = 251.3 are expected, with a deviation of 2.1.
    let kinds = bytes.iter().collect::<HashSet<_>>().len();
    expect(
        kinds >= 230,
        &format!("bytes of any value come, not {kinds}"),
    )?;
    // 4096 are expected, with a deviation of 45.
    let ones: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
    let what = format!("as many bits are 1 as 0, and not {ones} of 8192");
    expect((3800..=4392).contains(&ones), &what)
}

/// The disk's file loses the blocks that the guest discards or unmaps, and keeps the others; the read-only disk keeps all.
fn expect_discards(l1: &Host, guest: Guest<'_>) -> Result<()> {
    let look =
        "cd /run; head -c 1M d0.img | md5sum; md5sum < d1.img; stat -c '%s blocks %b' d0.img";
    let before = l1.sh(look)?;
    guest.type_in(DISCARD)?;
    let said = guest.succeeds()?;
    let left = said.split("\nleft ").nth(1).unwrap_or_default();
    let left = left.split_whitespace().take(4).map(str::parse::<u32>);
    let left: Vec<u32> = left.filter_map(std::result::Result::ok).collect();
    let zeroed = matches!(left[..], [1_000_000..=u32::MAX, 0, 0, 0]);
    expect(
        zeroed,
        &format!("what was discarded or zeroed reads as zeroes: {left:?}"),
    )?;
    let after = l1.sh(look)?;
    let blocks = |said: &str| number_after(said, " blocks ");
    let freed = blocks(&before)?.saturating_sub(blocks(&after)?);
    expect(
        freed == 2 * 2048,
        &format!("the file is two MiB smaller on the host, not {freed} sectors"),
    )?;
    let rest = |said: &str| said.split(" blocks ").next().map(str::to_owned);
    expect(rest(&before) == rest(&after), "nothing else has changed")
}

/// A disk of 16 MiB in L1, the first four of them random; their sum.
fn make_disk(l1: &Host, name: &str) -> Result<String> {
    let path = format!("/run/{name}.img");
    let said = l1.sh(&format!(
        "head -c 4194304 /dev/urandom > {path}; md5sum < {path}; truncate -s 16M {path}"
    ))?;
    md5(&said).map(str::to_owned)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64.
    fn random() -> Vec<u8> {
        let numbers = (1..=128_u64).map(|number| {
            let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        });
        numbers.flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn constants_counters_repetitions_and_half_filled_reads_are_not_random() {
        let good = random();
        expect_random(&good).unwrap();
        let counter = (0..=u8::MAX).cycle().take(1024).collect();
        let half = good.iter().enumerate();
        let half = half.map(|(at, byte)| if at % 64 < 32 { *byte } else { 0 });
        let ascii = good.iter().map(|byte| byte & 0x7f).collect();
        let wrong: [Vec<u8>; 5] = [
            vec![0xa5; 1024],
            counter,
            good[..256].repeat(4),
            half.collect(),
            ascii,
        ];
        for bytes in wrong {
            assert!(expect_random(&bytes).is_err());
        }
        assert!(expect_random(&good[..1023]).is_err());
    }
}
