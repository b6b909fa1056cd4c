//! The MSI-X table and pending bits on pages of their own (`msix=relocate`).
//!
//! PCI 3.0 §6.8.2 asks devices to keep other registers out of the table's page. Some do not, and since the table is emulated, each
//! access to those registers is an exit. Here the guest is told of another place, and the page of the registers is its own.
//!
//! Only what the guest sees moves: vfio-pci programs the device's table where it is, and nothing of ours is ever written there. The
//! guest can then reach that table too, with its own interrupts to lose: a message that the device was not allowed is stopped by the
//! host's interrupt remapping, as one is that a device makes up.

use devices::pci::{
    bar::{BarKind, BarSpec},
    msix::MsixLocation,
};

use super::bars::BARS;
use crate::kernel::mapping::page_bytes;

/// Why a table stays where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stays {
    /// No register is left for it, and its BAR cannot be larger.
    NoRoom,
    /// The kernel does not let its page be mapped, so that nothing would be gained.
    NotMappable,
}

impl Stays {
    /// In words.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::NoRoom => "no BAR has room for it",
            Self::NotMappable => "the kernel does not let its page be mapped",
        }
    }
}

/// Finds pages for the table and pending bits at `from`, and makes `specs` have them.
///
/// A register behind all that are in use gets them, if there is one: drivers that look for the first BAR of a kind still find
/// theirs. Else the BAR of the table grows.
pub(super) fn relocate(
    from: &MsixLocation,
    specs: &mut Vec<BarSpec>,
) -> Result<MsixLocation, Stays> {
    let page = page_bytes();
    let table_len = from.table_len().next_multiple_of(page);
    let len = table_len + from.pba_len().next_multiple_of(page);
    let free = specs.iter().map(end).max().unwrap_or(0);
    let (bar, start) = if free < BARS {
        specs.push(BarSpec {
            index: free,
            kind: BarKind::Memory32 {
                prefetchable: false,
            },
            size: len.next_power_of_two(),
        });
        (free, 0)
    } else {
        (from.table_bar, grow(from.table_bar, len, specs)?)
    };
    Ok(MsixLocation {
        table_bar: bar,
        table_offset: start,
        pba_bar: bar,
        pba_offset: start + table_len,
        ..*from
    })
}

/// The first register behind a BAR's.
fn end(spec: &BarSpec) -> usize {
    let wide = matches!(spec.kind, BarKind::Memory64 { .. });
    spec.index + if wide { 2 } else { 1 }
}

/// Makes BAR `index` larger by at least `len`. Where that starts in it, on a page of its own.
fn grow(index: usize, len: u64, specs: &mut [BarSpec]) -> Result<u64, Stays> {
    // What the capability and a 32-bit register can say.
    const END: u64 = 1 << 31;
    let spec = specs.iter_mut().find(|spec| spec.index == index);
    let spec = spec.ok_or(Stays::NoRoom)?;
    let start = spec.size.max(page_bytes());
    let size = start
        .checked_add(len)
        .and_then(u64::checked_next_power_of_two);
    spec.size = size.filter(|&size| size <= END).ok_or(Stays::NoRoom)?;
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: BarKind = BarKind::Memory32 {
        prefetchable: false,
    };
    const HIGH: BarKind = BarKind::Memory64 { prefetchable: true };

    fn spec(index: usize, kind: BarKind, size: u64) -> BarSpec {
        BarSpec { index, kind, size }
    }

    fn location(vectors: u16) -> MsixLocation {
        MsixLocation {
            table_bar: 4,
            table_offset: 0x80,
            pba_bar: 4,
            pba_offset: 0xc00,
            vectors,
        }
    }

    fn places(to: &MsixLocation) -> [(usize, u64); 2] {
        [(to.table_bar, to.table_offset), (to.pba_bar, to.pba_offset)]
    }

    #[test]
    fn a_register_behind_all_others_gets_the_table() {
        let mut specs = vec![spec(0, BarKind::Io, 256), spec(4, LOW, 4096)];
        let to = relocate(&location(3), &mut specs).unwrap();
        assert_eq!(places(&to), [(5, 0), (5, 0x1000)]);
        assert_eq!(specs[2], spec(5, LOW, 0x2000));
        assert_eq!(to.vectors, 3);
    }

    #[test]
    fn a_free_register_before_others_is_left_free_and_the_bar_grows() {
        let mut specs = vec![spec(0, BarKind::Io, 256), spec(4, HIGH, 0x4000)];
        let to = relocate(&location(2048), &mut specs).unwrap();
        assert_eq!(places(&to), [(4, 0x4000), (4, 0xc000)]);
        assert_eq!(specs, [spec(0, BarKind::Io, 256), spec(4, HIGH, 0x1_0000)]);
    }

    #[test]
    fn a_bar_smaller_than_a_page_grows_by_whole_pages() {
        let mut specs = vec![spec(4, HIGH, 0x800)];
        let to = relocate(&location(1), &mut specs).unwrap();
        assert_eq!(places(&to), [(4, 0x1000), (4, 0x2000)]);
        assert_eq!(specs, [spec(4, HIGH, 0x4000)]);
    }

    #[test]
    fn a_bar_that_cannot_grow_keeps_its_table() {
        let mut specs = vec![spec(4, HIGH, 1 << 31)];
        assert_eq!(relocate(&location(1), &mut specs), Err(Stays::NoRoom));
        assert_eq!(specs, [spec(4, HIGH, 1 << 31)]);
    }

    #[test]
    fn whatever_the_device_has_table_and_pending_bits_end_up_alone() {
        let (mut moved, mut refused) = (0, 0);
        for vectors in [1, 64, 65, 256, 257, 2048] {
            for size in (4..31).map(|bits| 1u64 << bits) {
                for index in 0..5 {
                    let kind = if index % 2 == 0 { HIGH } else { LOW };
                    let before = MsixLocation {
                        table_bar: index,
                        ..location(vectors)
                    };
                    let mut specs = vec![spec(index, kind, size)];
                    let Ok(to) = relocate(&before, &mut specs) else {
                        refused += 1;
                        continue;
                    };
                    moved += 1;
                    devices::pci::bar::Bars::new(&specs).unwrap();
                    assert!(super::super::bars::holds(&specs, &to));
                    let own = to.table_bar != index || to.table_offset >= size;
                    assert!(own && to.table_offset.is_multiple_of(0x1000));
                    assert!(to.pba_offset.is_multiple_of(0x1000));
                }
            }
        }
        assert!(moved > 10 * refused, "{moved} moved, {refused} refused");
    }
}
