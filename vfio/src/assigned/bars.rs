//! The function's BARs: what the guest is told of them, and which parts it reaches without an exit.
//!
//! Each area that the kernel lets us map is mapped once, as the kernel lists it (some drivers refuse anything else). What is cut is
//! what the guest gets of it: never the pages of the MSI-X table, even where the kernel would allow that (MSIX_MAPPABLE), because the
//! guest's table holds the guest's messages; and never those of the pending bits, because the device knows nothing of a vector that
//! only the guest has masked.

use std::{io, iter, ops::Range, sync::Arc};

use devices::{
    mapping::HostMapping,
    pci::{
        bar::{BarKind, BarSpec},
        msix::MsixLocation,
        registers::BAR0,
        space::Direct,
    },
};

use crate::kernel::{
    Area, HostFunction, RegionIndex, RegionInfo,
    mapping::{page_bytes, part},
};

/// How many BARs a function has at most.
pub(super) const BARS: usize = 6;

/// What the kernel says of the regions behind the BARs.
pub(super) fn regions(host: &dyn HostFunction) -> io::Result<Vec<RegionInfo>> {
    (0..BARS)
        .filter_map(RegionIndex::bar)
        .map(|index| host.region(index))
        .collect()
}

/// The BARs. Their kind is in the registers, their size is the region's: a VF's registers are empty in hardware, and vfio-pci fills in
/// just the kind.
pub(super) fn specs(image: &[u8], regions: &[RegionInfo]) -> Vec<BarSpec> {
    let mut specs = Vec::new();
    let mut free = 0;
    for (index, region) in regions.iter().enumerate() {
        if index < free || region.size == 0 {
            continue;
        }
        let kind = kind(image.get(BAR0 + 4 * index).copied().unwrap_or(0));
        let wide = matches!(kind, BarKind::Memory64 { .. });
        free = index + if wide { 2 } else { 1 };
        specs.push(BarSpec {
            index,
            kind,
            size: region.size,
        });
    }
    specs
}

/// PCI 3.0 §6.2.5.1: bit 0 I/O; of memory, bits 2:1 the width and bit 3 prefetchable.
fn kind(register: u8) -> BarKind {
    let prefetchable = register & 0b1000 != 0;
    match register & 0b111 {
        0b100 => BarKind::Memory64 { prefetchable },
        low if low & 1 != 0 => BarKind::Io,
        _ => BarKind::Memory32 { prefetchable },
    }
}

/// Whether table and pending bits are inside memory BARs of the function, and do not run into each other.
pub(super) fn holds(specs: &[BarSpec], msix: &MsixLocation) -> bool {
    let inside = |bar: usize, range: &Range<u64>| {
        let mut specs = specs.iter();
        specs.any(|spec| spec.index == bar && spec.kind.is_memory() && range.end <= spec.size)
    };
    let (table, pba) = (msix.table(), msix.pba());
    let apart = msix.table_bar != msix.pba_bar || table.end <= pba.start || pba.end <= table.start;
    inside(msix.table_bar, &table) && inside(msix.pba_bar, &pba) && apart
}

/// Maps what can be mapped of a region, and cuts it around the pages of `emulated`.
///
/// What fails is left to the trap: slower, and a warning, but the card works.
pub(super) fn direct(
    host: &dyn HostFunction,
    region: &RegionInfo,
    emulated: &[Range<u64>; 2],
) -> Vec<Direct> {
    let page = page_bytes();
    let areas = region
        .mappable
        .iter()
        .filter(|area| area.offset.is_multiple_of(page));
    areas
        .flat_map(|&area| match host.map(region, area) {
            Ok(whole) => parts(area.offset, &whole, emulated),
            Err(error) => {
                let Area { offset, len } = area;
                log::warn!("region {}: {len:#x} bytes at {offset:#x} cannot be mapped, every access will exit: {error}", region.index.0);
                Vec::new()
            }
        })
        .collect()
}

