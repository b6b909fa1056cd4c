//! `cargo lab bench disk`: a virtio disk of Viaduct's and one of QEMU's microvm, both in files in memory of the same L1, used by fio in
//! a Debian on each. Both guests run all the time and are measured in turn, so that what the machine does besides disturbs both alike;
//! medians, of which in emulation only the ratio means anything.

use super::ratio;
use crate::error::{Error, Result};
use crate::guest::{Guest, Plan};
use crate::host::Host;
use crate::progress::step;
use crate::scenarios::debian::log_in;

const ROUNDS: usize = 5;
/// How long fio does one thing, in seconds.
const RUNTIME: u32 = 4;
const QEMU_DISKS: &str = "-drive if=none,id=root,format=raw,file=/run/theirs.img -device virtio-blk-pci,drive=root \
    -drive if=none,id=data,format=raw,file=/run/theirs-data.img,cache=writeback -device virtio-blk-pci,drive=data";

/// One thing that fio does.
struct Load {
    name: &'static str,
    options: &'static str,
    /// Bytes of a request.
    block: u64,
    /// Whether it is the bandwidth that is of interest, in MiB/s, or the requests a second.
    is_bandwidth: bool,
}

const LOADS: [Load; 5] = [
    Load {
        name: "random reads of 4 KiB, one at a time, a second",
        options: "--rw=randread --bs=4k --iodepth=1",
        block: 4096,
        is_bandwidth: false,
    },
    Load {
        name: "random reads of 4 KiB, 16 at a time, a second",
        options: "--rw=randread --bs=4k --iodepth=16",
        block: 4096,
        is_bandwidth: false,
    },
    Load {
        name: "random writes of 4 KiB, 16 at a time, a second",
        options: "--rw=randwrite --bs=4k --iodepth=16",
        block: 4096,
        is_bandwidth: false,
    },
    Load {
        name: "sequential reads of 256 KiB, MiB/s",
        options: "--rw=read --bs=256k --iodepth=4",
        block: 256 << 10,
        is_bandwidth: true,
    },
    Load {
        name: "sequential writes of 256 KiB, MiB/s",
        options: "--rw=write --bs=256k --iodepth=4",
        block: 256 << 10,
        is_bandwidth: true,
    },
];

/// What one run of fio came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Measured {
    kib: u64,
    kib_per_s: u64,
    per_s: u64,
    exits: u64,
}

/// Runs it in this L1 and prints the table.
pub(crate) fn run(host: &Host) -> Result<i32> {
    host.sh("mount -t debugfs debugfs /sys/kernel/debug || true")?;
    for whose in ["ours", "theirs"] {
        host.debian(&format!("/run/{whose}.img"))?;
        host.sh(&format!("head -c 64M /dev/urandom > /run/{whose}-data.img"))?;
    }
    let viaduct = "run --cpus 1 --memory 512M --disk /run/ours.img --disk /run/ours-data.img";
    let qemu = host.reference(1, "512M", &[]).reference_words(QEMU_DISKS);
    let guests = [
        ("viaduct", host.viaduct(viaduct)),
        ("qemu-system-x86_64", qemu),
    ];
    let mut guests = guests
        .into_iter()
        .map(|(name, plan)| Ok((name, step(&format!("Starting {name}"), || started(plan))?)))
        .collect::<Result<Vec<_>>>()?;
    println!(
        "\n{:48}{:>10}{:>10}{:>8}",
        "", "viaduct", "microvm", "ratio"
    );
    for load in &LOADS {
        let mut both = [Vec::new(), Vec::new()];
        step(load.name, || {
            for _ in 0..ROUNDS {
                for ((name, guest), measured) in guests.iter_mut().zip(&mut both) {
                    measured.push(measure(host, name, guest, load)?);
                }
            }
            Ok(())
        })?;
        print(load, &both);
    }
    Ok(0)
}

fn started(plan: Plan<'_>) -> Result<Guest<'_>> {
    let plan = plan.kernel_words("root=/dev/vda rw").deadline_s(3600);
    let mut guest = plan.start()?;
    log_in(&mut guest)?;
    Ok(guest)
}

fn measure(host: &Host, vmm: &str, guest: &mut Guest<'_>, load: &Load) -> Result<Measured> {
    let before = exits(host, vmm)?;
    guest.type_in(&format!(
        "fio --name=x --filename=/dev/vdb --direct=1 --ioengine=libaio --time_based --runtime={RUNTIME} {} --minimal; \
         echo == $((40 + 2))\n",
        load.options
    ))?;
    let said = guest.wait_for("== 42")?;
    let exits = exits(host, vmm)?.saturating_sub(before);
    let measured = parse(&said).ok_or(Error::Unexpected(said))?;
    Ok(Measured { exits, ..measured })
}

/// Exits to the VMM's process, as KVM counts them, whatever VMM it is.
fn exits(host: &Host, vmm: &str) -> Result<u64> {
    let said = host.sh(&format!(
        "cat /sys/kernel/debug/kvm/$(pgrep -x {})-*/{{io,mmio}}_exits",
        &vmm[..vmm.len().min(15)]
    ))?;
    Ok(said
        .lines()
        .filter_map(|line| line.parse::<u64>().ok())
        .sum())
}

/// The line of fio's terse output, version 3 (fio(1)): bandwidth in KiB/s and requests a second, of reads and then of writes.
fn parse(said: &str) -> Option<Measured> {
    // In front of it is what the shell tells a terminal that a command begins.
    let start = said.find("3;fio-")?;
    let line = said[start..].lines().next()?;
    let field = |at: usize| line.split(';').nth(at)?.parse::<u64>().ok();
    let sum = |read, written| Some(field(read)? + field(written)?);
    Some(Measured {
        kib: sum(5, 46)?,
        kib_per_s: sum(6, 47)?,
        per_s: sum(7, 48)?,
        exits: 0,
    })
}

fn print(load: &Load, both: &[Vec<Measured>; 2]) {
    let row = |name: &str, of: &dyn Fn(&Measured) -> f64| {
        let [ours, theirs] = both
            .each_ref()
            .map(|runs| median(runs.iter().map(of).collect()));
        println!("{name:48}{ours:>10.2}{theirs:>10.2}{:>8.2}", ours / theirs);
    };
    if load.is_bandwidth {
        row(load.name, &|run| ratio(run.kib_per_s, 1024));
    } else {
        row(load.name, &|run| ratio(run.per_s, 1));
    }
    row("  exits for each", &|run| {
        ratio(run.exits, (run.kib * 1024 / load.block).max(1))
    });
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
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
            kib: 4104,
            kib_per_s: 1028,
            per_s: 257,
            exits: 0,
        };
        assert_eq!(parse(&said), Some(measured));
        assert_eq!(parse("fio: not found"), None);
    }
}
