//! Wrong input: what is wrong, why, what to do, the exit status, and nothing changed on the host.

use std::time::Duration;

use super::vf::SECOND;
use super::{Scenario, expect};
use crate::cards::{Iommu, Machine};
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "wrong input is refused with what, why and what to do, and changes nothing",
            machine: Machine::example,
            limit: Duration::from_secs(180),
            run: wrong_input,
        },
        Scenario {
            name: "without KVM viaduct says what is missing and changes nothing",
            machine: Machine::example,
            limit: Duration::from_secs(60),
            run: no_kvm,
        },
        Scenario {
            name: "a user who may not lock the guest's memory reads which limit to raise",
            machine: Machine::example,
            limit: Duration::from_secs(60),
            run: locked_memory,
        },
        Scenario {
            name: "without an IOMMU viaduct says what is missing and changes nothing",
            machine: || Machine::example().iommu(Iommu::Absent),
            limit: Duration::from_secs(60),
            run: |l1| no_iommu(l1, &["turn on '", "firmware's set-up"]),
        },
        Scenario {
            name: "with an IOMMU that the kernel does not use viaduct says which word turns it on",
            machine: || Machine::example().iommu(Iommu::Unused),
            limit: Duration::from_secs(60),
            run: |l1| {
                no_iommu(
                    l1,
                    &[
                        "does not use it",
                        "boot with intel_iommu=on",
                        "viaduct doctor",
                    ],
                )
            },
        },
    ]
}

/// A guest that would start.
const GOOD: &str = "--kernel /lab/l2/vmlinuz --initrd /lab/l2/initrd";

/// Further arguments to `GOOD`, the exit status, and what is said.
const WRONG_ARGUMENTS: &[(&str, i32, &[&str])] = &[
    (
        "--vfio 03:1f.7",
        1,
        &["0000:03:1f.7: no such device", "03:10.1 03:10.3"],
    ),
    (
        "--vfio 3:10",
        1,
        &["'3:10' is not a PCI address", "03:10.3"],
    ),
    ("--vfio nonesuch", 1, &["'nonesuch' is neither", "eth0"]),
    (
        "--vfio 00:04.0",
        1,
        &["0000:00:04.0: is a bridge", "viaduct list"],
    ),
    (
        "--vfio 04:00.0",
        1,
        &["0000:04:00.0: is a bridge", "viaduct list"],
    ),
    (
        "--vfio 05:01.0",
        1,
        &[
            "0000:05:02.0 in the same group is bound to e1000",
            "viaduct run --vfio 05:01.0 --vfio 05:02.0",
            "viaduct bind 05:02.0",
        ],
    ),
    (
        "--vfio 03:00.1",
        1,
        &["0000:03:00.1: not taken", "0000:03:10.3", "--force"],
    ),
    (
        "--vfio 03:10.1,addr=06 --vfio 03:10.3,addr=06",
        1,
        &["slot 06.0", "twice", "addr="],
    ),
    (
        "--vfio 03:10.3 --vfio 03:10.3",
        1,
        &["0000:03:10.3 is named twice"],
    ),
    (
        "--vfio 03:10.3,slot=6",
        2,
        &["'slot=6' is not an option", "addr="],
    ),
    (
        "--vfio 03:10.3,mac=01:00:00:00:00:01",
        2,
        &["not a MAC address", "02:00"],
    ),
    ("--vfio 03:10.3 --memory 0", 2, &["too few", "16M"]),
    (
        "--vfio 03:10.3 --memory 1T",
        1,
        &["1048576 MiB", "this host has", "--memory"],
    ),
    (
        "--vfio 03:10.3 --memory plenty",
        2,
        &["'plenty' is not a size", "512M"],
    ),
    (
        "--vfio 03:10.3 --memory 64M",
        1,
        &["initrd is too large", "give the guest more:  --memory"],
    ),
    ("--vfio 03:10.3 --cpus 0", 2, &["1 to 254"]),
    ("--vfio 03:10.3 --cpus 1000", 2, &["1 to 254"]),
    (
        "--vfio 03:10.3 --cpus 4,cores=3",
        2,
        &["4 CPUs are not", "leave one of the numbers out"],
    ),
    (
        "--vfio 03:10.3 --cpus 2,pin=0,4095",
        1,
        &["processor 4095 is none", "pin=0"],
    ),
    (
        "--vfio 03:10.3 --config /nonesuch",
        2,
        &["--config /nonesuch", "can be read"],
    ),
    (
        "--vfio 03:10.3 --credential note:/nonesuch",
        1,
        &["--credential /nonesuch", "can be read"],
    ),
];