/// What the guest gets of `whole`, which is mapped from `start` of its region on.
fn parts(start: u64, whole: &Arc<dyn HostMapping>, emulated: &[Range<u64>; 2]) -> Vec<Direct> {
    let whole_range = start..start + whole.len() as u64;
    let mut kept: Vec<_> = iter::once(whole_range).collect();
    for range in emulated {
        kept = kept
            .iter()
            .flat_map(|part| cut(part, &pages(range)))
            .collect();
    }
    kept.into_iter()
        .filter_map(|Range { start: offset, end }| {
            let area = Area {
                offset: offset - start,
                len: end - offset,
            };
            part(whole, area).map(|memory| Direct::new(offset, memory))
        })
        .collect()
}

/// The pages that the guest could have of a region, but for what is `emulated` in them.
pub(super) fn withheld(region: &RegionInfo, emulated: &[Range<u64>; 2]) -> Vec<Range<u64>> {
    let pages = emulated.iter().map(pages);
    let could = |page: &Range<u64>| {
        let mut areas = region.mappable.iter();
        areas.any(|area| area.offset < page.end && page.start < area.offset + area.len)
    };
    pages
        .filter(|pages| !pages.is_empty() && could(pages))
        .collect()
}

/// The whole pages that `range` is in; none if it is empty.
fn pages(range: &Range<u64>) -> Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    let page = page_bytes();
    range.start / page * page..range.end.next_multiple_of(page)
}

