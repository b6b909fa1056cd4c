//! Why a machine cannot be put together, or cannot go on. Every part brings its own reason.

use std::io;

use arch::{ram as plan, smbios::SmbiosError};
use devices::{
    pci::{assign::AssignError as BarAssignError, root::SlotError},
    virtio::{blk::DiskError, vsock::SocketError},
};
use vfio::{
    assigned,
    kernel::{DmaError, IommuError},
};

use crate::{
    boot::BootError, core_file::CoreFileError, kvm::KvmError, net::NetError,
    platform::PlatformError, processors::ProcessorsError, ram::RamError, vhost::VhostError,
};

/// The machine cannot be put together, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The kernel image, the initrd or the command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The vCPUs.
    #[error(transparent)]
    Processors(#[from] ProcessorsError),
    /// What the guest is told does not fit into its tables.
    #[error(transparent)]
    Smbios(#[from] SmbiosError),
    /// RAM cannot be laid out.
    #[error(transparent)]
    Plan(#[from] plan::RamError),
    /// RAM cannot be had.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The emulated hardware.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// KVM does not take the RAM.
    #[error("KVM does not take guest memory at {guest:#x}\n  give the guest less with --memory")]
    RamSlot {
        /// Where in the guest.
        guest: u64,
        /// What KVM said.
        source: io::Error,
    },
    /// What the main thread waits on.
    #[error("waiting for signals and devices\n  it takes a few open files:  ulimit -n")]
    Events(#[source] io::Error),
    /// The IOMMU.
    #[error(transparent)]
    Iommu(#[from] IommuError),
    /// RAM cannot be mapped for DMA.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// What is asked of a host function cannot be.
    #[error(transparent)]
    Rom(#[from] assigned::RomFileError),
    /// A host function cannot be opened.
    #[error(transparent)]
    Assign(#[from] assigned::AssignError),
    /// A file cannot be a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A network interface cannot be had.
    #[error(transparent)]
    Net(#[from] NetError),
    /// What is left of the guest cannot be kept.
    #[error(transparent)]
    Core(#[from] CoreFileError),
    /// A virtual device cannot be made.
    #[error("making {device}\n  it takes a few open files:  ulimit -n")]
    Virtual {
        /// Which.
        device: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no socket to reach the guest by.
    #[error("--vsock")]
    Socket(#[from] SocketError),
    /// The kernel has none either.
    #[error("--vsock")]
    KernelSockets(#[source] VhostError),
    /// A function cannot be where it was asked for.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The BARs do not fit.
    #[error(transparent)]
    Bars(#[from] BarAssignError),
}
