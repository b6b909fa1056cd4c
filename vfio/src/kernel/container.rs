//! The container, `/dev/vfio/vfio`, with a type 1 version 2 IOMMU: one address space for the DMA of all groups in it.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IOMMU_INFO_CAPS,
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_TYPE1v2_IOMMU, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap,
};

use super::{
    info::{self, Info},
    ioctl::{self, Request},
    iova::IovaRange,
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
        Some(libc::EACCES | libc::EPERM) => {
            // As systemd's own rules have it: what it maps is only reached by devices of groups, which have owners.
            "let every user open it, which gives nobody a device:  sudo chmod 666 /dev/vfio/vfio"
        }
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

    /// What can be mapped, in ascending order; everything, where the kernel does not say.
    pub(super) fn usable(&self) -> Result<Vec<IovaRange>, ContainerError> {
        let what = "VFIO_IOMMU_GET_INFO";
        Info::fetch(&self.file, Request::IOMMU_GET_INFO, INFO_FIXED_BYTES, None)
            .map(|info| usable(&info))
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

/// `offsetof(struct vfio_iommu_type1_info, …)`: argsz 0, flags 4, iova_pgsizes 8, cap_offset 16.
const INFO_FIXED_BYTES: usize = 24;

fn usable(info: &Info) -> Vec<IovaRange> {
    let chain = match info.u32_at(4) & VFIO_IOMMU_INFO_CAPS {
        0 => 0,
        _ => info.u32_at(16),
    };
    let ranges = info.capability(chain, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
    ranges.map_or_else(
        || vec![IovaRange::ALL],
        |body| IovaRange::in_order(info::pairs(body)),
    )
}

#[cfg(test)]
mod tests {
    use super::{
        super::info::tests::{cap, listing},
        *,
    };

    fn told(flags: u32, caps: &[u8]) -> Vec<IovaRange> {
        let mut bytes = vec![0; 4];
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(0x4020_1000u64.to_ne_bytes());
        bytes.extend(24u64.to_ne_bytes());
        bytes.extend(caps);
        usable(&Info::from_bytes(bytes))
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
        assert!(open(libc::EACCES).ends_with("sudo chmod 666 /dev/vfio/vfio"));
    }

    #[test]
    fn ranges_are_read_when_the_kernel_says_there_are_some() {
        let mut caps = cap(3, 32, &7u32.to_ne_bytes());
        caps.resize(32 - 24, 0);
        caps[4..8].copy_from_slice(&32u32.to_ne_bytes());
        caps.extend(cap(1, 0, &listing(1, &[(0, 99)])));
        let (first, last) = (0, 99);
        assert_eq!(
            told(VFIO_IOMMU_INFO_CAPS, &caps),
            [IovaRange { first, last }]
        );
        assert_eq!(told(0, &caps), [IovaRange::ALL]);
    }
}
