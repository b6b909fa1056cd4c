//! The assigned PCI function: a function of the host's on the guest's bus.
//!
//! The guest's accesses to BARs go straight to the hardware where the kernel lets a BAR be mapped; what must be emulated is the
//! configuration space, the pages of the MSI-X table and its pending bits, and nothing else. Both sides are untrusted: registers,
//! capability lists and region sizes are what a device says, and everything else is what a guest does.
//!
//! Lock order: a function's state, then its `interrupts`. Neither is held while another device runs.

mod arming;
mod bars;
mod capabilities;
mod config;
mod failures;
#[cfg(test)]
mod fake;
mod function;
mod interrupts;
mod intx;
#[cfg(test)]
mod model;
mod notice;
mod options;
mod peers;
mod probe;
#[cfg(test)]
pub(crate) mod random;
mod relocation;
mod reset;
mod rom;
mod specific;
#[cfg(test)]
mod tests;
mod trap;
mod vga;

pub use function::{AssignedFunction, FunctionStats, Wiring};
pub use notice::Notice;
pub use options::{MsixTable, Options, Rom};
pub use probe::AssignError;
pub use reset::{ResetStats, reset_devices, reset_opened};
pub use rom::RomFileError;
