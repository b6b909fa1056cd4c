//! Where the initrd goes once the kernel has its place.

use std::ops::Range;

use crate::{
    boot::paging::MAPPED_END,
    layout::{HIGH_RAM, RAM_HOLE},
    ram::RamRange,
};

const PAGE: u64 = 4096;

/// What goes where in guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// What the kernel takes from the first byte loaded to the last it uses before it manages memory itself.
    pub kernel: Range<u64>,
    /// Its first instruction.
    pub entry: u64,
    /// The initrd; its start is page-aligned. `None` when there is none, or an empty one.
    pub initrd: Option<Range<u64>>,
}

/// The guest's memory is too small, or not where it is needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// The kernel does not fit.
    #[error(
        "the kernel needs {need_mib} MiB in one piece at or above {lowest:#x}, below 4 GiB; the \
         guest has {have_mib} MiB of memory there\n  give the guest more:  --memory {}M",
        enough(*need_mib, *lowest)
    )]
    Kernel {
        /// What it takes, in MiB, rounded up.
        need_mib: u64,
        /// The lowest address it can be at.
        lowest: u64,
        /// The largest piece there is, in MiB, rounded down.
        have_mib: u64,
    },
    /// The initrd does not fit beside the kernel.
    #[error(
        "the initrd is too large for the memory: it is {initrd_mib} MiB and the kernel leaves \
         {free_mib} MiB for it in one piece below {ceiling:#x}\n  give the guest more:  --memory {need_mib}M"
    )]
    Initrd {
        /// Its length in MiB, rounded up.
        initrd_mib: u64,
        /// The largest piece left for it, in MiB, rounded down.
        free_mib: u64,
        /// The first address that it must not reach.
        ceiling: u64,
        /// Memory in MiB with which it would fit, if the host reserves nothing on the way.
        need_mib: u64,
    },
    /// No memory size makes room: the kernel cannot reach an initrd that large.
    #[error(
        "the initrd is too large for the kernel: it is {initrd_mib} MiB and has to fit between \
         {floor:#x} and {ceiling:#x}\n  leave out of it what the guest does not need to find its root file system"
    )]
    InitrdUnreachable {
        /// Its length in MiB, rounded up.
        initrd_mib: u64,
        /// The first address after the kernel.
        floor: u64,
        /// The first address that it must not reach.
        ceiling: u64,
    },
}

/// MiB of memory with which a kernel of `need_mib` fits above `lowest`, if the host reserves nothing on the way; even, because RAM is
/// made of 2 MiB pieces.
fn enough(need_mib: u64, lowest: u64) -> u64 {
    mib_up(lowest).saturating_add(need_mib).div_ceil(2) * 2
}

/// The highest page-aligned place for `len` bytes of initrd in RAM, behind `kernel` and below `ceiling`.
///
/// High, because what lies between is where the kernel decompresses to and makes its first allocations.
pub(crate) fn initrd(
    ram: &[RamRange],
    kernel: &Range<u64>,
    len: u64,
    ceiling: u64,
) -> Result<Option<Range<u64>>, PlaceError> {
    if len == 0 {
        return Ok(None);
    }
    let floor = kernel.end.max(HIGH_RAM).next_multiple_of(PAGE);
    let free = |piece: &RamRange| piece.guest.max(floor)..piece.end().min(ceiling);
    let start = |piece: Range<u64>| {
        let start = piece.end.checked_sub(len)? / PAGE * PAGE;
        (start >= piece.start).then_some(start)
    };
    if let Some(start) = ram.iter().rev().find_map(|piece| start(free(piece))) {
        return Ok(Some(start..start + len));
    }
    Err(too_large(ram.iter().map(free), floor, len, ceiling))
}

fn too_large(
    free: impl Iterator<Item = Range<u64>>,
    floor: u64,
    len: u64,
    ceiling: u64,
) -> PlaceError {
    let initrd_mib = mib_up(len);
    let end = floor
        .checked_add(len)
        .and_then(|end| end.checked_next_multiple_of(PAGE));
    let need = match end {
        // It would straddle the hole; the RAM above 4 GiB has to hold it alone.
        Some(end) if end > RAM_HOLE.start => end.checked_add(RAM_HOLE.start - floor),
        end => end,
    };
    match need.filter(|_| end.is_some_and(|end| end <= ceiling)) {
        Some(need) => PlaceError::Initrd {
            initrd_mib,
            free_mib: free
                .map(|r| r.end.saturating_sub(r.start))
                .max()
                .unwrap_or(0)
                >> 20,
            ceiling,
            // Even, because RAM is made of 2 MiB pieces.
            need_mib: mib_up(need).next_multiple_of(2),
        },
        None => PlaceError::InitrdUnreachable {
            initrd_mib,
            floor,
            ceiling,
        },
    }
}

