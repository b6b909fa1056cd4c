//! PCI: the root, functions, their configuration space and BARs, MSI-X. PCI Local Bus 3.0, PCI Express Base 6.0.

mod address;
pub mod assign;
pub mod bar;
pub mod capabilities;
pub mod config;
pub mod host_bridge;
pub mod msi;
pub mod msix;
pub mod ports;
pub mod registers;
pub mod root;
pub mod space;

pub use address::{Bdf, BdfParseError, Slot, SlotParseError};

use crate::bus::Action;

/// A function on bus 0.
///
/// The guest chooses every argument: nothing here may panic or fail. Calls can come from several vCPUs at once.
pub trait Function: Send + Sync {
    /// Reads configuration space. `offset + data.len() <= 4096`, `data` is 1, 2 or 4 bytes and does not cross a dword.
    fn config_read(&self, offset: u16, data: &mut [u8]);
    /// Writes configuration space, under the same terms.
    fn config_write(&self, offset: u16, data: &[u8]) -> Action;
    /// The BARs that need an address, for whoever assigns them before the guest starts.
    fn bars(&self) -> Vec<bar::BarSpec>;
    /// Gives BAR `index` its address, as firmware would. Decoding stays as it is.
    fn assign_bar(&self, index: usize, address: u64);
    /// Back to the state at power-on as the guest sees it; off the bus, interrupts torn down, no DMA any more. BAR addresses are lost.
    /// A device of the host's behind the function is reset by whoever has all of them, since one reset can hit several.
    fn reset(&self);
    /// Takes the function off the bus if the device behind it does not answer there any more; whether that was so. Asked when somebody
    /// reached for a mapping and found nothing.
    fn withdraw_if_silent(&self) -> bool {
        false
    }
}