/// The same for kernels, and initial file systems after them.
const WRONG_KERNELS: &[(&str, i32, &[&str])] = &[
    (
        "/nonesuch",
        1,
        &["--kernel /nonesuch: No such file", "check the path"],
    ),
    ("/lab", 1, &["--kernel /lab: is not a regular file"]),
    ("/run/cut", 1, &["is truncated", "give a bzImage"]),
    ("/run/stub", 1, &["is truncated", "give a bzImage"]),
    ("/run/empty", 1, &["not a Linux kernel", "give a bzImage"]),
    ("/usr/bin/bash", 1, &["no PVH entry", "give a bzImage"]),
    (
        "/usr/share/misc/pci.ids",
        1,
        &["not a Linux kernel", "give a bzImage"],
    ),
    (
        "/lab/l2/vmlinuz --initrd /nonesuch",
        1,
        &["--initrd /nonesuch: No such file", "check the path"],
    ),
    (
        "/lab/l2/vmlinuz --initrd /lab",
        1,
        &["--initrd /lab: is not a regular file"],
    ),
];

fn wrong_input(l1: &Host) -> Result<()> {
    l1.sh("cd /run; head -c 100000 /lab/l2/vmlinuz > cut; head -c 300 cut > stub; : > empty")?;
    let before = l1.state()?;
    for (arguments, status, says) in WRONG_ARGUMENTS {
        refused(
            l1,
            &format!("viaduct run {GOOD} {arguments}"),
            *status,
            says,
        )?;
    }
    for (kernel, status, says) in WRONG_KERNELS {
        let command = format!("viaduct run --kernel {kernel} --vfio 03:10.3");
        refused(l1, &command, *status, says)?;
    }
    l1.expect_unchanged(&before)
}

/// The command says all of this on stderr and leaves with the status.
pub(super) fn refused(l1: &Host, command: &str, status: i32, says: &[&str]) -> Result<()> {
    let output = l1.output(command, Duration::from_secs(30))?;
    let what = format!("`{command}` ends with {status}, not {}", output.code);
    expect(output.code == status, &what)?;
    for text in says {
        let what = format!("`{command}` says \"{text}\"; it says\n{}", output.stderr);
        expect(output.stderr.contains(text), &what)?;
    }
    Ok(())
}

fn no_kvm(l1: &Host) -> Result<()> {
    let before = l1.state()?;
    let run = format!("viaduct run {GOOD} --vfio 03:10.3");
    l1.sh("mv /dev/kvm /dev/kvm.away")?;
    let result = refused(l1, &run, 1, &["/dev/kvm: No such file", "modprobe kvm_"]);
    l1.sh("mv /dev/kvm.away /dev/kvm")?;
    result?;
    l1.expect_unchanged(&before)
}

fn locked_memory(l1: &Host) -> Result<()> {
    l1.sh("chmod 666 /dev/kvm")?;
    let before = l1.state()?;
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all";
    let command = format!("ulimit -l 64; {user} viaduct run {GOOD} --vfio 03:10.3");
    refused(
        l1,
        &command,
        1,
        &[
            "524288 KiB",
            "is 64 KiB",
            "prlimit --pid $$ --memlock=536870912",
            "limits.d",
        ],
    )?;
    l1.expect_unchanged(&before)
}

fn no_iommu(l1: &Host, advice: &[&str]) -> Result<()> {
    let before = l1.state()?;
    let run = format!("viaduct run {GOOD} --vfio 03:10.3");
    refused(l1, &run, 1, &[&["no IOMMU"], advice].concat())?;
    expect(
        l1.driver(SECOND)?.as_deref() == Some("igbvf"),
        "the VF is still on igbvf",
    )?;
    l1.expect_unchanged(&before)
}
