//! What the assigned function needs of the host's, so that tests can stand in for hardware.

use std::{io, os::fd::BorrowedFd, sync::Arc};

use devices::mapping::HostMapping;

use super::{
    irq::{IrqIndex, IrqInfo},
    region::{Area, RegionIndex, RegionInfo},
    reset::Affected,
};

/// A PCI function of the host's, opened for a guest.
///
/// It is no more trusted than the guest: sizes, registers and capability chains are whatever it says. Any call may fail at any time,
/// because the device may be pulled out.
pub trait HostFunction: Send + Sync {
    /// One more than the highest index of a region.
    fn region_count(&self) -> u32;
    /// What the kernel says of a region; of size 0 where there is nothing.
    fn region(&self, index: RegionIndex) -> io::Result<RegionInfo>;
    /// Reads from a region, in one access of `data`'s width where that is 1, 2, 4 or 8 bytes and aligned.
    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()>;
    /// Writes to a region, under the same terms.
    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Maps a mappable area of a region.
    fn map(&self, region: &RegionInfo, area: Area) -> io::Result<Arc<dyn HostMapping>>;
    /// What the kernel says of a kind of interrupt.
    fn irq(&self, index: IrqIndex) -> io::Result<IrqInfo>;
    /// Signals `eventfds` for the vectors from `start` on, and enables that kind of interrupt if it was not. `None` is for a
    /// vector that shall not signal; a lone one enables the kind of interrupt with no vector in use.
    fn arm(
        &self,
        index: IrqIndex,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> io::Result<()>;
    /// Unmasks the pin, which must be armed, whenever `eventfd` is signalled: the kernel masks it each time it fires, since it is
    /// level-triggered. Until it is disarmed.
    fn unmask_on(&self, eventfd: BorrowedFd<'_>) -> io::Result<()>;
    /// Signals the eventfd of an armed vector, as if the device had.
    fn signal(&self, index: IrqIndex, vector: u32) -> io::Result<()>;
    /// Disables that kind of interrupt, which must be enabled.
    fn disarm(&self, index: IrqIndex) -> io::Result<()>;
    /// Whether the function can be reset without another one being.
    fn can_reset(&self) -> bool;
    /// How it is reset alone, in the kernel's words, the best way first (`flr`, `pm`, `bus`, …). A hint: a way can turn out not to
    /// be one, and `can_reset` knows. Empty where the kernel does not say (before Linux 5.15).
    fn reset_methods(&self) -> Vec<String>;
    /// Resets it, alone. Its configuration space is afterwards as it was before.
    fn reset(&self) -> io::Result<()>;
    /// The functions that a reset of its bus would reset, itself among them; none where there is no such reset.
    fn hot_reset_scope(&self) -> io::Result<Vec<Affected>>;
    /// Resets its bus, and with it all those functions, which must be ours.
    fn hot_reset(&self) -> io::Result<()>;
}
