//! How many L1s the runner has room for side by side: as many as it has processors, and memory for.

use std::fs;
use std::thread;

/// Memory of an L1: its RAM (`Machine::with_cards`), all of which guests and the layer on its root disk may come to use, and QEMU
/// itself.
const L1_MIB: u64 = 4096 + 512;

/// How many L1s run side by side on this machine unless `--jobs` says otherwise.
pub(crate) fn machines() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let memory = available_mib(
        &read("/proc/meminfo"),
        &read("/sys/fs/cgroup/memory.max"),
        &read("/sys/fs/cgroup/memory.current"),
    );
    fitting(cores, memory)
}

/// An L1 keeps one core busy, and at times two. One L1 is always tried.
fn fitting(cores: usize, available_mib: u64) -> usize {
    let by_memory = usize::try_from(available_mib / L1_MIB).unwrap_or(usize::MAX);
    cores.min(by_memory).max(1)
}

/// MemAvailable of /proc/meminfo, or what the control group of a container has left if that is less. Without a text there is
/// no such limit.
fn available_mib(meminfo: &str, group_max: &str, group_current: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    let system = kib.map_or(u64::MAX, |kib| kib >> 10);
    // memory.max is a number of bytes, or "max".
    let group = match (group_max.trim().parse(), group_current.trim().parse()) {
        (Ok(max), Ok(current)) => u64::saturating_sub(max, current) >> 20,
        _ => u64::MAX,
    };
    system.min(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24684360 kB\nMemFree:        20273956 kB\nMemAvailable:   23350616 kB\nBuffers:           92164 kB\n";

    #[test]
    fn as_many_as_cores_while_memory_lasts() {
        assert_eq!(fitting(2, 22_800), 2);
        assert_eq!(fitting(4, 22_800), 4);
        assert_eq!(fitting(16, 22_800), 4);
        assert_eq!(fitting(16, 64 << 10), 14);
    }

    #[test]
    fn a_small_machine_still_runs_one() {
        assert_eq!(fitting(2, 7_000), 1);
        assert_eq!(fitting(2, 1_000), 1);
        assert_eq!(fitting(1, 64 << 10), 1);
    }

    #[test]
    fn memory_is_what_the_kernel_calls_available() {
        assert_eq!(available_mib(MEMINFO, "", ""), 22_803);
        assert_eq!(available_mib(MEMINFO, "max\n", "1048576\n"), 22_803);
        assert_eq!(available_mib("", "", ""), u64::MAX);
    }

    #[test]
    fn the_limit_of_a_control_group_counts_if_it_is_lower() {
        assert_eq!(available_mib(MEMINFO, "8589934592\n", "1073741824\n"), 7168);
        assert_eq!(available_mib(MEMINFO, "1\n", "1073741824\n"), 0);
        assert_eq!(available_mib(MEMINFO, "109951162777600\n", "0\n"), 22_803);
    }
}
