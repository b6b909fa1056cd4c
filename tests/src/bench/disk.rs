//! `cargo lab bench disk`: a virtio disk of Viaduct's and one of QEMU's microvm, both in files in memory of the same L1, used by fio in
//! a Debian on each.
//!
//! QEMU has what those give it who want it fast: an iothread, so that its disk has a thread of its own as Viaduct's has, io_uring, and
//! the host's page cache (`cache=writeback`), which is what Viaduct's disk is without `direct=on`.

use super::beside::{Both, Side, in_turn, print_head, print_row, start};
use super::ratio;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::scenarios::debian::log_in;

/// How long fio does one thing, in seconds: longer than it takes to start and to have its exits counted.
const RUNTIME: u32 = 4;
const QEMU_DISKS: &str = "-object iothread,id=disks \
    -drive if=none,id=root,format=raw,file=/run/theirs.img -device virtio-blk-pci,drive=root,iothread=disks \
    -drive if=none,id=data,format=raw,file=/run/theirs-data.img,cache=writeback,aio=io_uring \
    -device virtio-blk-pci,drive=data,iothread=disks";

/// One thing that fio does.
struct Load {
    name: &'static str,
    options: &'static str,
    /// Whether it is the bandwidth that is of interest, in MiB/s, or the requests a second.
    is_bandwidth: bool,
}

const LOADS: [Load; 5] = [
    Load {
        name: "random reads of 4 KiB, one at a time, a second",
        options: "--rw=randread --bs=4k --iodepth=1",
        is_bandwidth: false,
    },
    Load {
        name: "random reads of 4 KiB, 16 at a time, a second",
        options: "--rw=randread --bs=4k --iodepth=16",
        is_bandwidth: false,
    },
    Load {
        name: "random writes of 4 KiB, 16 at a time, a second",
        options: "--rw=randwrite --bs=4k --iodepth=16",
        is_bandwidth: false,
    },
    Load {
        name: "sequential reads of 256 KiB, MiB/s",
        options: "--rw=read --bs=256k --iodepth=4",
        is_bandwidth: true,
    },
    Load {
        name: "sequential writes of 256 KiB, MiB/s",
        options: "--rw=write --bs=256k --iodepth=4",
        is_bandwidth: true,
    },
];

/// What one run of fio came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Measured {
    kib_per_s: u64,
    per_s: u64,
    exits_per_s: u64,
}

/// Runs it in this L1 and prints the table.
pub(crate) fn run(host: &Host) -> Result<i32> {
    for whose in ["ours", "theirs"] {
        host.debian(&format!("/run/{whose}.img"))?;
        host.sh(&format!("head -c 64M /dev/urandom > /run/{whose}-data.img"))?;
    }
    let viaduct = "run --cpus 1 --memory 512M --disk /run/ours.img --disk /run/ours-data.img";
    let viaduct = host.viaduct(viaduct);
    let qemu = host.reference(1, "512M", &[]).reference_words(QEMU_DISKS);
    let [viaduct, qemu] =
        [viaduct, qemu].map(|plan| plan.kernel_words("root=/dev/vda rw").deadline_s(3600));
    let mut sides = start(viaduct, qemu, log_in)?;
    let mut rows = Vec::new();
    for load in &LOADS {
        let measured = in_turn(load.name, &mut sides, |_, side| measure(host, side, load))?;
        rows.push((load, measured));
    }
    print_head("virtio-blk");
    for (load, measured) in &rows {
        print(load, measured);
    }
    Ok(0)
}

/// What the console costs is not counted: meanwhile nothing is typed or said.
fn measure(host: &Host, side: &mut Side<'_>, load: &Load) -> Result<Measured> {
    side.guest.type_in(&format!(
        "echo == $((20 + 1)); read -r go; fio --name=x --filename=/dev/vdb --direct=1 --ioengine=libaio --time_based \
         --runtime={RUNTIME} {} --minimal > /run/said; echo == $((20 + 2)); read -r go; cat /run/said; echo == $((40 + 2))\n",
        load.options
    ))?;
    side.guest.wait_for("== 21")?;
    side.guest.type_in("\n")?;
    let exits_per_s = side.exits_in_a_second(host)?;
    side.guest.wait_for("== 22")?;
    side.guest.type_in("\n")?;
    let said = side.guest.wait_for("== 42")?;
    let measured = parse(&said).ok_or(Error::Unexpected(said))?;
    Ok(Measured {
        exits_per_s,
        ..measured
    })
}

/// The line of fio's terse output, version 3 (fio(1)): bandwidth in KiB/s and requests a second, of reads and then of writes.
fn parse(said: &str) -> Option<Measured> {
    // In front of it is what the shell tells a terminal that a command begins.
    let start = said.find("3;fio-")?;
    let line = said[start..].lines().next()?;
    let field = |at: usize| line.split(';').nth(at)?.parse::<u64>().ok();
    let sum = |read, written| Some(field(read)? + field(written)?);
    Some(Measured {
        kib_per_s: sum(6, 47)?,
        per_s: sum(7, 48)?,
        exits_per_s: 0,
    })
}

fn print(load: &Load, both: &Both<Measured>) {
    if load.is_bandwidth {
        print_row(load.name, both, |run| ratio(run.kib_per_s, 1024));
    } else {
        print_row(load.name, both, |run| ratio(run.per_s, 1));
    }
    print_row("  exits for each", both, |run| {
        ratio(run.exits_per_s, run.per_s.max(1))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_are_found_in_what_fio_prints() {
        let mut fields = vec!["0"; 130];
        fields[..5].copy_from_slice(&["3", "fio-3.39", "x", "0", "0"]);
        (fields[5], fields[6], fields[7]) = ("4096", "1024", "256");
        (fields[46], fields[47], fields[48]) = ("8", "4", "1");
        let said = format!("typed\n\x1b[?2004l{}\n== 42", fields.join(";"));
        let measured = Measured {
            kib_per_s: 1028,
            per_s: 257,
            exits_per_s: 0,
        };
        assert_eq!(parse(&said), Some(measured));
        assert_eq!(parse("fio: not found"), None);
    }
}
