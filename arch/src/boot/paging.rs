//! The page tables the boot CPU starts with: the low 4 GiB at their own addresses, in 2 MiB pages (Intel SDM vol. 3, "4-Level
//! Paging").
//!
//! Linux asks for the kernel, the zero page and the command line to be mapped; it makes its own tables before it looks further. Not
//! 1 GiB pages: the guest's CPU need not have them.

use crate::layout::PAGE_TABLES;

const PAGE: u64 = 4096;
const TABLE_ENTRIES: usize = 512;
const LARGE_PAGE: u64 = 2 << 20;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;

/// What CR3 holds.
pub const ROOT: u64 = PAGE_TABLES.start;

/// The first address that is not mapped.
pub const MAPPED_END: u64 = 4 << 30;

/// The tables, to be written at [`PAGE_TABLES`].
pub fn tables() -> Vec<u8> {
    let level3 = ROOT + PAGE;
    let level2 = level3 + PAGE;
    let directories = MAPPED_END >> 30;
    let table = |addresses: &mut dyn Iterator<Item = u64>, flags: u64| {
        let mut entries: Vec<u64> = addresses.map(|a| a | PRESENT | WRITABLE | flags).collect();
        entries.resize(entries.len().next_multiple_of(TABLE_ENTRIES), 0);
        entries
    };
    let mut entries = table(&mut std::iter::once(level3), 0);
    entries.extend(table(&mut (0..directories).map(|i| level2 + i * PAGE), 0));
    let pages = MAPPED_END / LARGE_PAGE;
    entries.extend(table(&mut (0..pages).map(|i| i * LARGE_PAGE), LARGE));
    entries.into_iter().flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as a CPU does.
    fn translate(memory: &[u8], address: u64) -> Option<u64> {
        let entry = |table: u64, index: u64| {
            let at = usize::try_from(table - PAGE_TABLES.start + (index & 511) * 8).unwrap();
            let entry = u64::from_le_bytes(memory[at..at + 8].try_into().unwrap());
            (entry & PRESENT != 0).then_some(entry)
        };
        let frame = |entry: u64| entry & !0xfff;
        let level3 = frame(entry(ROOT, address >> 39)?);
        let level2 = frame(entry(level3, address >> 30)?);
        let page = entry(level2, address >> 21)?;
        assert!(page & LARGE != 0 && page & WRITABLE != 0);
        Some((page & !(LARGE_PAGE - 1)) + address % LARGE_PAGE)
    }

    #[test]
    fn the_low_4_gib_are_at_their_own_addresses_and_nothing_else_is() {
        let memory = tables();
        assert_eq!(memory.len() as u64, PAGE_TABLES.end - PAGE_TABLES.start);
        for address in [0, 0x7000, 0x1f_ffff, 0x20_0000, 0x7fff_ffff, 0xffff_ffff] {
            assert_eq!(translate(&memory, address), Some(address), "{address:#x}");
        }
        for address in [MAPPED_END, 1 << 39, 1 << 46] {
            assert_eq!(translate(&memory, address), None, "{address:#x}");
        }
    }
}
