//! Real hardware: the host's side of it, VFIO, and the assigned PCI function.
#![deny(unsafe_code)]

pub mod assigned;
pub mod host;
pub mod kernel;
