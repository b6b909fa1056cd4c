//! The kernel's VFIO interface (`linux/vfio.h`): groups and the type1v2 container, device, regions, interrupts.
//!
//! Raw ioctls with the constants of vfio-bindings. All `unsafe` of this crate is in `ioctl` and `mapping`; what the kernel
//! answers is parsed as bytes, bounds checked.
//!
//! Order, for whoever assembles a machine:
//! 1. [`Iommu::open`]: the groups join a container, which gets its IOMMU type. Now reserved addresses are known.
//! 2. Devices are opened *before* RAM is mapped. Opening makes vfio-pci clear Bus Master and try a reset, so a DMA engine that the
//!    last driver left running is quiet before it could reach the guest.
//! 3. [`DmaTarget::map`] for RAM.
//!
//! And back: a function that is dropped stops its device; it holds the [`Iommu`], so that only then DMA mappings go; the `Iommu`
//! holds the memory, so that only then guest RAM is unmapped.

mod container;
mod device;
mod group;
mod host_function;
mod info;
mod ioctl;
mod iommu;
mod irq;
pub(crate) mod mapping;
mod region;

pub use container::{ContainerError, IovaRange};
pub use device::{Device, DeviceError};
pub use group::GroupError;
pub use host_function::HostFunction;
pub use iommu::{DmaError, DmaTarget, Iommu, IommuDeviceError, IommuError};
pub use irq::{IrqIndex, IrqInfo};
pub use mapping::RegionMapping;
pub use region::{Area, RegionIndex, RegionInfo};
