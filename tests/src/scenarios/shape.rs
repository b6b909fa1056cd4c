//! What a guest is made of: arguments from a file, what its firmware says of it, how its processors are put together and where they
//! run.

use std::time::Duration;

use super::reading::number_after;
use super::refusals::refused;
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "a guest is what a file says, from its name to its credentials and its pinned CPUs",
            machine: two_processors,
            limit: Duration::from_secs(120),
            run: from_a_file,
        },
        Scenario {
            name: "two sockets of three cores run on memory that could be shared, which two VFs reach and which is locked once",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: sockets_and_memory,
        },
    ]
}

/// A guest's processors are pinned to them, one to each.
fn two_processors() -> Machine {
    Machine::example().processors(2)
}

/// The processors swap places, so that it is no accident where they are.
const FILE: &str = r#"
memory = "256M"
cpus = "2,threads=2,pin=1,0,model=x86-64-v2"
smbios = ["product=Shape", "serial=42", "uuid=00112233-4455-6677-8899-aabbccddeeff"]
credential = ["note=plain text", "key:/run/shape.key"]
"#;

const LOOK: &str = "cd /sys/class/dmi/id; echo dmi $(cat sys_vendor product_name product_serial product_uuid); \
    tr '\\0' '\\n' < /sys/firmware/dmi/tables/DMI | grep -a systemd; cd /sys/devices/system/cpu/cpu0; \
    echo siblings $(cat topology/thread_siblings_list); echo flags $(grep -m1 flags /proc/cpuinfo) .; \
    modprobe msr; for reg in 2 3 4 5; do echo msr $reg $(dd if=/dev/cpu/1/msr bs=8 count=1 iflag=skip_bytes \
    skip=$((0x4b564d00 + reg)) | od -An -tx8); done; echo == shown; read -r order; \
    timeout 4 sh -c 'while :; do :; done' & timeout 4 sh -c 'while :; do :; done'; wait; \
    echo stolen $(awk '/^cpu/ { print $1, $9 }' /proc/stat) .; echo == used; read -r order";

/// What a guest has enabled of what KVM does for it (arch/x86/include/uapi/asm/kvm_para.h): bit 0 says that it has.
const ENABLED: [(&str, &str); 4] = [
    ("2", "asynchronous page faults"),
    ("3", "stolen time"),
    ("4", "ends of interrupts without an exit"),
    ("5", "polling by the host"),
];

/// Where each thread of the guest's processors may run.
const THREADS: &str = "for task in /proc/$(pgrep -fx 'viaduct run .*shape.toml.*')/task/*; do \
    echo $(cat $task/comm) $(grep Cpus_allowed_list $task/status); done";

fn from_a_file(l1: &Host) -> Result<()> {
    l1.sh("printf 'hush\\n' > /run/shape.key")?;
    l1.sh(&format!("cat > /run/shape.toml <<'END'{FILE}END"))?;
    let mut guest = l1
        .viaduct("run --config /run/shape.toml --smbios serial=43 --rng")
        .script(LOOK)
        .start()?;
    let said = guest.wait_for("== shown")?;
    // What is typed counts instead of the whole list in the file.
    expect(
        said.contains("dmi Viaduct Virtual Machine 43"),
        "the guest reads what was typed",
    )?;
    expect(
        said.contains("io.systemd.credential:note=plain text")
            && said.contains("io.systemd.credential.binary:key=aHVzaAo="),
        "systemd would find both credentials",
    )?;
    expect(said.contains("siblings 0-1"), "both are of one core")?;
    let has = |flag: &str| said.contains(&format!(" {flag} "));
    expect(
        has("sse4_2") && has("popcnt") && !has("avx") && !has("aes") && !has("xsave"),
        "the second level has SSE4.2 and nothing of the third",
    )?;
    let threads = l1.sh(THREADS)?;
    // A vCPU has started the device's.
    for (thread, processors) in [("vcpu0", "1"), ("vcpu1", "0"), ("rng0", "0-1")] {
        let wanted = format!("{thread} Cpus_allowed_list: {processors}\n");
        expect(threads.contains(&wanted), &format!("{wanted}in {threads}"))?;
    }
    for (register, what) in ENABLED {
        expect(is_enabled(&said, register), what)?;
    }
    // The host has something else to do on the processor that the guest's first is pinned to.
    l1.sh("taskset -c 1 timeout 60 sh -c 'while :; do :; done' > /dev/null & echo $! > /run/shape.pid")?;
    guest.type_in("\n")?;
    let said = guest.wait_for("== used")?;
    l1.sh("kill $(cat /run/shape.pid)")?;
    let stolen = number_after(&said, "cpu0 ")?;
    expect(
        stolen > 20,
        &format!("the guest sees what it is not given: {said}"),
    )?;
    guest.type_in("\n")?;
    guest.succeeds()?;
    let written = l1.sh(
        "viaduct run --kernel /lab/l2/vmlinuz --config /run/shape.toml --dry-run > /run/again.toml || exit; \
         viaduct run --config /run/again.toml --dry-run | cmp - /run/again.toml && echo same",
    )?;
    expect(
        written == "same\n",
        "what a dry run prints is a file that says the same",
    )
}