/// No piece of RAM has `len` bytes for a kernel that cannot be below `lowest`.
pub(crate) fn no_room(ram: &[RamRange], len: u64, lowest: u64) -> PlaceError {
    let free = |piece: &RamRange| {
        let end = piece.end().min(MAPPED_END);
        end.saturating_sub(piece.guest.max(lowest))
    };
    PlaceError::Kernel {
        need_mib: mib_up(len),
        lowest,
        have_mib: ram.iter().map(free).max().unwrap_or(0) >> 20,
    }
}

/// Whether RAM has all of `range` in one piece.
pub(crate) fn is_in_ram(ram: &[RamRange], range: &Range<u64>) -> bool {
    ram.iter()
        .any(|piece| piece.guest <= range.start && range.end <= piece.end())
}

/// Bytes as whole MiB, rounded up.
fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram;

    const MIB: u64 = 1 << 20;
    const KERNEL: Range<u64> = 16 * MIB..80 * MIB + 1;

    #[test]
    fn the_initrd_is_page_aligned_behind_the_kernel_and_below_the_ceiling() {
        let ram = ram::plan(512 * MIB, &[]).unwrap();
        let range = initrd(&ram, &KERNEL, 5000, 256 * MIB).unwrap().unwrap();
        assert_eq!(range, 256 * MIB - 8192..256 * MIB - 8192 + 5000);
        assert_eq!(initrd(&ram, &KERNEL, 0, 256 * MIB), Ok(None));
    }

    #[test]
    fn what_is_asked_for_after_a_failure_is_enough() {
        let ram = ram::plan(96 * MIB, &[]).unwrap();
        let error = initrd(&ram, &KERNEL, 40 * MIB, 1 << 31).unwrap_err();
        let PlaceError::Initrd {
            free_mib, need_mib, ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!((free_mib, need_mib), (15, 122));
        let ram = ram::plan(need_mib * MIB, &[]).unwrap();
        assert!(initrd(&ram, &KERNEL, 40 * MIB, 1 << 31).is_ok());
    }

    #[test]
    fn no_more_is_asked_for_than_the_initrd_takes() {
        // In one piece up to the hole, and what would straddle it: then all of it is above 4 GiB.
        let floor = 81 * MIB;
        let kernel = 16 * MIB..floor;
        let ram = ram::plan(96 * MIB, &[]).unwrap();
        for len in [RAM_HOLE.start - floor, RAM_HOLE.start - floor + 1] {
            let error = initrd(&ram, &kernel, len, u64::MAX).unwrap_err();
            let PlaceError::Initrd { need_mib, .. } = error else {
                panic!("{error}");
            };
            let fits = |mib: u64| {
                let ram = ram::plan(mib * MIB, &[]).unwrap();
                initrd(&ram, &kernel, len, u64::MAX).is_ok()
            };
            assert!(fits(need_mib) && !fits(need_mib - 2), "{need_mib}");
        }
    }

    #[test]
    fn an_initrd_that_no_memory_size_helps_is_told_apart() {
        let ram = ram::plan(64 << 30, &[]).unwrap();
        for len in [3 << 30, u64::MAX] {
            let error = initrd(&ram, &KERNEL, len, 1 << 31).unwrap_err();
            assert!(matches!(error, PlaceError::InitrdUnreachable { .. }));
        }
    }

    #[test]
    fn the_initrd_never_straddles_pieces_of_ram() {
        let ram = ram::plan(512 * MIB, &[128 * MIB..=130 * MIB]).unwrap();
        for len in [1, 30 * MIB, 40 * MIB, 300 * MIB] {
            let range = initrd(&ram, &KERNEL, len, 1 << 31).unwrap().unwrap();
            assert!(is_in_ram(&ram, &range) && range.start >= KERNEL.end);
        }
    }
}
