//! The ioctls themselves, and which shapes of argument they take.
//!
//! Every VFIO ioctl that takes a structure takes its length in the first field, `argsz`, and the kernel touches no byte past it
//! (`linux/vfio.h`, "The IOCTL interface is designed for extensibility"). The functions here set that field themselves, from the
//! length of the memory they were given: that is what makes them safe to call.
#![expect(unsafe_code, reason = "an ioctl is a foreign call")]

use std::{
    ffi::CStr,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        raw::{c_int, c_ulong},
    },
};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_TYPE, vfio_group_status, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
    vfio_irq_info,
};

/// The number of an ioctl: `_IO(VFIO_TYPE, VFIO_BASE + n)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request(u32);

impl Request {
    pub(super) const GET_API_VERSION: Self = Self(0);
    pub(super) const CHECK_EXTENSION: Self = Self(1);
    pub(super) const SET_IOMMU: Self = Self(2);
    pub(super) const GROUP_GET_STATUS: Self = Self(3);
    pub(super) const DEVICE_GET_INFO: Self = Self(7);
    pub(super) const DEVICE_GET_REGION_INFO: Self = Self(8);
    pub(super) const DEVICE_GET_IRQ_INFO: Self = Self(9);
    pub(super) const DEVICE_SET_IRQS: Self = Self(10);
    pub(super) const DEVICE_RESET: Self = Self(11);
    pub(super) const IOMMU_GET_INFO: Self = Self(12);
    pub(super) const IOMMU_MAP_DMA: Self = Self(13);
    pub(super) const IOMMU_UNMAP_DMA: Self = Self(14);
    // These two take no structure: only the functions below may call them.
    const GROUP_SET_CONTAINER: Self = Self(4);
    const GROUP_GET_DEVICE_FD: Self = Self(6);

    fn number(self) -> c_ulong {
        c_ulong::from(u32::from(VFIO_TYPE) << 8 | (VFIO_BASE + self.0))
    }
}

/// A structure of the kernel's that starts with `argsz`.
///
/// # Safety
/// The type is `repr(C)` plain data, valid for any bits, and `set_argsz` stores no more than the type's own size.
pub(super) unsafe trait Argument {
    /// Stores the structure's size in its first field.
    fn set_argsz(&mut self);
}

macro_rules! argument {
    ($($name:ty),+) => { $(
        // SAFETY: a bindgen structure of integers whose first field is argsz; the size stored is its own.
        unsafe impl Argument for $name {
            fn set_argsz(&mut self) {
                self.argsz = const { argsz_of::<$name>() };
            }
        }
    )+ };
}
argument!(
    vfio_group_status,
    vfio_irq_info,
    vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap
);

/// The size of a structure as `argsz` holds it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "asserted in the line before"
)]
const fn argsz_of<T>() -> u32 {
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
    argument.set_argsz();
    let pointer: *mut T = argument;
    // SAFETY: the kernel touches argsz bytes at `pointer`, which are the structure, borrowed mutably, valid for any bits.
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

fn checked(answer: c_int) -> io::Result<u32> {
    u32::try_from(answer).map_err(|_| io::Error::last_os_error())
}
