//! The IOMMU as a machine sees it: one address space for the DMA of every device it opens.
//!
//! Behind it is one of the kernel's two interfaces ([`Interface`]), and nobody above notices which.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use devices::mapping::HostMapping;

use super::{
    GuestLink, Interface,
    cdev::CdevError,
    container::ContainerError,
    device::{Device, DeviceError},
    group::GroupError,
    groups::Groups,
    guest_link::Known,
    iommufd::{Iommufd, IommufdError},
    iova::IovaRange,
};
use crate::{
    Assignable,
    host::limits::{self, Locked},
};

/// The IOMMU, or a device behind it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IommuError {
    /// The kernel offers no container.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A group is not ours to use.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The kernel offers no iommufd.
    #[error(transparent)]
    Iommufd(#[from] IommufdError),
    /// A device's file is not ours to use.
    #[error(transparent)]
    Cdev(#[from] CdevError),
    /// The hypervisor does not take a file of VFIO's.
    #[error(
        "KVM does not take a file of VFIO's\n  it may be an old one, or too few open files allowed:  dmesg | tail; ulimit -n"
    )]
    Link(#[source] io::Error),
    /// A device cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A DMA mapping was refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot map {} MiB at {iova:#x} for DMA\n  {}", len >> 20, self.advice())]
pub struct DmaError {
    /// Through what.
    pub interface: Interface,
    /// Where devices were to see it.
    pub iova: u64,
    /// Length in bytes.
    pub len: u64,
    /// What this process may lock.
    pub locked: Locked,
    /// What of these addresses devices cannot use.
    pub reserved: Option<IovaRange>,
    /// ENOMEM: over RLIMIT_MEMLOCK. EINVAL: in a reserved range, or not of whole pages. EEXIST: something is there. ENOSPC: too many
    /// mappings.
    pub source: io::Error,
}

impl DmaError {
    fn advice(&self) -> String {
        match (self.source.raw_os_error(), self.reserved) {
            (Some(libc::ENOMEM), _) => self.memory_advice(),
            (Some(libc::EINVAL), Some(IovaRange { first, last })) => format!(
                "devices here cannot use {first:#x} to {last:#x}, which is in it; who reserves that:  \
                 cat /sys/kernel/iommu_groups/*/reserved_regions"
            ),
            (Some(libc::EINVAL), None) => {
                "see which addresses devices may not use:  cat /sys/kernel/iommu_groups/*/reserved_regions".into()
            }
            (Some(libc::ENOSPC), _) => "allow more mappings, as root:  \
                 echo 4294967295 > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
                .into(),
            (Some(libc::EFAULT), _) => {
                "the memory cannot be pinned: give the guest less with --memory".into()
            }
            _ => "see whether the kernel said why:  dmesg | tail".into(),
        }
    }

    fn memory_advice(&self) -> String {
        let Locked { now_kib, limit_kib } = self.locked;
        let Some(limit_kib) = limit_kib else {
            return "the host has no memory left for it: give the guest less with --memory".into();
        };
        let need_kib = now_kib.saturating_add(self.len.div_ceil(1024));
        // incr_user_locked_vm() in drivers/iommu/iommufd/pages.c; the container counts by process.
        let whose = match self.interface {
            Interface::Container => "of this process",
            Interface::Iommufd => "of all processes of this user together",
        };
        format!(
            "{need_kib} KiB would be locked, {now_kib} KiB of them already, and the limit {whose} is {limit_kib} KiB: \
             give the guest less with --memory, or allow it:  sudo prlimit --pid $$ --memlock={}",
            need_kib.saturating_mul(1024)
        )
    }
}

/// An address space in which devices reach memory.
pub trait DmaTarget: Send + Sync {
    /// Lets devices reach `memory` at `iova`, read-only if it is, and keeps it alive until `unmap`.
    fn map(&self, iova: u64, memory: Arc<dyn HostMapping>) -> Result<(), DmaError>;
    /// Takes away what was mapped at `iova`; nothing, if nothing was.
    fn unmap(&self, iova: u64);
}

/// One of the kernel's interfaces, with the devices of one machine behind it.
pub(super) trait AddressSpace: Send + Sync {
    /// Which one.
    fn interface(&self) -> Interface;
    /// What every device that is in it by now can reach, ascending.
    fn usable(&self) -> Result<Vec<IovaRange>, IommuError>;
    /// Lets devices reach `len` bytes of this process at `address` through `iova`. The caller keeps that memory mapped.
    fn map(&self, iova: u64, address: u64, len: u64, writable: bool) -> io::Result<()>;
    /// Takes a mapping away again, whole as it was made.
    fn unmap(&self, iova: u64, len: u64) -> io::Result<()>;
    /// Opens a device, or hands it out if it had to be opened before.
    fn device(&self, function: &Assignable) -> Result<OpenDevice, IommuError>;
    /// The groups that are in it, and their files; none where devices are opened without their groups.
    fn groups(&self) -> io::Result<Vec<(u32, OwnedFd)>>;
}

/// A device's file, in an address space.
pub(super) struct OpenDevice {
    // Before `file`: a device is closed, and its DMA stopped, when the last who holds its file lets go.
    pub(super) known: Option<Known>,
    pub(super) file: File,
}

/// The IOMMU address space of a machine's assigned devices.
pub struct Iommu {
    // Dropped in this order. Devices hold this, so they are closed by then; closing the interface undoes what is mapped;
    // only then the memory goes.
    space: Box<dyn AddressSpace>,
    mapped: Mutex<BTreeMap<u64, Arc<dyn HostMapping>>>,
    usable: Vec<IovaRange>,
}

impl Iommu {
    /// Puts `functions` (at least one) into an address space of their own, and tells `link` of each file that this takes.
    pub fn open(
        interface: Interface,
        functions: &[Assignable],
        link: &Arc<dyn GuestLink>,
    ) -> Result<Arc<Self>, IommuError> {
        let space: Box<dyn AddressSpace> = match interface {
            Interface::Container => Box::new(Groups::open(functions, link)?),
            Interface::Iommufd => Box::new(Iommufd::open(functions, link)?),
        };
        let usable = space.usable()?;
        Ok(Arc::new(Self {
            space,
            mapped: Mutex::default(),
            usable,
        }))
    }

    /// Addresses that devices cannot use for memory (messages, firmware's own, above what the IOMMU translates), ascending.
    pub fn reserved(&self) -> Vec<IovaRange> {
        IovaRange::gaps(&self.usable)
    }

    /// The first addresses of these that devices cannot use.
    fn reserved_in(&self, iova: u64, len: u64) -> Option<IovaRange> {
        let last = iova.saturating_add(len.saturating_sub(1));
        let mut gaps = self.reserved().into_iter();
        gaps.find(|gap| gap.first <= last && iova <= gap.last)
    }

    /// Which of the kernel's interfaces it is.
    pub fn interface(&self) -> Interface {
        self.space.interface()
    }

    /// The groups that this machine holds, and the files that show it; none where the kernel knows by itself.
    pub(super) fn groups(&self) -> io::Result<Vec<(u32, OwnedFd)>> {
        self.space.groups()
    }

    /// Opens a function, which may be a new one (hot-plug). Its DMA is stopped, and it is reset if it can be.
    pub fn device(self: &Arc<Self>, function: &Assignable) -> Result<Device, IommuError> {
        let opened = self.space.device(function)?;
        Ok(Device::new(opened, function, self.clone())?)
    }
}

impl DmaTarget for Iommu {
    fn map(&self, iova: u64, memory: Arc<dyn HostMapping>) -> Result<(), DmaError> {
        let len = memory.len() as u64;
        let mut mapped = lock(&self.mapped);
        self.space
            .map(iova, memory.address() as u64, len, !memory.is_read_only())
            .map_err(|source| DmaError {
                interface: self.interface(),
                iova,
                len,
                locked: limits::locked(),
                reserved: self.reserved_in(iova, len),
                source,
            })?;
        mapped.insert(iova, memory);
        Ok(())
    }

    fn unmap(&self, iova: u64) {
        let mut mapped = lock(&self.mapped);
        if let Some(memory) = mapped.get(&iova) {
            match self.space.unmap(iova, memory.len() as u64) {
                Ok(()) => drop(mapped.remove(&iova)),
                // Devices may still reach it, so it must not be used for anything else: it stays ours until the end.
                Err(error) => log::error!("DMA mapping at {iova:#x} cannot be undone: {error}"),
            }
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(interface: Interface, errno: i32, limit_kib: Option<u64>) -> DmaError {
        let now_kib = 2048;
        DmaError {
            interface,
            iova: 0x1_0000_0000,
            len: 512 << 20,
            locked: Locked { now_kib, limit_kib },
            reserved: None,
            source: io::Error::from_raw_os_error(errno),
        }
    }

    #[test]
    fn a_mapping_over_the_limit_says_what_is_needed_and_what_there_is() {
        let limit = Some(65_536);
        let error = refused(Interface::Container, libc::ENOMEM, limit);
        assert_eq!(
            error.to_string(),
            "cannot map 512 MiB at 0x100000000 for DMA\n  526336 KiB would be locked, 2048 KiB of them already, and the \
             limit of this process is 65536 KiB: give the guest less with --memory, or allow it:  \
             sudo prlimit --pid $$ --memlock=538968064"
        );
        let error = refused(Interface::Iommufd, libc::ENOMEM, limit);
        assert!(error.to_string().contains("of all processes of this user"));
        let error = refused(Interface::Container, libc::ENOMEM, None);
        assert!(error.to_string().contains("has no memory left"));
    }

    #[test]
    fn a_refused_mapping_says_what_to_do_about_its_errno() {
        let of = |errno| refused(Interface::Container, errno, None);
        assert!(
            of(libc::EINVAL)
                .to_string()
                .ends_with("cat /sys/kernel/iommu_groups/*/reserved_regions")
        );
        let (first, last) = (0xfee0_0000, 0xfeef_ffff);
        let error = DmaError {
            reserved: Some(IovaRange { first, last }),
            ..of(libc::EINVAL)
        };
        let text = error.to_string();
        assert!(
            text.contains("cannot use 0xfee00000 to 0xfeefffff, which is in it"),
            "{text}"
        );
        let full = of(libc::ENOSPC).to_string();
        assert!(full.ends_with("/parameters/dma_entry_limit"));
    }
}
