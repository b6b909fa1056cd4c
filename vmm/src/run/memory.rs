//! Whether the host has the memory that a guest is to get.

use std::fs;

use vfio::host::Host;

use super::RunError;
use crate::machine::{Assignment, Config};

/// Whether the host can give `config` its memory. The kernel overcommits: it would not refuse, but run out and kill somebody, us
/// with devices in hand if need be. Pages from a pool are counted by themselves (`ram::check`).
pub(super) fn check(config: &Config) -> Result<(), RunError> {
    if config.backing.pages.pool_page().is_some() {
        return Ok(());
    }
    // No figures, no verdict.
    let Ok(meminfo) = fs::read_to_string("/proc/meminfo") else {
        return Ok(());
    };
    enough_memory(&meminfo, config.memory_bytes, config.prefault)
}

/// The memory node that the devices are next to, if they are next to one: that of most of them, the first of several.
pub(super) fn node(host: &Host, assigned: &[Assignment]) -> Option<u32> {
    let functions = assigned.iter().filter_map(|one| one.device.function());
    let nodes = functions.filter_map(|function| host.device(function).ok()?.numa_node);
    most_frequent(&nodes.collect::<Vec<_>>())
}

fn most_frequent(nodes: &[u32]) -> Option<u32> {
    let count = |node: u32| nodes.iter().filter(|other| **other == node).count();
    // The last of the greatest is the first of all.
    nodes.iter().copied().rev().max_by_key(|node| count(*node))
}

/// What is populated, and for devices pinned, has to be there now; the rest may yet be swapped out. From /proc/meminfo (proc(5)).
fn enough_memory(meminfo: &str, wanted: u64, populated: bool) -> Result<(), RunError> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':')
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    };
    let swap = field("SwapTotal").unwrap_or(0);
    let (kib, has) = if populated {
        (field("MemAvailable"), "has free")
    } else {
        (field("MemTotal").map(|ram| ram + swap), "has")
    };
    match kib.map(|kib| kib.saturating_mul(1024)) {
        Some(bytes) if wanted > bytes => Err(RunError::TooMuchMemory {
            mib: wanted >> 20,
            has,
            has_mib: bytes >> 20,
            fits_mib: (bytes / 2) >> 21 << 1,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_where_most_devices_are() {
        assert_eq!(most_frequent(&[]), None);
        assert_eq!(most_frequent(&[1, 0]), Some(1));
        assert_eq!(most_frequent(&[0, 1, 2, 1]), Some(1));
    }

    #[test]
    fn memory_that_devices_pin_has_to_be_free_and_other_memory_only_there() {
        let meminfo = "MemTotal: 4194304 kB\nMemFree: 1 kB\nMemAvailable: 2097152 kB\nSwapTotal: 1048576 kB\n";
        let gib = 1 << 30;
        assert!(enough_memory(meminfo, 5 * gib, false).is_ok());
        assert!(enough_memory(meminfo, 5 * gib + 1, false).is_err());
        assert!(enough_memory(meminfo, 2 * gib, true).is_ok());
        let error = enough_memory(meminfo, 3 * gib, true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "3072 MiB of memory are more than this host has free (2048 MiB)\n  give the guest less:  --memory 1024M"
        );
        assert!(enough_memory("", u64::MAX, true).is_ok());
    }
}