/// The last digit of a register's value is odd.
fn is_enabled(said: &str, register: &str) -> bool {
    let value = said.split(&format!("msr {register} ")).nth(1);
    let value = value.and_then(|rest| rest.split_whitespace().next());
    let value = value.and_then(|value| u64::from_str_radix(value, 16).ok());
    value.is_some_and(|value| value & 1 != 0)
}

const PACKAGES: &str = "echo nproc $(nproc); cd /sys/devices/system/cpu; \
    for n in 0 1 2 3 4 5; do echo cpu$n socket $(cat cpu$n/topology/physical_package_id) core $(cat cpu$n/topology/core_id); done; \
    echo shared $(cat cpu5/topology/package_cpus_list); \
    for cache in cpu5/cache/index*; do echo L$(cat $cache/level $cache/type $cache/shared_cpu_list); done; echo boots $(dmesg | grep -c 'Linux version'); \
    dmesg | grep -iE 'mismatch|firmware bug|topo.*err'; \
    lab-dhcp && ping -A -c 3 10.0.2.2 && echo == works; read -r order";

/// What the kernel counts as locked, and where guest memory is.
const LOCKED: &str = "pid=$(pgrep -fx 'viaduct run .*shared=on.*'); grep VmLck /proc/$pid/status | tr -s ' \t' ' '; \
    echo mapped $(grep -c memfd:guest-ram /proc/$pid/maps)";

fn sockets_and_memory(l1: &Host) -> Result<()> {
    let devices = "--vfio 03:10.1 --vfio 03:10.3";
    let mut guest = l1
        .viaduct(&format!(
            "run --cpus 6,sockets=2 --memory 384M,shared=on {devices}"
        ))
        .script(PACKAGES)
        .start()?;
    let said = guest.wait_for("== works")?.replace('\r', "");
    expect(said.contains("nproc 6"), "all six run")?;
    for (cpu, socket, core) in [(0, 0, 0), (2, 0, 2), (3, 1, 0), (5, 1, 2)] {
        let wanted = format!("cpu{cpu} socket {socket} core {core}\n");
        expect(said.contains(&wanted), &wanted)?;
    }
    expect(said.contains("shared 3-5"), "the last three are a socket")?;
    for cache in ["L1 Data 5\n", "L2 Unified 5\n", "L3 Unified 3-5\n"] {
        expect(said.contains(cache), &format!("{cache}in {said}"))?;
    }
    // The kernel's log is there, and has no complaint.
    expect(said.contains("boots 1\n"), "the kernel's log is read")?;
    let complaints = ["mismatch", "firmware bug", "topo"];
    let lower = said.to_lowercase();
    for wrong in complaints {
        expect(!lower.contains(wrong), "the kernel finds it sane")?;
    }
    expect(said.contains("3 packets received"), "the VFs reach memory")?;
    let counted = l1.sh(LOCKED)?;
    let kib = number_after(&counted, "VmLck: ")?;
    // All of it once; a second time would be twice as much.
    let all = 384 << 10;
    let once = (all..all + all / 4).contains(&kib);
    expect(once, &format!("{kib} KiB are locked for {all}"))?;
    let mapped = number_after(&counted, "mapped ")?;
    expect(mapped > 0, "it is in a file")?;
    guest.type_in("\n")?;
    guest.succeeds()?;
    let pages = "viaduct run --kernel /lab/l2/vmlinuz --memory 8G,hugepages=1G --dry-run";
    let says = [
        "8 huge pages of 1048576 KiB",
        "hugepages-1048576kB/nr_hugepages",
    ];
    refused(l1, pages, 1, &says)
}
