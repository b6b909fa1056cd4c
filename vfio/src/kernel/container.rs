//! The container, `/dev/vfio/vfio`, with a type 1 version 2 IOMMU: one address space for the DMA of all groups in it.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IOMMU_INFO_CAPS,
    VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
    VFIO_TYPE1v2_IOMMU, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
};

use super::{
    info::{self, Info},
    ioctl::{self, Request},
};

/// The kernel offers no container that Viaduct can use.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No file, or no permission: without the modules vfio and vfio_iommu_type1 there is none.
    #[error("cannot open /dev/vfio/vfio\n  {}", open_advice(.0))]
    Open(#[source] io::Error),
    /// The interface is not the one this was written for.
    #[error(
        "VFIO API version {0} is not {VFIO_API_VERSION}\n  this kernel needs another version of viaduct"
    )]
    ApiVersion(u32),
    /// No type1v2 IOMMU driver: the module vfio_iommu_type1 is not there, or this is no-IOMMU mode.
    #[error("the kernel offers no type1v2 IOMMU\n  load it, as root:  modprobe vfio_iommu_type1")]
    NoType1,
    /// VFIO_SET_IOMMU: EPERM where the host has no interrupt remapping, so that a device could forge interrupts.
    #[error("cannot set the IOMMU type\n  {}", set_iommu_advice(.0))]
    SetIommu(#[source] io::Error),
    /// Another call failed.
    #[error("{what} failed\n  see whether the kernel said why:  dmesg | tail")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn open_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) => {
            "load what makes it, as root:  modprobe vfio_iommu_type1"
        }
        Some(libc::EACCES | libc::EPERM) => "run as root:  sudo viaduct …",
        _ => "see whether the kernel said why:  dmesg | tail",
    }
}

fn set_iommu_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        // vfio_iommu_type1_attach_group(); Intel's driver, for devices that the firmware uses (RMRR), says the same.
        Some(libc::EPERM) => {
            "most likely this host does not remap interrupts, so a device could forge those of others:  dmesg | tail\n  \
             turn it on:  VT-d or AMD-Vi in the firmware's set-up, and no intremap=off on the kernel's command line\n  \
             or trust the guest:  echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
        }
        _ => "see whether the kernel said why:  dmesg | tail",
    }
}

/// I/O addresses that can be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IovaRange {
    /// The first.
    pub first: u64,
    /// The last, which is in the range.
    pub last: u64,
}

/// What the kernel says of the IOMMU (`struct vfio_iommu_type1_info`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IommuInfo {
    /// What can be mapped, in ascending order; everything, where the kernel does not say.
    pub(super) usable: Vec<IovaRange>,
    /// Bit n: pages of 2^n bytes.
    pub(super) page_sizes: u64,
    /// How many more mappings can be made.
    pub(super) mappings_left: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Container {
    file: File,
}

impl AsFd for Container {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Container {
    pub(super) fn open() -> Result<Self, ContainerError> {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/vfio/vfio");
        let file = file.map_err(ContainerError::Open)?;
        let call = |what, request, value| {
            ioctl::with_value(&file, request, value)
                .map_err(|source| ContainerError::Failed { what, source })
        };
        let version = call("VFIO_GET_API_VERSION", Request::GET_API_VERSION, 0)?;
        if version != VFIO_API_VERSION {
            return Err(ContainerError::ApiVersion(version));
        }
        match call(
            "VFIO_CHECK_EXTENSION",
            Request::CHECK_EXTENSION,
            VFIO_TYPE1v2_IOMMU,
        )? {
            0 => Err(ContainerError::NoType1),
            _ => Ok(Self { file }),
        }
    }

    /// Gives the container its IOMMU. Possible once a group is in it; only then it can map and be asked.
    pub(super) fn set_iommu(&self) -> Result<(), ContainerError> {
        ioctl::with_value(&self.file, Request::SET_IOMMU, VFIO_TYPE1v2_IOMMU)
            .map(drop)
            .map_err(ContainerError::SetIommu)
    }

    pub(super) fn info(&self) -> Result<IommuInfo, ContainerError> {
        let what = "VFIO_IOMMU_GET_INFO";
        Info::fetch(
            &self.file,
            Request::IOMMU_GET_INFO,
            IommuInfo::FIXED_BYTES,
            None,
        )
        .map(|info| IommuInfo::parse(&info))
        .map_err(|source| ContainerError::Failed { what, source })
    }

    /// Lets devices reach `len` bytes of this process at `address` through `iova`. The caller keeps that memory mapped.
    pub(super) fn map(&self, iova: u64, address: u64, len: u64, writable: bool) -> io::Result<()> {
        let write = if writable { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
        let mut map = vfio_iommu_type1_dma_map {
            flags: VFIO_DMA_MAP_FLAG_READ | write,
            vaddr: address,
            iova,
            size: len,
            ..Default::default()
        };
        ioctl::with_argument(&self.file, Request::IOMMU_MAP_DMA, &mut map).map(drop)
    }

    /// Takes a mapping away again, whole as it was made.
    pub(super) fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        let mut unmap = vfio_iommu_type1_dma_unmap {
            iova,
            size: len,
            ..Default::default()
        };
        ioctl::with_argument(&self.file, Request::IOMMU_UNMAP_DMA, &mut unmap).map(drop)
    }
}

impl IommuInfo {
    /// `offsetof(struct vfio_iommu_type1_info, …)`: argsz 0, flags 4, iova_pgsizes 8, cap_offset 16.
    const FIXED_BYTES: usize = 24;

