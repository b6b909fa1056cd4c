//! What boots and how: kernel formats, processors, memory on both sides of the 32-bit hole.

use std::time::Duration;

use super::reading::number_after;
use super::{Scenario, expect};
use crate::cards::{Cards, Machine};
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "an ELF vmlinux boots by PVH and pings through a VF",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: vmlinux,
        },
        Scenario {
            name: "four processors have a sane topology and clocks that need no calibration",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: four_processors,
        },
        Scenario {
            name: "a guest has 32 processors",
            machine: Machine::example,
            limit: Duration::from_secs(180),
            run: many_processors,
        },
        Scenario {
            name: "a guest has as many processors as can be named, 254",
            machine: Machine::example,
            limit: Duration::from_secs(180),
            run: all_processors,
        },
        Scenario {
            name: "memory reaches above the 32-bit hole, and a VF's rings and buffers are there",
            machine: large,
            limit: Duration::from_secs(180),
            run: high_memory,
        },
    ]
}

/// A host with room above the 32-bit hole, and a huge page of 1 GiB, which only a host that has just booted is sure to have.
pub(super) fn large() -> Machine {
    let machine = Machine::with_cards(Cards::sriov()).memory_mib(7168);
    machine.kernel_words("hugepagesz=1G hugepages=1")
}

/// What Linux puts for the boot loader when it was entered by PVH in a guest of KVM (arch/x86/platform/pvh/enlighten.c): 0xb0. A
/// bzImage has what the VMM says it is, 0xff.
const ENTERED_BY_PVH: &str = "loader 176\n";

fn vmlinux(l1: &Host) -> Result<()> {
    let guest = l1
        .viaduct("run --memory 384M --vfio 03:10.3")
        .kernel("/lab/l2/vmlinux")
        .script(
            "echo loader $(cat /proc/sys/kernel/bootloader_type); lab-dhcp && ping -A -c 3 10.0.2.2",
        )
        .start()?;
    let console = guest.succeeds()?;
    expect(
        console.contains(ENTERED_BY_PVH),
        &format!("the kernel was entered by PVH: {console}"),
    )?;
    expect(
        console.contains("3 packets received"),
        "ping 3/3 through the VF",
    )
}

const PROCESSORS: &str = "echo nproc $(nproc); cd /sys/devices/system/cpu; \
    grep -H . cpu?/topology/core_id cpu?/topology/physical_package_id; \
    echo siblings $(sort -u cpu?/topology/thread_siblings_list | wc -l); \
    echo clock $(cat ../clocksource/clocksource0/current_clocksource); \
    echo known $(grep -c tsc_known_freq /proc/cpuinfo); \
    echo boots $(dmesg | grep -c 'Linux version'); dmesg | grep -E 'tsc: |Calibrat|calibrat|APIC.*mismatch|[Tt]opology.*([Ee]rr|mismatch)|Firmware Bug'; true";

fn four_processors(l1: &Host) -> Result<()> {
    let guest = l1
        .viaduct("run --cpus 4 --memory 256M")
        .script(PROCESSORS)
        .start()?;
    let said = guest.succeeds()?;
    expect(said.contains("nproc 4"), "there are four")?;
    expect(said.contains("siblings 4"), "each is a core of its own")?;
    let packages = said.matches("physical_package_id:0").count();
    expect(packages == 4, "all are in one package")?;
    let clock = said.contains("clock kvm-clock") || said.contains("clock tsc");
    expect(clock, "the clock is KVM's or the TSC")?;
    expect(said.contains("known 4"), "the TSC's frequency is known")?;
    expect(said.contains("boots 1\n"), "the kernel's log is read")?;
    for wrong in ["PIT calibration", "Fast TSC", "Firmware Bug", "mismatch"] {
        expect(!said.contains(wrong), &format!("nothing of {wrong}"))?;
    }
    Ok(())
}

fn all_processors(l1: &Host) -> Result<()> {
    let guest = l1
        .viaduct("run --cpus 254 --memory 512M")
        // All are described and made; starting them one after the other would take the emulator minutes.
        .kernel_words("maxcpus=2")
        .script("dmesg | grep 'CPU topo: Allowing'; echo nproc $(nproc)")
        .deadline_s(170)
        .silent_s(170)
        .start()?;
    let said = guest.succeeds()?;
    expect(said.contains("Allowing 254 present CPUs"), "there are 254")?;
    expect(said.contains("nproc 2"), "those that are started run")
}

fn many_processors(l1: &Host) -> Result<()> {
    let guest = l1
        .viaduct("run --cpus 32 --memory 512M")
        .script("echo nproc $(nproc)")
        .deadline_s(170)
        .silent_s(170)
        .start()?;
    expect(guest.succeeds()?.contains("nproc 32"), "there are 32")
}

/// The VF's own registers say where its rings are, and the kernel's counters from which side of the hole it takes pages while
/// the interface comes up and packets go: none from below, so every buffer is above.
const RINGS: &str = "dmesg | grep 'BIOS-e820.*usable'; \
    pages() { echo $1 below $(awk '/pgalloc_dma/ { n += $2 } END { print n }' /proc/vmstat) \
    above $(awk '/pgalloc_normal/ { print $2 }' /proc/vmstat); }; \
    pages before; lab-dhcp && ping -q -c 5 -s 1400 10.0.2.2 || exit; pages after; \
    bar=$(head -n1 /sys/bus/pci/devices/0000:00:06.0/resource | cut -d' ' -f1); \
    echo rings $(devmem $((bar + 0x2804)) 32) $(devmem $((bar + 0x3804)) 32)";

fn high_memory(l1: &Host) -> Result<()> {
    let guest = l1
        .viaduct("run --memory 3328M --vfio 03:10.3,addr=06")
        // The kernel keeps a driver's registers from everyone else otherwise.
        .kernel_words("iomem=relaxed")
        .script(RINGS)
        .start()?;
    let said = guest.succeeds()?;
    expect(
        said.contains("[mem 0x0000000100000000-0x000000010fffffff] usable"),
        "256 MiB of 3328 are above the hole",
    )?;
    expect(said.contains("5 packets received"), "no packet is lost")?;
    // RDBAH and TDBAH of the VF: the upper halves of both rings' addresses.
    expect(
        said.contains("rings 0x00000001 0x00000001"),
        "the VF's rings are above 4 GiB",
    )?;
    let pages = |when: &str| {
        let below = number_after(&said, &format!("{when} below "))?;
        Ok((
            below,
            number_after(&said, &format!("{when} below {below} above "))?,
        ))
    };
    let (before, after) = (pages("before")?, pages("after")?);
    expect(
        before.0 == after.0,
        "no page came from below 4 GiB while packets went",
    )?;
    expect(before.1 < after.1, "all came from above")
}
