//! The ioctls themselves, and which shapes of argument they take.
//!
//! Every ioctl of VFIO and of iommufd that takes a structure takes its length in the first field, `argsz` or `size`, and the kernel
//! touches no byte past it (`linux/vfio.h`, "The IOCTL interface is designed for extensibility"; `linux/iommufd.h`, "General ioctl
//! format"). The functions here set that field themselves, from the length of the memory they were given: that is what makes them
//! safe to call.
#![expect(unsafe_code, reason = "an ioctl is a foreign call")]

use std::{
    ffi::CStr,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        raw::{c_int, c_ulong},
    },
};

use iommufd_bindings::iommufd::{
    IOMMUFD_CMD_IOAS_ALLOC, IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_CMD_IOAS_MAP,
    IOMMUFD_CMD_IOAS_UNMAP, IOMMUFD_TYPE, iommu_ioas_alloc, iommu_ioas_iova_ranges, iommu_ioas_map,
    iommu_ioas_unmap, iommu_iova_range,
};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_TYPE, vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd,
    vfio_group_status, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_irq_info,
};

/// The number of an ioctl: `_IO(type, number)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    kind: u8,
    number: u32,
}

impl Request {
    pub(super) const GET_API_VERSION: Self = Self::vfio(0);
    pub(super) const CHECK_EXTENSION: Self = Self::vfio(1);
    pub(super) const SET_IOMMU: Self = Self::vfio(2);
    pub(super) const GROUP_GET_STATUS: Self = Self::vfio(3);
    pub(super) const DEVICE_GET_INFO: Self = Self::vfio(7);
    pub(super) const DEVICE_GET_REGION_INFO: Self = Self::vfio(8);
    pub(super) const DEVICE_GET_IRQ_INFO: Self = Self::vfio(9);
    pub(super) const DEVICE_SET_IRQS: Self = Self::vfio(10);
    pub(super) const DEVICE_RESET: Self = Self::vfio(11);
    pub(super) const IOMMU_GET_INFO: Self = Self::vfio(12);
    pub(super) const IOMMU_MAP_DMA: Self = Self::vfio(13);
    pub(super) const IOMMU_UNMAP_DMA: Self = Self::vfio(14);
    pub(super) const DEVICE_BIND_IOMMUFD: Self = Self::vfio(18);
    pub(super) const DEVICE_ATTACH_IOMMUFD_PT: Self = Self::vfio(19);
    pub(super) const IOAS_ALLOC: Self = Self::iommufd(IOMMUFD_CMD_IOAS_ALLOC);
    pub(super) const IOAS_MAP: Self = Self::iommufd(IOMMUFD_CMD_IOAS_MAP);
    pub(super) const IOAS_UNMAP: Self = Self::iommufd(IOMMUFD_CMD_IOAS_UNMAP);
    // The number of IOMMU_GET_INFO; what it is sent to tells them apart.
    pub(super) const DEVICE_GET_PCI_HOT_RESET_INFO: Self = Self::vfio(12);
    // These take no structure, one that says where to write, or one whose length is not in argsz: only the functions below may call them.
    const DEVICE_PCI_HOT_RESET: Self = Self::vfio(13);
    const IOAS_IOVA_RANGES: Self = Self::iommufd(IOMMUFD_CMD_IOAS_IOVA_RANGES);
    const GROUP_SET_CONTAINER: Self = Self::vfio(4);
    const GROUP_GET_DEVICE_FD: Self = Self::vfio(6);

    const fn vfio(number: u32) -> Self {
        let number = VFIO_BASE + number;
        Self {
            kind: VFIO_TYPE,
            number,
        }
    }

    const fn iommufd(number: u32) -> Self {
        Self {
            kind: IOMMUFD_TYPE,
            number,
        }
    }

    fn number(self) -> c_ulong {
        c_ulong::from(u32::from(self.kind) << 8 | self.number)
    }
}

/// A structure of the kernel's that starts with its size.
///
/// # Safety
/// The type is `repr(C)` plain data, valid for any bits, `set_size` stores no more than the type's own size, and the kernel writes
/// nowhere else than into the structure.
pub(super) unsafe trait Argument {
    /// Stores the structure's size in its first field.
    fn set_size(&mut self);
}

macro_rules! argument {
    ($field:ident of $($name:ty),+) => { $(
        // SAFETY: a bindgen structure of integers whose first field is its size; what is stored is its own.
        unsafe impl Argument for $name {
            fn set_size(&mut self) {
                self.$field = const { size_of_argument::<$name>() };
            }
        }
    )+ };
}
argument!(argsz of
    vfio_group_status,
    vfio_irq_info,
    vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap,
    vfio_device_bind_iommufd,
    vfio_device_attach_iommufd_pt
);
argument!(size of iommu_ioas_alloc, iommu_ioas_map, iommu_ioas_unmap);

/// The size of a structure as its first field holds it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "asserted in the line before"
)]
const fn size_of_argument<T>() -> u32 {
    assert!(size_of::<T>() <= 4096);
    size_of::<T>() as u32
}

