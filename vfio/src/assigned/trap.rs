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
use crate::{
    Assignable,
    kernel::{HostFunction, RegionInfo},
};

/// So many accesses are more than drivers make when they start: the registers are on the data path.
const HOT: u64 = 10_000;

/// The trapped part of a BAR.
pub(super) struct BarTrap {
    pub(super) function: Assignable,
    pub(super) host: Arc<dyn HostFunction>,
    pub(super) region: RegionInfo,
    pub(super) interrupts: Arc<Interrupts>,
    /// Where the MSI-X table is, if it is in this BAR; else empty.
    pub(super) table: Range<u64>,
    /// Where the pending bits are, if they are in this BAR; else empty.
    pub(super) pba: Range<u64>,
    /// Pages that the guest would have, but for the table and the pending bits in them.
    pub(super) withheld: Vec<Range<u64>>,
    pub(super) counters: Arc<Counters>,
}

/// How often a BAR made the guest exit.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) accesses: AtomicU64,
    /// Of them, those to registers that share a page with the MSI-X table or the pending bits.
    pub(super) beside_msix: AtomicU64,
    failures: Failures,
}

/// Whose an access is.
enum Target {
    Device,
    Table(u64),
    Pba(u64),
    /// It begins or ends in the middle of the table, or where the guest's BAR is larger than the device's.
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
        } else if outside(&self.table) && outside(&self.pba) && end <= self.region.size {
            self.count_beside_msix(offset);
            Target::Device
        } else {
            Target::Nobody
        }
    }

    fn count(&self) {
        self.counters.accesses.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a register that is slow for what shares its page, and says once that it need not be.
    fn count_beside_msix(&self, offset: u64) {
        if !self.withheld.iter().any(|page| page.contains(&offset)) {
            return;
        }
        let before = self.counters.beside_msix.fetch_add(1, Ordering::Relaxed);
        if before + 1 == HOT {
            let (function, bar) = (&self.function, self.region.index.0);
            log::info!(
                "{function}: {HOT} accesses to registers beside the MSI-X table in BAR {bar} made the guest exit; \
                 they need not:  --vfio {function},msix=relocate"
            );
        }
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
