//! The one BAR of a virtio device: where each structure is in it, and who answers there (virtio 1.2 §4.1.4).

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    device::Device,
    registers::{CAP_COMMON, CAP_DEVICE, CAP_ISR, CAP_NOTIFY, common},
};
use crate::{
    bus::{Action, BusDevice},
    pci::{
        bar::{BarKind, BarSpec},
        msix::MsixLocation,
    },
};

/// The BAR's register.
pub(super) const BAR: usize = 0;
/// Between one queue's doorbell and the next's, in bytes.
pub(super) const NOTIFY_STRIDE: u64 = 4;

/// Each structure has a page to itself, so that what a hypervisor or a driver maps of one is nothing of another.
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = PAGE;
const CONFIG: u64 = 2 * PAGE;
const NOTIFY: u64 = 3 * PAGE;
const TABLE: u64 = 4 * PAGE;
const PENDING: u64 = 5 * PAGE;
const LEN: u64 = 8 * PAGE;

/// What the BAR is.
pub(super) const SPEC: BarSpec = BarSpec {
    index: BAR,
    kind: BarKind::Memory32 {
        prefetchable: false,
    },
    size: LEN,
};

/// Where the MSI-X table and its pending bits are.
pub(super) fn msix(vectors: u16) -> MsixLocation {
    MsixLocation {
        table_bar: BAR,
        table_offset: TABLE,
        pba_bar: BAR,
        pba_offset: PENDING,
        vectors,
    }
}

/// The structures that capabilities name: type, and place in the BAR.
pub(super) fn structures(device: &Device) -> [(u8, Range<u64>); 4] {
    let queues = device.kind.queues.len() as u64;
    let config = device.kind.config.len() as u64;
    [
        (CAP_COMMON, COMMON..COMMON + common::LEN as u64),
        (CAP_NOTIFY, NOTIFY..NOTIFY + queues * NOTIFY_STRIDE),
        (CAP_ISR, ISR..ISR + 1),
        (CAP_DEVICE, CONFIG..CONFIG + config),
    ]
}

/// Where the doorbell of `queue` is in the BAR.
pub(super) fn doorbell(queue: usize) -> u64 {
    NOTIFY + queue as u64 * NOTIFY_STRIDE
}

/// The device behind its BAR.
pub(super) struct Window(pub(super) Arc<Mutex<Device>>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let within = usize::try_from(offset % PAGE).unwrap_or(usize::MAX);
        data.fill(0);
        match offset - offset % PAGE {
            COMMON => device.common_read(within, data),
            ISR if within == 0 => {
                if let Some(first) = data.first_mut() {
                    *first = device.interrupts.take_status();
                }
            }
            CONFIG => device.kind.config.read(within, data),
            TABLE => device.msix.table_read(offset - TABLE, data),
            PENDING => device.msix.pba_read(offset - PENDING, data, |vector| {
                device.interrupts.is_latched(vector)
            }),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match offset - offset % PAGE {
            COMMON => {
                let within = usize::try_from(offset % PAGE).unwrap_or(usize::MAX);
                device.common_write(within, data);
            }
            // Where the kernel has the doorbell nobody comes by here.
            NOTIFY => {
                let queue = usize::try_from((offset - NOTIFY) / NOTIFY_STRIDE);
                if let Some(bell) = queue.ok().and_then(|queue| device.bells.get(queue)) {
                    let _ = bell.write(1);
                }
            }
            TABLE => {
                let changes = device.msix.table_write(offset - TABLE, data);
                device.interrupts.route(&changes);
            }
            _ => {}
        }
        Action::None
    }
}