/// An ioctl whose argument is a number, or unused.
pub(super) fn with_value(fd: impl AsFd, request: Request, value: u32) -> io::Result<u32> {
    // SAFETY: the argument is a value; for the requests that take a pointer, a small number is no mapped address: EFAULT.
    let answer = unsafe {
        libc::ioctl(
            fd.as_fd().as_raw_fd(),
            request.number(),
            c_ulong::from(value),
        )
    };
    checked(answer)
}

/// An ioctl whose argument is a structure of fixed size.
pub(super) fn with_argument<T: Argument>(
    fd: impl AsFd,
    request: Request,
    argument: &mut T,
) -> io::Result<u32> {
    argument.set_size();
    let pointer: *mut T = argument;
    // SAFETY: the kernel touches as many bytes at `pointer` as the first field says, which are the structure, borrowed mutably,
    // valid for any bits.
    let answer = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request.number(), pointer) };
    checked(answer)
}

/// An ioctl whose argument is of variable size: `bytes` starts with `argsz`, which is set here.
pub(super) fn with_bytes(fd: impl AsFd, request: Request, bytes: &mut [u8]) -> io::Result<u32> {
    let argsz = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let field = bytes.get_mut(..4).ok_or(io::ErrorKind::InvalidInput)?;
    field.copy_from_slice(&argsz.to_ne_bytes());
    let pointer = bytes.as_mut_ptr();
    // SAFETY: the kernel touches argsz bytes at `pointer`, which are `bytes`, borrowed mutably.
    let answer = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request.number(), pointer) };
    checked(answer)
}

/// VFIO_GROUP_SET_CONTAINER.
pub(super) fn set_container(group: impl AsFd, container: BorrowedFd<'_>) -> io::Result<()> {
    let container: c_int = container.as_raw_fd();
    let number = Request::GROUP_SET_CONTAINER.number();
    // SAFETY: the kernel reads one int at the pointer, which is `container`.
    let answer = unsafe { libc::ioctl(group.as_fd().as_raw_fd(), number, &raw const container) };
    checked(answer).map(drop)
}

/// VFIO_GROUP_GET_DEVICE_FD.
pub(super) fn get_device_fd(group: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let number = Request::GROUP_GET_DEVICE_FD.number();
    // SAFETY: the kernel reads a string that ends with NUL at the pointer, which is `name`.
    let fd = unsafe { libc::ioctl(group.as_fd().as_raw_fd(), number, name.as_ptr()) };
    checked(fd)?;
    // SAFETY: the call succeeded, so `fd` is a new file descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// IOMMU_IOAS_IOVA_RANGES: fills `ranges` with what of the address space `ioas` can be mapped. How many there are, which may be more
/// than were asked for: then it is an error (EMSGSIZE) as well.
pub(super) fn iova_ranges(
    iommufd: impl AsFd,
    ioas: u32,
    ranges: &mut [iommu_iova_range],
) -> (u32, io::Result<()>) {
    let pointer = ranges.as_mut_ptr();
    let mut argument = iommu_ioas_iova_ranges {
        size: const { size_of_argument::<iommu_ioas_iova_ranges>() },
        ioas_id: ioas,
        num_iovas: u32::try_from(ranges.len()).unwrap_or(u32::MAX),
        allowed_iovas: pointer.expose_provenance() as u64,
        ..Default::default()
    };
    let number = Request::IOAS_IOVA_RANGES.number();
    let fd = iommufd.as_fd().as_raw_fd();
    // SAFETY: the kernel touches `argument`, and writes at most num_iovas ranges at allowed_iovas, which are `ranges`, borrowed
    // mutably, plain data.
    let answer = unsafe { libc::ioctl(fd, number, &raw mut argument) };
    (argument.num_iovas, checked(answer).map(drop))
}

/// VFIO_DEVICE_PCI_HOT_RESET.
pub(super) fn pci_hot_reset(device: impl AsFd, groups: &[BorrowedFd<'_>]) -> io::Result<()> {
    let count = u32::try_from(groups.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // struct vfio_pci_hot_reset: argsz, flags, count, and as many descriptors.
    let argsz = count.checked_mul(4).and_then(|len| len.checked_add(12));
    let argsz = argsz.ok_or(io::ErrorKind::InvalidInput)?;
    let fds = groups.iter().map(|fd| fd.as_raw_fd().to_ne_bytes());
    let words = [argsz, 0, count].map(u32::to_ne_bytes).into_iter();
    let bytes: Vec<u8> = words.chain(fds).flatten().collect();
    let number = Request::DEVICE_PCI_HOT_RESET.number();
    // SAFETY: the kernel reads a header of 12 bytes and `count` descriptors at the pointer, which are in `bytes`; it writes nothing.
    let answer = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), number, bytes.as_ptr()) };
    checked(answer).map(drop)
}

fn checked(answer: c_int) -> io::Result<u32> {
    u32::try_from(answer).map_err(|_| io::Error::last_os_error())
}
