//! The kernel's VFIO interface (`linux/vfio.h`, `linux/iommufd.h`): groups and the type1v2 container, or iommufd and the devices'
//! own files; device, regions, interrupts.
//!
//! Raw ioctls with the constants of vfio-bindings and iommufd-bindings. All `unsafe` of this crate is in `ioctl` and `mapping`; what the kernel
//! answers is parsed as bytes, bounds checked.
//!
//! Order, for whoever assembles a machine:
//! 1. [`Iommu::open`]: the groups join a container, which gets its IOMMU type; or the devices are attached to an iommufd. KVM learns
//!    of their files by its [`GuestLink`], each at the moment that it has to. Now reserved addresses are known.
//! 2. Devices are opened *before* RAM is mapped. Opening makes vfio-pci clear Bus Master and try a reset, so a DMA engine that the
//!    last driver left running is quiet before it could reach the guest.
//! 3. [`DmaTarget::map`] for RAM.
//!
//! And back: a function that is dropped stops its device and has KVM let go of its file; it holds the [`Iommu`], so that only then DMA mappings go; the `Iommu`
//! holds the memory, so that only then guest RAM is unmapped.

mod cdev;
mod container;
mod culprit;
mod device;
mod group;
mod groups;
mod guest_link;
mod host_function;
mod info;
mod interface;
mod ioctl;
mod iommu;
mod iommufd;
mod iova;
mod irq;
pub(crate) mod mapping;
mod permission;
mod region;
mod reset;
mod unmasker;

pub use cdev::CdevError;
pub use container::ContainerError;
pub use device::{Device, DeviceError};
pub use group::GroupError;
pub use guest_link::GuestLink;
pub use host_function::HostFunction;
pub use interface::Interface;
pub use iommu::{DmaError, DmaTarget, Iommu, IommuError};
pub use iommufd::IommufdError;
pub use iova::IovaRange;
pub use irq::{IrqIndex, IrqInfo};
pub use mapping::RegionMapping;
pub use region::{Area, RegionIndex, RegionInfo, RegionKind};
pub use reset::Affected;
