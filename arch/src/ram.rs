//! Where the guest's RAM goes: below the 32-bit hole, then above 4 GiB, around what the host's IOMMU cannot translate.
//!
//! An assigned device reaches RAM at guest-physical addresses, so RAM must not lie where the host reserves I/O virtual addresses:
//! interrupt messages (0xfee0_0000 on Intel, in the hole anyway), the HyperTransport range below 1 TiB on AMD, and what firmware
//! keeps for devices (RMRR). VFIO lists them.

use std::ops::{Range, RangeInclusive};

use crate::layout::RAM_HOLE;

/// Every piece starts and ends on such a boundary, so that each can be backed and mapped by huge pages.
pub const RAM_ALIGN: u64 = 2 << 20;

/// What boot structures, firmware tables and the search for them take: RAM has to start with this much in one piece.
const LOW_RAM: u64 = RAM_ALIGN;

/// The most pieces a plan has: the zero page has room for 128 ranges, of which a few are not RAM.
pub const MAX_PIECES: usize = 64;

/// A piece of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// Its first guest-physical address.
    pub guest: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl RamRange {
    /// The addresses it covers.
    pub fn range(&self) -> Range<u64> {
        self.guest..self.end()
    }

    /// The first address after it.
    pub fn end(&self) -> u64 {
        self.guest.saturating_add(self.len)
    }
}

/// RAM of that size cannot be laid out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RamError {
    /// No RAM at all.
    #[error("a guest cannot start without memory\n  give it some:  --memory 512M")]
    Zero,
    /// Not made of whole huge pages.
    #[error("{size} bytes of memory are not a multiple of 2 MiB; {below} and {above} MiB are")]
    Unaligned {
        /// The size asked for, in bytes.
        size: u64,
        /// The next smaller size that works, in MiB.
        below: u64,
        /// The next larger one.
        above: u64,
    },
    /// The host reserves the addresses a PC starts with.
    #[error(
        "the host's IOMMU reserves {start:#x}..={end:#x}, where the guest's boot structures go\n  \
         see which device wants it:  cat /sys/kernel/iommu_groups/*/reserved_regions"
    )]
    LowReserved {
        /// First reserved address.
        start: u64,
        /// Last reserved address.
        end: u64,
    },
    /// The host reserves so much that RAM falls to pieces.
    #[error(
        "the host's IOMMU reserves so many ranges that memory falls into {pieces} pieces; {max} are possible\n  \
         give the guest less with --memory"
    )]
    Scattered {
        /// Pieces it would take.
        pieces: usize,
        /// Pieces that a memory map can say.
        max: usize,
    },
    /// RAM would reach past what the guest's CPUs can address.
    #[error(
        "{size_mib} MiB of memory reach up to {end:#x}, but this host's guests can address only \
         {phys_bits} bits ({limit:#x})\n  give the guest less with --memory"
    )]
    TooLarge {
        /// The size asked for, in MiB.
        size_mib: u64,
        /// Where RAM would end.
        end: u64,
        /// Physical address bits of a guest CPU.
        phys_bits: u8,
        /// The first address they cannot express.
        limit: u64,
    },
}

/// Lays out `size_bytes` of RAM around the inclusive ranges of `reserved` (in any order, overlapping or not).
///
/// The pieces come in ascending order and do not touch; together they are exactly `size_bytes`.
pub fn plan(size_bytes: u64, reserved: &[RangeInclusive<u64>]) -> Result<Vec<RamRange>, RamError> {
    check_size(size_bytes)?;
    let gaps = gaps(reserved)?;
    let mut left = size_bytes;
    let mut pieces = Vec::new();
    for gap in gaps {
        let len = left.min(gap.end - gap.start);
        if len > 0 {
            pieces.push(RamRange {
                guest: gap.start,
                len,
            });
        }
        left -= len;
    }
    match (left, pieces.len()) {
        (0, 0..=MAX_PIECES) => Ok(pieces),
        (0, scattered) => Err(RamError::Scattered {
            pieces: scattered,
            max: MAX_PIECES,
        }),
        _ => Err(too_large(size_bytes, u64::MAX, 64)),
    }
}

/// The first address after the last piece.
pub fn end(ranges: &[RamRange]) -> u64 {
    ranges.iter().map(RamRange::end).max().unwrap_or(0)
}

/// Whether a guest CPU with `phys_bits` can reach all of it.
pub fn check_reach(ranges: &[RamRange], phys_bits: u8) -> Result<(), RamError> {
    let limit = 1_u64.checked_shl(phys_bits.into()).unwrap_or(u64::MAX);
    let end = end(ranges);
    if end <= limit {
        return Ok(());
    }
    let size = ranges
        .iter()
        .fold(0, |sum: u64, r| sum.saturating_add(r.len));
    Err(too_large(size, end, phys_bits))
}

fn too_large(size: u64, end: u64, phys_bits: u8) -> RamError {
    RamError::TooLarge {
        size_mib: size >> 20,
        end,
        phys_bits,
        limit: 1_u64.checked_shl(phys_bits.into()).unwrap_or(u64::MAX),
    }
}

fn check_size(size: u64) -> Result<(), RamError> {
    if size == 0 {
        return Err(RamError::Zero);
    }
    if !size.is_multiple_of(RAM_ALIGN) {
        let below = size / RAM_ALIGN * 2;
        return Err(RamError::Unaligned {
            size,
            below,
            above: below + 2,
        });
    }
    Ok(())
}

