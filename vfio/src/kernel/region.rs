//! Regions of a device: BARs, ROM, configuration space, VGA and what a driver adds (`struct vfio_region_info`).

use std::{io, os::fd::AsFd};

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ROM_REGION_INDEX, VFIO_PCI_VGA_REGION_INDEX,
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_CAP_TYPE, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};

use super::{
    info::{self, Info},
    ioctl::Request,
};

/// The name of a region. Numbers have holes (a card without VGA has no 8): this is never a position in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionIndex(pub u32);

impl RegionIndex {
    /// The expansion ROM.
    pub const ROM: Self = Self(VFIO_PCI_ROM_REGION_INDEX);
    /// Configuration space.
    pub const CONFIG: Self = Self(VFIO_PCI_CONFIG_REGION_INDEX);
    /// Legacy VGA memory and ports.
    pub const VGA: Self = Self(VFIO_PCI_VGA_REGION_INDEX);

    /// BAR 0 to 5.
    pub fn bar(index: usize) -> Option<Self> {
        (index < 6)
            .then(|| u32::try_from(index).ok().map(Self))
            .flatten()
    }
}

/// A part of a region, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// What a region is that a driver added (`struct vfio_region_info_cap_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionKind {
    /// Whose numbers count: a PCI vendor's, or those of a class of devices.
    pub group: u32,
    /// Its number among those.
    pub number: u32,
}

/// What the kernel says of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionInfo {
    /// Its name.
    pub index: RegionIndex,
    /// Size in bytes (or ports); 0 where there is nothing.
    pub size: u64,
    /// Whether it can be read.
    pub readable: bool,
    /// Whether it can be written.
    pub writable: bool,
    /// Whether the page of the MSI-X table, too, may be mapped. Not that it should be shown to a guest.
    pub msix_mappable: bool,
    /// What it is, where a driver added it and says so.
    pub kind: Option<RegionKind>,
    /// Which parts may be mapped, exactly as the kernel lists them; empty if none.
    pub mappable: Vec<Area>,
    /// Where it starts in the device's file.
    pub(crate) file_offset: u64,
}

impl RegionKind {
    fn parse(body: &[u8]) -> Option<Self> {
        Some(Self {
            group: info::read_u32(body, 0)?,
            number: info::read_u32(body, 4)?,
        })
    }
}

impl RegionInfo {
    /// `offsetof(struct vfio_region_info, …)`: argsz 0, flags 4, index 8, cap_offset 12, size 16, offset 24.
    const FIXED_BYTES: usize = 32;

    pub(super) fn fetch(device: impl AsFd, index: RegionIndex) -> io::Result<Self> {
        let request = Request::DEVICE_GET_REGION_INFO;
        let info = Info::fetch(device, request, Self::FIXED_BYTES, Some(index.0))?;
        Ok(Self::parse(index, &info))
    }

    /// What is said of a region that is not there.
    pub(crate) fn nothing(index: RegionIndex) -> Self {
        Self {
            index,
            size: 0,
            readable: false,
            writable: false,
            msix_mappable: false,
            kind: None,
            mappable: Vec::new(),
            file_offset: 0,
        }
    }

    fn parse(index: RegionIndex, info: &Info) -> Self {
        let flags = info.u32_at(4);
        let size = info.u64_at(16);
        let has = |flag: u32| flags & flag != 0;
        let chain = if has(VFIO_REGION_INFO_FLAG_CAPS) {
            info.u32_at(12)
        } else {
            0
        };
        let mappable = if has(VFIO_REGION_INFO_FLAG_MMAP) {
            Self::mappable(
                info.capability(chain, VFIO_REGION_INFO_CAP_SPARSE_MMAP),
                size,
            )
        } else {
            Vec::new()
        };
        let msix_mappable = info.capability(chain, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE);
        Self {
            index,
            size,
            readable: has(VFIO_REGION_INFO_FLAG_READ),
            writable: has(VFIO_REGION_INFO_FLAG_WRITE),
            msix_mappable: msix_mappable.is_some(),
            kind: info
                .capability(chain, VFIO_REGION_INFO_CAP_TYPE)
                .and_then(RegionKind::parse),
            mappable,
            file_offset: info.u64_at(24),
        }
    }

    /// The listed areas, or all of the region without a list. An area outside of the region is left out: the kernel would refuse it.
    fn mappable(sparse: Option<&[u8]>, size: u64) -> Vec<Area> {
        let areas = match sparse {
            Some(body) => info::pairs(body),
            None => vec![(0, size)],
        };
        areas
            .into_iter()
            .map(|(offset, len)| Area { offset, len })
            .filter(|area| area.len > 0)
            .filter(|area| matches!(area.offset.checked_add(area.len), Some(end) if end <= size))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::info::tests::{cap, listing},
        *,
    };

    fn region(flags: u32, size: u64, caps: &[u8]) -> RegionInfo {
        let mut bytes = vec![];
        for word in [0, flags, 0, 32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(size.to_ne_bytes());
        bytes.extend(0x1000u64.to_ne_bytes());
        bytes.extend(caps);
        RegionInfo::parse(RegionIndex(3), &Info::from_bytes(bytes))
    }

    const MMAP_CAPS: u32 = VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS;

    #[test]
    fn a_region_without_a_list_is_mappable_as_a_whole_or_not_at_all() {
        let whole = Area {
            offset: 0,
            len: 0x4000,
        };
        assert_eq!(
            region(VFIO_REGION_INFO_FLAG_MMAP, 0x4000, &[]).mappable,
            [whole]
        );
        assert_eq!(region(VFIO_REGION_INFO_FLAG_READ, 0x4000, &[]).mappable, []);
    }

    #[test]
    fn listed_areas_are_taken_as_they_are_and_those_outside_left_out() {
        let areas = [
            (0, 0x1000),
            (0x2000, 0x2000),
            (0x3000, 0x2000),
            (u64::MAX, 2),
        ];
        let caps = cap(1, 0, &listing(4, &areas));
        let region = region(MMAP_CAPS, 0x4000, &caps);
        let offsets: Vec<_> = region.mappable.iter().map(|a| (a.offset, a.len)).collect();
        assert_eq!(offsets, areas[..2]);
    }

    #[test]
    fn an_empty_list_maps_nothing() {
        assert_eq!(
            region(MMAP_CAPS, 0x4000, &cap(1, 0, &listing(0, &[]))).mappable,
            []
        );
    }

    #[test]
    fn a_region_that_a_driver_added_says_what_it_is() {
        let body = [0x8000_8086_u32.to_ne_bytes(), 1_u32.to_ne_bytes()].concat();
        let kind = |flags, body: &[u8]| region(flags, 0x4000, &cap(2, 0, body)).kind;
        let (group, number) = (0x8000_8086, 1);
        let flags = VFIO_REGION_INFO_FLAG_CAPS;
        assert_eq!(kind(flags, &body), Some(RegionKind { group, number }));
        assert_eq!(kind(0, &body), None);
        assert_eq!(kind(flags, &body[..7]), None);
    }

    #[test]
    fn a_mappable_msix_page_is_told_by_its_capability() {
        assert!(region(MMAP_CAPS, 0x4000, &cap(3, 0, &[])).msix_mappable);
        assert!(!region(VFIO_REGION_INFO_FLAG_MMAP, 0x4000, &cap(3, 0, &[])).msix_mappable);
    }
}
