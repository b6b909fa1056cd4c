//! The IOMMU as a machine sees it: one address space for the DMA of every device it opens.
//!
//! Behind it is the container with its groups. An iommufd has the same four verbs (open, map, unmap, device), so it goes here, beside
//! the container, and nobody above notices.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use devices::mapping::HostMapping;

use super::{
    container::{Container, ContainerError, IommuInfo, IovaRange},
    device::{Device, DeviceError},
    group::{self, Group, GroupError},
};
use crate::Assignable;

/// The IOMMU cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IommuError {
    /// The kernel offers none.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A group is not ours to use.
    #[error(transparent)]
    Group(#[from] GroupError),
}

/// A DMA mapping was refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot map {} MiB at {iova:#x} for DMA\n  {}", len >> 20, map_advice(source, *len))]
pub struct DmaError {
    /// Where devices were to see it.
    pub iova: u64,
    /// Length in bytes.
    pub len: u64,
    /// ENOMEM: over RLIMIT_MEMLOCK. EINVAL: in a reserved range, or not of whole pages. EEXIST: something is there. ENOSPC: too many
    /// mappings.
    pub source: io::Error,
}

fn map_advice(error: &io::Error, len: u64) -> String {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => format!(
            "that much memory cannot be locked: give the guest less with --memory, or allow it, as root:  ulimit -l {}",
            len.div_ceil(1024)
        ),
        Some(libc::EINVAL) => {
            "see which addresses devices may not use:  cat /sys/kernel/iommu_groups/*/reserved_regions".to_owned()
        }
        Some(libc::ENOSPC) => "allow more mappings, as root:  \
             echo 4294967295 > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
            .to_owned(),
        Some(libc::EFAULT) => "the memory cannot be pinned: give the guest less with --memory".to_owned(),
        _ => "see whether the kernel said why:  dmesg | tail".to_owned(),
    }
}

/// An address space in which devices reach memory.
pub trait DmaTarget: Send + Sync {
    /// Lets devices reach `memory` at `iova`, read-only if it is, and keeps it alive until `unmap`.
    fn map(&self, iova: u64, memory: Arc<dyn HostMapping>) -> Result<(), DmaError>;
    /// Takes away what was mapped at `iova`; nothing, if nothing was.
    fn unmap(&self, iova: u64);
}

/// The IOMMU address space of a machine's assigned devices.
pub struct Iommu {
    // Dropped in this order. Devices hold this, so they are closed by then; closing the container undoes what is mapped;
    // only then the memory goes.
    groups: Mutex<Vec<Group>>,
    container: Container,
    info: IommuInfo,
    mapped: Mutex<BTreeMap<u64, Arc<dyn HostMapping>>>,
}

impl Iommu {
    /// Opens the groups of `functions` (at least one) and puts them in an address space of their own.
    pub fn open(functions: &[Assignable]) -> Result<Arc<Self>, IommuError> {
        let container = Container::open()?;
        let groups = Mutex::default();
        for function in functions {
            join(&mut lock(&groups), &container, function)?;
        }
        container.set_iommu()?;
        let info = container.info()?;
        Ok(Arc::new(Self {
            groups,
            container,
            info,
            mapped: Mutex::default(),
        }))
    }

    /// Addresses that devices cannot use for memory (messages, firmware's own, above what the IOMMU translates), ascending.
    pub fn reserved(&self) -> Vec<IovaRange> {
        IovaRange::gaps(&self.info.usable)
    }

    /// Page sizes that the IOMMU has: bit n for 2^n bytes.
    pub fn page_sizes(&self) -> u64 {
        self.info.page_sizes
    }

    /// How many mappings could be made when it was opened, if the kernel says.
    pub fn mappings_left(&self) -> Option<u32> {
        self.info.mappings_left
    }

    /// The numbers of the groups that this machine holds.
    pub fn groups(&self) -> Vec<u32> {
        lock(&self.groups).iter().map(Group::number).collect()
    }

    /// The files by which KVM learns whose DMA reaches its guest (KVM_DEV_VFIO_FILE).
    pub fn files(&self) -> io::Result<Vec<OwnedFd>> {
        let groups = lock(&self.groups);
        groups.iter().map(Group::file).collect()
    }

    /// Opens a function; its group joins if it is not here yet (hot-plug). Its DMA is stopped, and it is reset if it can be.
    pub fn device(self: &Arc<Self>, function: &Assignable) -> Result<Device, IommuDeviceError> {
        let mut groups = lock(&self.groups);
        let number = join(&mut groups, &self.container, function)?;
        let group = groups.iter().find(|group| group.number() == number);
        let fd = match group {
            Some(group) => group.device(function),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let fd = fd.map_err(|source| DeviceError::Open {
            function: function.clone(),
            source,
        })?;
        Ok(Device::new(fd, function, self.clone())?)
    }
}

/// Puts the group of `function` into the container, once.
fn join(
    groups: &mut Vec<Group>,
    container: &Container,
    function: &Assignable,
) -> Result<u32, GroupError> {
    let number = group::number_of(function)?;
    if !groups.iter().any(|group| group.number() == number) {
        let group = Group::open(number)?;
        group.join(container)?;
        groups.push(group);
    }
    Ok(number)
}

/// A device cannot be had from this IOMMU.
#[derive(Debug, thiserror::Error)]
pub enum IommuDeviceError {
    /// Its group is not ours to use.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// It cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl DmaTarget for Iommu {
    fn map(&self, iova: u64, memory: Arc<dyn HostMapping>) -> Result<(), DmaError> {
        let len = memory.len() as u64;
        let mut mapped = lock(&self.mapped);
        self.container
            .map(iova, memory.address() as u64, len, !memory.is_read_only())
            .map_err(|source| DmaError { iova, len, source })?;
        mapped.insert(iova, memory);
        Ok(())
    }

    fn unmap(&self, iova: u64) {
        let mut mapped = lock(&self.mapped);
        if let Some(memory) = mapped.get(&iova) {
            match self.container.unmap(iova, memory.len() as u64) {
                Ok(()) => drop(mapped.remove(&iova)),
                // Devices may still reach it, so it must not be used for anything else: it stays ours until the end.
                Err(error) => log::error!("DMA mapping at {iova:#x} cannot be undone: {error}"),
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_mapping_says_what_to_do_about_its_errno() {
        let refused = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            let (iova, len) = (0x1_0000_0000, 512 << 20);
            DmaError { iova, len, source }.to_string()
        };
        assert_eq!(
            refused(libc::ENOMEM),
            "cannot map 512 MiB at 0x100000000 for DMA\n  that much memory cannot be locked: \
             give the guest less with --memory, or allow it, as root:  ulimit -l 524288"
        );
        assert!(refused(libc::EINVAL).ends_with("cat /sys/kernel/iommu_groups/*/reserved_regions"));
        assert!(refused(libc::ENOSPC).ends_with("/parameters/dma_entry_limit"));
    }
}