/// What lies between the reserved ranges and the hole, cut to whole huge pages, in ascending order.
fn gaps(reserved: &[RangeInclusive<u64>]) -> Result<Vec<Range<u64>>, RamError> {
    let mut taken: Vec<_> = reserved.iter().filter(|r| !r.is_empty()).cloned().collect();
    if let Some(low) = taken.iter().find(|r| *r.start() < LOW_RAM) {
        return Err(RamError::LowReserved {
            start: *low.start(),
            end: *low.end(),
        });
    }
    taken.push(RAM_HOLE.start..=RAM_HOLE.end - 1);
    taken.sort_unstable_by_key(|r| *r.start());

    let mut gaps = Vec::new();
    let mut free_from = Some(0);
    for range in &taken {
        let Some(start) = free_from else { break };
        let end = range.start() / RAM_ALIGN * RAM_ALIGN;
        if start < end {
            gaps.push(start..end);
        }
        // A range that reaches the last address leaves nothing above it.
        let after = range
            .end()
            .checked_add(1)
            .and_then(|end| end.checked_next_multiple_of(RAM_ALIGN));
        free_from = after.map(|after| after.max(start));
    }
    if let Some(start) = free_from {
        gaps.push(start..u64::MAX / RAM_ALIGN * RAM_ALIGN);
    }
    Ok(gaps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const GIB: u64 = 1 << 30;
    const AMD_HYPERTRANSPORT: RangeInclusive<u64> = 0xfd_0000_0000..=0xff_ffff_ffff;

    #[test]
    fn small_ram_is_one_piece_at_zero() {
        let piece = RamRange {
            guest: 0,
            len: 512 << 20,
        };
        assert_eq!(plan(512 << 20, &[]).unwrap(), [piece]);
    }

    #[test]
    fn what_does_not_fit_below_the_hole_goes_on_at_4_gib() {
        let pieces = plan(5 * GIB, &[0xfee0_0000..=0xfeef_ffff]).unwrap();
        let ranges: Vec<_> = pieces.iter().map(RamRange::range).collect();
        assert_eq!(ranges, [0..3 * GIB, 4 * GIB..6 * GIB]);
    }

    #[test]
    fn ram_goes_around_the_hypertransport_hole() {
        let pieces = plan(1100 * GIB, &[AMD_HYPERTRANSPORT]).unwrap();
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[1].end(), 0xfd_0000_0000);
        assert_eq!(pieces[2].guest, 0x100_0000_0000);
    }

    #[test]
    fn odd_sizes_are_refused_with_their_neighbours() {
        assert_eq!(plan(0, &[]), Err(RamError::Zero));
        let error = plan(513 << 20, &[]).unwrap_err();
        assert!(
            error.to_string().ends_with("512 and 514 MiB are"),
            "{error}"
        );
    }

    #[test]
    fn reserved_boot_addresses_are_refused() {
        let error = plan(GIB, &[0x8_0000..=0x8_ffff]).unwrap_err();
        assert!(matches!(
            error,
            RamError::LowReserved {
                start: 0x8_0000,
                ..
            }
        ));
    }

    #[test]
    fn ram_beyond_the_cpus_reach_is_refused() {
        let pieces = plan(64 * GIB, &[]).unwrap();
        assert!(check_reach(&pieces, 37).is_ok());
        let error = check_reach(&pieces, 36).unwrap_err();
        assert!(error.to_string().starts_with("65536 MiB"), "{error}");
        assert!(plan(u64::MAX / RAM_ALIGN * RAM_ALIGN, &[]).is_err());
    }

    #[test]
    fn ram_takes_every_huge_page_but_the_hole_and_no_more() {
        let most = u64::MAX / RAM_ALIGN * RAM_ALIGN - (RAM_HOLE.end - RAM_HOLE.start);
        assert_eq!(
            end(&plan(most, &[]).unwrap()),
            0_u64.wrapping_sub(RAM_ALIGN)
        );
        assert!(plan(most + RAM_ALIGN, &[]).is_err());
    }

    #[test]
    fn a_memory_map_that_no_zero_page_holds_is_refused() {
        let reserved: Vec<_> = (1..200)
            .map(|i| i * 4 * RAM_ALIGN..=i * 4 * RAM_ALIGN)
            .collect();
        assert_eq!(plan(63 * 3 * RAM_ALIGN, &reserved).unwrap().len(), 63);
        let error = plan(100 * 3 * RAM_ALIGN, &reserved).unwrap_err();
        assert!(matches!(error, RamError::Scattered { .. }), "{error}");
    }

    #[test]
    fn pieces_always_sum_to_the_size_and_avoid_what_is_reserved() {
        let mut random = Random::new(1);
        for _ in 0..20_000 {
            let size = (1 + random.below(1 << 20)) * RAM_ALIGN;
            let reserved: Vec<_> = (0..random.below(6))
                .map(|_| {
                    let start = LOW_RAM + random.magnitude(42);
                    start..=start.saturating_add(random.magnitude(40))
                })
                .collect();
            let pieces = plan(size, &reserved).unwrap();
            assert_eq!(pieces.iter().map(|p| p.len).sum::<u64>(), size);
            assert!(pieces.windows(2).all(|p| p[0].end() < p[1].guest));
            for piece in pieces {
                assert!(piece.guest % RAM_ALIGN == 0 && piece.len % RAM_ALIGN == 0);
                assert!(piece.end() <= RAM_HOLE.start || piece.guest >= RAM_HOLE.end);
                for taken in &reserved {
                    assert!(piece.end() <= *taken.start() || piece.guest > *taken.end());
                }
            }
        }
    }
}