    fn parse(info: &Info) -> Self {
        let flags = info.u32_at(4);
        let chain = match flags & VFIO_IOMMU_INFO_CAPS {
            0 => 0,
            _ => info.u32_at(16),
        };
        let ranges = info.capability(chain, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
        let left = info.capability(chain, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);
        Self {
            usable: ranges.map_or_else(|| vec![IovaRange::ALL], usable),
            // Without the flag the kernel did not fill the field; 4 KiB pages always work on x86.
            page_sizes: match flags & VFIO_IOMMU_INFO_PGSIZES {
                0 => 4096,
                _ => info.u64_at(8),
            },
            mappings_left: left.and_then(|body| info::read_u32(body, 0)),
        }
    }
}

/// The ranges of the capability, in order, without those that are none.
fn usable(body: &[u8]) -> Vec<IovaRange> {
    let pairs = info::pairs(body).into_iter();
    let mut ranges: Vec<_> = pairs
        .filter(|(first, last)| first <= last)
        .map(|(first, last)| IovaRange { first, last })
        .collect();
    ranges.sort_by_key(|range| range.first);
    ranges
}

impl IovaRange {
    const ALL: Self = Self {
        first: 0,
        last: u64::MAX,
    };

    /// What is between `usable` ranges (in ascending order), and before and after them.
    pub(super) fn gaps(usable: &[Self]) -> Vec<Self> {
        let mut gaps = Vec::new();
        let mut next = Some(0);
        for range in usable {
            let first = match next {
                Some(next) => next,
                None => break,
            };
            if let Some(last) = range.first.checked_sub(1).filter(|&last| first <= last) {
                gaps.push(Self { first, last });
            }
            next = range.last.checked_add(1).map(|after| after.max(first));
        }
        gaps.extend(next.map(|first| Self {
            first,
            last: u64::MAX,
        }));
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::info::tests::{cap, listing},
        *,
    };

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange { first, last }
    }

    fn info(flags: u32, caps: &[u8]) -> IommuInfo {
        let mut bytes = vec![0; 4];
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(0x4020_1000u64.to_ne_bytes());
        bytes.extend(24u64.to_ne_bytes());
        bytes.extend(caps);
        IommuInfo::parse(&Info::from_bytes(bytes))
    }

    #[test]
    fn a_refusal_says_what_to_do_about_its_errno_and_leaves_the_errno_to_the_source() {
        let refused =
            |errno| ContainerError::SetIommu(io::Error::from_raw_os_error(errno)).to_string();
        assert!(refused(libc::EPERM).contains("\n  turn it on:  VT-d or AMD-Vi in the firmware"));
        assert!(
            refused(libc::EINVAL).ends_with("\n  see whether the kernel said why:  dmesg | tail")
        );
        let open = |errno| ContainerError::Open(io::Error::from_raw_os_error(errno)).to_string();
        assert_eq!(
            open(libc::ENODEV),
            "cannot open /dev/vfio/vfio\n  load what makes it, as root:  modprobe vfio_iommu_type1"
        );
        assert!(open(libc::EACCES).ends_with("\n  run as root:  sudo viaduct …"));
    }

    #[test]
    fn the_holes_of_an_intel_and_an_amd_host_are_reserved() {
        let usable = [range(0, 0xfedf_ffff), range(0xfef0_0000, 0xfc_ffff_ffff)];
        assert_eq!(
            IovaRange::gaps(&usable),
            [
                range(0xfee0_0000, 0xfeef_ffff),
                range(0xfd_0000_0000, u64::MAX)
            ]
        );
        assert_eq!(IovaRange::gaps(&[IovaRange::ALL]), []);
        assert_eq!(IovaRange::gaps(&[]), [IovaRange::ALL]);
        assert_eq!(
            IovaRange::gaps(&[range(5, 9), range(7, 8)])[1],
            range(10, u64::MAX)
        );
    }

    #[test]
    fn capabilities_are_read_when_the_kernel_says_there_are_some() {
        let mut caps = cap(1, 24 + 24, &listing(1, &[(0, 99)]));
        // header 8, count and reserved 8, one pair 16: the next capability is at 24 + 32.
        caps[4..8].copy_from_slice(&56u32.to_ne_bytes());
        caps.extend(cap(3, 0, &7u32.to_ne_bytes()));
        let read = info(VFIO_IOMMU_INFO_CAPS | VFIO_IOMMU_INFO_PGSIZES, &caps);
        assert_eq!(read.usable, [range(0, 99)]);
        assert_eq!(read.mappings_left, Some(7));
        assert_eq!(read.page_sizes, 0x4020_1000);
        let old = info(0, &caps);
        assert_eq!(
            (old.usable, old.mappings_left),
            (vec![IovaRange::ALL], None)
        );
        assert_eq!(old.page_sizes, 4096);
    }
}
