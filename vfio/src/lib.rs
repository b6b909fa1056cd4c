//! Real hardware: the host's side of it, VFIO, and the assigned PCI function.
#![deny(unsafe_code)]

mod assignable;
pub mod assigned;
pub mod host;
pub mod kernel;

pub use assignable::Assignable;
