//! Interrupts of a device (`struct vfio_irq_info`, `struct vfio_irq_set`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_ERR_IRQ_INDEX,
    VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_PCI_REQ_IRQ_INDEX, vfio_irq_info,
};

use super::ioctl::{self, Request};

/// Which kind of interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IrqIndex {
    /// The pin.
    Intx,
    /// Message-signalled.
    Msi,
    /// Message-signalled, with a table.
    Msix,
    /// The device failed (AER).
    Err,
    /// The host wants the device back.
    Req,
}

impl IrqIndex {
    fn number(self) -> u32 {
        match self {
            Self::Intx => VFIO_PCI_INTX_IRQ_INDEX,
            Self::Msi => VFIO_PCI_MSI_IRQ_INDEX,
            Self::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
            Self::Err => VFIO_PCI_ERR_IRQ_INDEX,
            Self::Req => VFIO_PCI_REQ_IRQ_INDEX,
        }
    }
}

/// What the kernel says of a kind of interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IrqInfo {
    /// How many vectors the device has.
    pub count: u32,
    /// Vectors can be added while it is enabled (VFIO_IRQ_INFO_NORESIZE clear).
    pub can_grow: bool,
}

/// What to do with a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IrqAction {
    Unmask,
    Trigger,
}

impl IrqAction {
    fn flag(self) -> u32 {
        match self {
            Self::Unmask => VFIO_IRQ_SET_ACTION_UNMASK,
            Self::Trigger => VFIO_IRQ_SET_ACTION_TRIGGER,
        }
    }
}

pub(super) fn fetch(device: impl AsFd, index: IrqIndex) -> io::Result<IrqInfo> {
    let mut info = vfio_irq_info {
        index: index.number(),
        ..Default::default()
    };
    ioctl::with_argument(device, Request::DEVICE_GET_IRQ_INFO, &mut info)?;
    Ok(IrqInfo {
        count: info.count,
        can_grow: info.flags & VFIO_IRQ_INFO_NORESIZE == 0,
    })
}

/// Binds `fds` to `action` of the vectors from `start` on; `None` takes a vector's eventfd away, or enables none.
pub(super) fn set_eventfds(
    device: impl AsFd,
    index: IrqIndex,
    action: IrqAction,
    start: u32,
    fds: &[Option<BorrowedFd<'_>>],
) -> io::Result<()> {
    let count = u32::try_from(fds.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | action.flag();
    let mut set = header(flags, index, start, count);
    for fd in fds {
        let number = fd.map_or(-1, |fd| fd.as_raw_fd());
        set.extend(number.to_ne_bytes());
    }
    set_irqs(device, &mut set)
}

/// Does `action` now to the `count` vectors from `start` on. Triggering none of them disables the whole index.
pub(super) fn act(
    device: impl AsFd,
    index: IrqIndex,
    action: IrqAction,
    start: u32,
    count: u32,
) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_NONE | action.flag();
    set_irqs(device, &mut header(flags, index, start, count))
}

/// `struct vfio_irq_set` without its data.
fn header(flags: u32, index: IrqIndex, start: u32, count: u32) -> Vec<u8> {
    [0, flags, index.number(), start, count]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

fn set_irqs(device: impl AsFd, set: &mut [u8]) -> io::Result<()> {
    match ioctl::with_bytes(device, Request::DEVICE_SET_IRQS, set)? {
        0 => Ok(()),
        // Not a success: vfio-pci hands through what pci_alloc_irq_vectors() could have given, and nothing is enabled.
        possible => Err(io::Error::other(format!(
            "the host has only {possible} interrupt vectors left for it"
        ))),
    }
}
