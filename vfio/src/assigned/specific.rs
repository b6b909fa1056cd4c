//! Regions of a device beyond the nine of every PCI function: what a driver of the host's adds. By index and kind, never by position.
//!
//! Used is one: the OpRegion of Intel's graphics, in which the firmware describes the outputs of the board. The guest finds a copy of
//! it in memory, at the address in its register ASLS. The others are left alone, and named.

use std::fmt;

use vfio_bindings::bindings::vfio::{
    VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG, VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG,
    VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION, VFIO_REGION_TYPE_GFX, VFIO_REGION_TYPE_PCI_VENDOR_MASK,
    VFIO_REGION_TYPE_PCI_VENDOR_TYPE,
};

use crate::{
    Assignable,
    kernel::{HostFunction, RegionIndex, RegionInfo, RegionKind},
};

/// The first index that is not every PCI function's (`VFIO_PCI_NUM_REGIONS`).
const FIRST: u32 = 9;
/// More than any driver adds: a count of regions may not keep us busy for ever.
const MOST: u32 = 64;
/// The register with the OpRegion's address (`OPREGION_PCI_ADDR` in drivers/vfio/pci/vfio_pci_igd.c), 32 bits.
pub(super) const ASLS: usize = 0xfc;
/// How an OpRegion begins, and its least size.
const OPREGION_SIGNATURE: &[u8] = b"IntelGraphicsMem";
const OPREGION_LEAST: usize = 8 << 10;

/// A region that a driver of the host's added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Specific {
    region: RegionInfo,
    kind: RegionKind,
}

impl Specific {
    /// Those of a device.
    pub(super) fn all(host: &dyn HostFunction, function: &Assignable) -> Vec<Self> {
        let indices = FIRST..host.region_count().min(FIRST + MOST);
        let regions = indices.filter_map(|index| host.region(RegionIndex(index)).ok());
        let kinds = regions.filter(|region| region.size > 0);
        let all: Vec<_> = kinds
            .filter_map(|region| {
                let kind = region.kind?;
                Some(Self { region, kind })
            })
            .collect();
        for one in &all {
            log::info!("{function}: {one}");
        }
        all
    }

    /// Whether it is the OpRegion of Intel's graphics.
    pub(super) fn is_opregion(&self) -> bool {
        self.kind.of_vendor(0x8086) == Some(VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION)
    }

    /// The OpRegion, if that is what this is, of at most `room` bytes. vfio-pci has put what belongs to it right behind it.
    pub(super) fn opregion(&self, host: &dyn HostFunction, room: u64) -> Option<Vec<u8>> {
        let size = Some(self.region.size).filter(|&size| self.is_opregion() && size <= room)?;
        let mut content = vec![0; usize::try_from(size).ok()?];
        host.read(&self.region, 0, &mut content).ok()?;
        let is_one = content.len() >= OPREGION_LEAST && content.starts_with(OPREGION_SIGNATURE);
        is_one.then_some(content)
    }
}

/// What is known of a region by its kind.
impl fmt::Display for Specific {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { region, kind } = self;
        let intel = kind.of_vendor(0x8086);
        write!(f, "region {}, ", region.index.0)?;
        match (intel, kind.group) {
            (Some(VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION), _) => {
                f.write_str("the OpRegion of Intel graphics")
            }
            (Some(VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG), _) => {
                f.write_str("registers of the host bridge, left alone")
            }
            (Some(VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG), _) => {
                f.write_str("registers of the LPC bridge, left alone")
            }
            (_, VFIO_REGION_TYPE_GFX) => f.write_str("of a virtual display, left alone"),
            (_, group) => write!(f, "of kind {group:#x}:{:#x}, left alone", kind.number),
        }
    }
}

impl RegionKind {
    /// Its number among those of a PCI vendor, if it is one of them.
    fn of_vendor(self, vendor: u32) -> Option<u32> {
        let is_vendors = self.group & VFIO_REGION_TYPE_PCI_VENDOR_TYPE != 0
            && self.group & VFIO_REGION_TYPE_PCI_VENDOR_MASK == vendor;
        is_vendors.then_some(self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fake::FakeHost, *};

    const INTEL: u32 = VFIO_REGION_TYPE_PCI_VENDOR_TYPE | 0x8086;

    fn opregion() -> Vec<u8> {
        let mut content = vec![0x11; 9 << 10];
        content[..16].copy_from_slice(OPREGION_SIGNATURE);
        content
    }

    fn all(host: &FakeHost) -> Vec<Specific> {
        Specific::all(host, &Assignable::Function("00:02.0".parse().unwrap()))
    }

    #[test]
    fn regions_are_known_by_kind_wherever_they_are() {
        // 10 and 12 are of no kind, and of no size.
        let host = FakeHost::default()
            .with_specific_region(11, (INTEL, 2), vec![0; 256])
            .with_region(10, vec![0; 16], false)
            .with_specific_region(12, (INTEL, 3), vec![])
            .with_specific_region(13, (7, 8), vec![0; 16])
            .with_specific_region(14, (INTEL, 1), opregion());
        let said: Vec<_> = all(&host).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "region 11, registers of the host bridge, left alone",
                "region 13, of kind 0x7:0x8, left alone",
                "region 14, the OpRegion of Intel graphics",
            ]
        );
    }

    #[test]
    fn an_opregion_is_read_whole_if_it_is_one_and_fits() {
        let read = |content: Vec<u8>, room| {
            let host = FakeHost::default().with_specific_region(9, (INTEL, 1), content);
            all(&host)[0].opregion(&host, room)
        };
        assert_eq!(read(opregion(), 60 << 10), Some(opregion()));
        assert_eq!(read(opregion(), 8 << 10), None);
        assert_eq!(read(vec![0x11; 9 << 10], 60 << 10), None);
        assert_eq!(read(opregion()[..4096].to_vec(), 60 << 10), None);
        let host = FakeHost::default().with_specific_region(9, (INTEL, 2), opregion());
        assert_eq!(all(&host)[0].opregion(&host, 60 << 10), None);
    }

    #[test]
    fn a_region_is_a_vendors_only_by_the_flag_and_the_vendors_id() {
        let of_intel = |group| RegionKind { group, number: 1 }.of_vendor(0x8086);
        assert_eq!(of_intel(VFIO_REGION_TYPE_PCI_VENDOR_TYPE | 0x8086), Some(1));
        assert_eq!(of_intel(VFIO_REGION_TYPE_PCI_VENDOR_TYPE | 0x10de), None);
        assert_eq!(of_intel(0x8086), None);
        assert_eq!(of_intel(VFIO_REGION_TYPE_PCI_VENDOR_TYPE), None);
    }

    #[test]
    fn a_count_of_regions_that_cannot_be_keeps_nobody_busy() {
        let host = FakeHost::default().with_specific_region(u32::MAX - 1, (7, 8), vec![0; 16]);
        assert_eq!(all(&host), []);
    }
}