/// What remains of `range` without `hole`.
fn cut(range: &Range<u64>, hole: &Range<u64>) -> Vec<Range<u64>> {
    if hole.is_empty() {
        return vec![range.clone()];
    }
    let before = range.start..range.end.min(hole.start);
    let after = range.start.max(hole.end)..range.end;
    [before, after]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::fake::FakeHost, *};

    fn msix(table_bar: usize, table_offset: u64, pba_bar: usize, pba_offset: u64) -> MsixLocation {
        MsixLocation {
            table_bar,
            table_offset,
            pba_bar,
            pba_offset,
            vectors: 3,
        }
    }

    fn direct_parts(host: &FakeHost, emulated: &[Range<u64>; 2]) -> Vec<(u64, usize)> {
        let region = host.region(RegionIndex(0)).unwrap();
        let parts = direct(host, &region, emulated);
        parts
            .iter()
            .map(|part| (part.offset, part.memory.len()))
            .collect()
    }

    #[test]
    fn the_pages_of_the_table_and_of_the_pending_bits_are_cut_out() {
        let host = FakeHost::default().with_region(0, vec![0; 0x4000], true);
        let parts = |table, pba| direct_parts(&host, &[table, pba]);
        let (first, last) = ((0, 0x1000), (0x3000, 0x1000));
        assert_eq!(parts(0..0, 0..0), [(0, 0x4000)]);
        assert_eq!(parts(0x8..0x8, 0..0), [(0, 0x4000)]);
        assert_eq!(parts(0x2010..0x2040, 0..0), [(0, 0x2000), last]);
        assert_eq!(parts(0..0x30, 0..0), [(0x1000, 0x3000)]);
        assert_eq!(parts(0x3ff0..0x4000, 0..0), [(0, 0x3000)]);
        assert_eq!(parts(0xff0..0x2010, 0..0), [last]);
        assert_eq!(parts(0..0x4000, 0..0), []);
        assert_eq!(parts(0x1000..0x1030, 0x2800..0x2808), [first, last]);
        assert_eq!(parts(0x2000..0x2030, 0x2800..0x2808), [(0, 0x2000), last]);
    }

    #[test]
    fn a_bar_smaller_than_a_page_is_mapped_as_its_page_unless_the_table_is_in_it() {
        let host = FakeHost::default().with_region(0, vec![0; 256], true);
        assert_eq!(direct_parts(&host, &[0..0, 0..0]), [(0, 0x1000)]);
        assert_eq!(direct_parts(&host, &[0x80..0xb0, 0..0]), []);
    }

    #[test]
    fn listed_areas_are_mapped_each_and_cut_each_around_the_table() {
        let mut host = FakeHost::default().with_region(0, vec![0; 0x8000], false);
        let area = |offset, len| Area { offset, len };
        // The third does not start a page: no mapping can be made of it.
        host.regions[0].0.mappable =
            vec![area(0, 0x1000), area(0x3000, 0x3000), area(0x7800, 0x800)];
        assert_eq!(
            direct_parts(&host, &[0..0, 0..0]),
            [(0, 0x1000), (0x3000, 0x3000)]
        );
        assert_eq!(
            direct_parts(&host, &[0x4010..0x4040, 0..0]),
            [(0, 0x1000), (0x3000, 0x1000), (0x5000, 0x1000)]
        );
        assert_eq!(
            direct_parts(&host, &[0..0x10, 0x3ff8..0x4000]),
            [(0x4000, 0x2000)]
        );
    }

    #[test]
    fn only_pages_that_the_guest_could_have_had_are_withheld() {
        let mut host = FakeHost::default().with_region(0, vec![0; 0x8000], false);
        let area = |offset, len| Area { offset, len };
        host.regions[0].0.mappable = vec![area(0x1000, 0x1000), area(0x4000, 0x2000)];
        let region = host.region(RegionIndex(0)).unwrap();
        let withheld = |table, pba| withheld(&region, &[table, pba]);
        // Beside an area on either side, and in one.
        assert!(withheld(0xff0..0x1000, 0x2000..0x2010).is_empty());
        assert!(withheld(0x3ff0..0x4000, 0x6000..0x6010).is_empty());
        assert!(withheld(0x1010..0x1010, 0..0).is_empty());
        let table = withheld(0x1010..0x1040, 0x7000..0x7010);
        assert!(table.into_iter().eq(iter::once(0x1000..0x2000)));
        let both = withheld(0x5ff0..0x6000, 0x1ff0..0x2010);
        assert_eq!(both, [0x5000..0x6000, 0x1000..0x3000]);
    }

    #[test]
    fn what_the_kernel_does_not_list_is_trapped() {
        let host = FakeHost::default().with_region(0, vec![0; 0x4000], false);
        assert_eq!(direct_parts(&host, &[0..0, 0..0]), []);
    }

    #[test]
    fn a_wide_bar_takes_the_next_register_with_it() {
        let mut image = vec![0; 64];
        image[BAR0] = 0b1100;
        image[BAR0 + 8] = 1;
        image[BAR0 + 12] = 0;
        let region = |index, size| RegionInfo {
            size,
            ..RegionInfo::nothing(RegionIndex(index))
        };
        let sizes = [0x4000, 0x4000, 32, 0x1000, 0, 0];
        let regions: Vec<_> = (0..)
            .zip(sizes)
            .map(|(index, size)| region(index, size))
            .collect();
        let found: Vec<_> = specs(&image, &regions)
            .iter()
            .map(|s| (s.index, s.kind))
            .collect();
        let wide = BarKind::Memory64 { prefetchable: true };
        let narrow = BarKind::Memory32 {
            prefetchable: false,
        };
        assert_eq!(found, [(0, wide), (2, BarKind::Io), (3, narrow)]);
    }

    #[test]
    fn a_table_outside_of_memory_bars_is_not_believed() {
        let memory = BarSpec {
            index: 0,
            kind: BarKind::Memory32 {
                prefetchable: false,
            },
            size: 0x1000,
        };
        let ports = BarSpec {
            index: 1,
            kind: BarKind::Io,
            size: 0x1000,
        };
        let specs = [memory, ports];
        assert!(holds(&specs, &msix(0, 0, 0, 0x800)));
        assert!(!holds(&specs, &msix(0, 0xfd8, 0, 0x800)));
        assert!(!holds(&specs, &msix(1, 0, 0, 0x800)));
        assert!(!holds(&specs, &msix(0, 0, 3, 0)));
        assert!(!holds(&specs, &msix(0, 0, 0, 0x28)));
    }
}
