//! The memory map a guest is told (ACPI 6.5 §15, INT 15h E820h), in whichever form its boot protocol has.

use std::ops::Range;

use crate::{
    layout::{ACPI_TABLES, EBDA, ECAM, HIGH_RAM, VGA_MEMORY},
    ram::RamRange,
};

/// What a range of the map is; the numbers are those of INT 15h, and PVH uses the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Memory to use.
    Ram = 1,
    /// Addresses to leave alone.
    Reserved = 2,
}

/// A range of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What is there.
    pub kind: Kind,
}

impl Entry {
    fn new(range: Range<u64>, kind: Kind) -> Self {
        Self {
            start: range.start,
            len: range.end - range.start,
            kind,
        }
    }
}

/// The map of a guest whose RAM is `ram`, in ascending order.
///
/// The first megabyte has its PC shape: conventional memory, the EBDA, a gap for VGA and ROMs, the ACPI tables. The ECAM is
/// reserved because Linux distrusts an MCFG that the map does not confirm.
pub fn map(ram: &[RamRange]) -> Vec<Entry> {
    let mut entries = vec![
        Entry::new(EBDA..VGA_MEMORY.start, Kind::Reserved),
        Entry::new(ACPI_TABLES, Kind::Reserved),
        Entry::new(ECAM, Kind::Reserved),
    ];
    for piece in ram {
        let conventional = piece.guest..piece.end().min(EBDA);
        let high = piece.guest.max(HIGH_RAM)..piece.end();
        let usable = [conventional, high].into_iter().filter(|r| !r.is_empty());
        entries.extend(usable.map(|range| Entry::new(range, Kind::Ram)));
    }
    entries.sort_unstable_by_key(|entry| entry.start);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram;

    #[test]
    fn the_map_is_sorted_and_disjoint_and_misses_only_the_first_megabytes_gaps() {
        let size = 4 << 30;
        let entries = map(&ram::plan(size, &[0x5000_0000..=0x500f_ffff]).unwrap());
        assert!(
            entries
                .windows(2)
                .all(|e| e[0].start + e[0].len <= e[1].start)
        );
        let usable: u64 = entries
            .iter()
            .filter(|e| e.kind == Kind::Ram)
            .map(|e| e.len)
            .sum();
        assert_eq!(usable, size - (HIGH_RAM - EBDA));
    }

    #[test]
    fn the_tables_and_the_ecam_are_reserved() {
        let entries = map(&ram::plan(64 << 20, &[]).unwrap());
        for range in [ACPI_TABLES, ECAM] {
            assert!(entries.contains(&Entry::new(range, Kind::Reserved)));
        }
    }
}
