//! What answers in a BAR where the guest is not let through: the device, by one access of the same width; and the MSI-X table and
//! pending bits, by their model.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use devices::bus::{Action, BusDevice};

use super::{failures::Failures, interrupts::Interrupts};
use crate::kernel::{HostFunction, RegionInfo};

/// The trapped part of a BAR.
pub(super) struct BarTrap {
    pub(super) host: Arc<dyn HostFunction>,
    pub(super) region: RegionInfo,
    pub(super) interrupts: Arc<Interrupts>,
    /// Where the MSI-X table is, if it is in this BAR; else empty.
    pub(super) table: Range<u64>,
    /// Where the pending bits are, if they are in this BAR; else empty.
    pub(super) pba: Range<u64>,
    pub(super) counters: Arc<Counters>,
}

/// How often a BAR made the guest exit.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) accesses: AtomicU64,
    failures: Failures,
}

/// Whose an access is.
enum Target {
    Device,
    Table(u64),
    Pba(u64),
    /// It begins or ends in the middle of the table.
    Nobody,
}

impl BarTrap {
    fn target(&self, offset: u64, len: usize) -> Target {
        let end = offset.saturating_add(len as u64);
        let inside = |range: &Range<u64>| range.start <= offset && end <= range.end;
        let outside = |range: &Range<u64>| end <= range.start || range.end <= offset;
        if inside(&self.table) {
            Target::Table(offset - self.table.start)
        } else if inside(&self.pba) {
            Target::Pba(offset - self.pba.start)
        } else if outside(&self.table) && outside(&self.pba) {
            Target::Device
        } else {
            Target::Nobody
        }
    }

    fn count(&self) {
        self.counters.accesses.fetch_add(1, Ordering::Relaxed);
    }

    /// Says that an access failed, the less often the more there are.
    fn failed(&self, offset: u64, error: &std::io::Error) {
        if let Some(number) = self.counters.failures.count() {
            let bar = self.region.index.0;
            log::debug!("BAR {bar} + {offset:#x}: failed access number {number}: {error}");
        }
    }
}

impl BusDevice for BarTrap {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.count();
        match self.target(offset, data.len()) {
            Target::Table(at) => self.interrupts.table_read(at, data),
            Target::Pba(at) => self.interrupts.pba_read(at, data),
            Target::Nobody => data.fill(0xff),
            Target::Device => {
                if let Err(error) = self.host.read(&self.region, offset, data) {
                    data.fill(0xff);
                    self.failed(offset, &error);
                }
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        self.count();
        match self.target(offset, data.len()) {
            Target::Table(at) => self.interrupts.table_write(at, data),
            Target::Pba(_) | Target::Nobody => {}
            Target::Device => {
                if let Err(error) = self.host.write(&self.region, offset, data) {
                    self.failed(offset, &error);
                }
            }
        }
        Action::None
    }
}
