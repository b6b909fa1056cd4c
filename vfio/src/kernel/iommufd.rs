//! iommufd, `/dev/iommu`: an address space that devices are attached to, each by a file of its own
//! (Documentation/userspace-api/iommufd.rst, `linux/iommufd.h`).
//!
//! One address space for all of a machine's devices. Closing the file undoes everything that is in it, once no device is bound to
//! it any more: nothing is destroyed one by one.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
};

use iommufd_bindings::iommufd::{
    iommu_ioas_alloc, iommu_ioas_map, iommu_ioas_unmap, iommu_iova_range,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE,
};

use super::{
    GuestLink, Interface,
    cdev::Cdev,
    guest_link::Known,
    ioctl::{self, Request},
    iommu::{AddressSpace, IommuError, OpenDevice, lock},
    iova::IovaRange,
};
use crate::Assignable;

/// The kernel offers no iommufd that Viaduct can use.
#[derive(Debug, thiserror::Error)]
pub enum IommufdError {
    /// No file, or no permission.
    #[error("cannot open /dev/iommu\n  {}", open_advice(.0))]
    Open(#[source] io::Error),
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
            "load what makes it, as root:  modprobe iommufd\n  \
             a kernel that was configured without IOMMUFD has the other interface:  viaduct run --iommu-backend container …"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "run as root, or give it to this user:  sudo chown $USER /dev/iommu"
        }
        _ => "see whether the kernel said why:  dmesg | tail",
    }
}

/// More ranges than any IOMMU has holes.
const MOST_RANGES: u32 = 4096;

/// An address space of iommufd's, with the devices that are attached and not yet asked for.
pub(super) struct Iommufd {
    link: Arc<dyn GuestLink>,
    // Closed before the address space is.
    attached: Mutex<Vec<(Assignable, OpenDevice)>>,
    file: File,
    ioas: u32,
}

impl Iommufd {
    /// Opens iommufd and attaches `functions` to an address space.
    ///
    /// This is what opens a device to the kernel: it is reset, and its DMA stopped, in here and not when it is asked for. Only a
    /// device that is attached says which addresses it cannot reach, and that is needed before there is RAM.
    pub(super) fn open(
        functions: &[Assignable],
        link: &Arc<dyn GuestLink>,
    ) -> Result<Self, IommuError> {
        let file = File::options().read(true).write(true).open("/dev/iommu");
        let file = file.map_err(IommufdError::Open)?;
        let mut alloc = iommu_ioas_alloc::default();
        let what = "IOMMU_IOAS_ALLOC";
        ioctl::with_argument(&file, Request::IOAS_ALLOC, &mut alloc)
            .map_err(|source| IommufdError::Failed { what, source })?;
        let space = Self {
            link: link.clone(),
            attached: Mutex::default(),
            file,
            ioas: alloc.out_ioas_id,
        };
        for function in functions {
            let device = space.attach(function)?;
            lock(&space.attached).push((function.clone(), device));
        }
        Ok(space)
    }

    /// Opens a device and attaches it.
    fn attach(&self, function: &Assignable) -> Result<OpenDevice, IommuError> {
        let cdev = Cdev::open(function)?;
        // Before it is bound: that is when VFIO hands the guest on to the device's driver.
        let known = Known::new(&self.link, cdev.as_fd()).map_err(IommuError::Link)?;
        cdev.bind(self.file.as_fd())?;
        cdev.attach(self.ioas)?;
        Ok(OpenDevice {
            known: Some(known),
            file: cdev.into_file(),
        })
    }
}

impl AddressSpace for Iommufd {
    fn interface(&self) -> Interface {
        Interface::Iommufd
    }

    fn usable(&self) -> Result<Vec<IovaRange>, IommuError> {
        let mut ranges = vec![iommu_iova_range::default(); 16];
        loop {
            let (count, result) = ioctl::iova_ranges(&self.file, self.ioas, &mut ranges);
            match result {
                Err(error)
                    if error.raw_os_error() == Some(libc::EMSGSIZE) && count <= MOST_RANGES =>
                {
                    ranges.resize(count as usize, iommu_iova_range::default());
                }
                Err(source) => {
                    let what = "IOMMU_IOAS_IOVA_RANGES";
                    return Err(IommufdError::Failed { what, source }.into());
                }
                Ok(()) => {
                    ranges.truncate(count as usize);
                    let pairs = ranges.iter().map(|range| (range.start, range.last));
                    return Ok(IovaRange::in_order(pairs));
                }
            }
        }
    }

    fn map(&self, iova: u64, address: u64, len: u64, writable: bool) -> io::Result<()> {
        let mut map = iommu_ioas_map {
            flags: FIXED_IOVA | READABLE | if writable { WRITEABLE } else { 0 },
            ioas_id: self.ioas,
            user_va: address,
            length: len,
            iova,
            ..Default::default()
        };
        ioctl::with_argument(&self.file, Request::IOAS_MAP, &mut map).map(drop)
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        let mut unmap = iommu_ioas_unmap {
            ioas_id: self.ioas,
            iova,
            length: len,
            ..Default::default()
        };
        ioctl::with_argument(&self.file, Request::IOAS_UNMAP, &mut unmap).map(drop)
    }

    fn device(&self, function: &Assignable) -> Result<OpenDevice, IommuError> {
        let mut attached = lock(&self.attached);
        let waiting = attached.iter().position(|(name, _)| name == function);
        match waiting {
            Some(at) => Ok(attached.swap_remove(at).1),
            None => self.attach(function),
        }
    }

    fn groups(&self) -> io::Result<Vec<(u32, OwnedFd)>> {
        // VFIO_DEVICE_PCI_HOT_RESET takes none from a device that was opened by its own file: what counts is that all devices of
        // the reset are bound to the same iommufd.
        Ok(Vec::new())
    }
}

impl AsFd for Iommufd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_iommufd_is_told_from_a_user_without_the_right() {
        let open = |errno| IommufdError::Open(io::Error::from_raw_os_error(errno)).to_string();
        assert!(open(libc::ENOENT).contains("--iommu-backend container"));
        assert!(open(libc::EACCES).ends_with("sudo chown $USER /dev/iommu"));
    }
}
