//! SR-IOV: the virtual functions of a physical one, how many there are, and what only the physical one can set for them.
//!
//! The number is a matter of sysfs (`sriov_numvfs`, Documentation/PCI/pci-iov-howto.rst), the settings one of the physical function's
//! network interface. Cards that are not for networks have the first only.

mod address;
mod errors;
mod facts;
mod number;
mod prepare;
mod settings;
mod wait;

pub(super) use address::ChangedMac;
pub use errors::SriovError;
pub use facts::{PhysicalFunction, VirtualFunction};
pub use number::NumberOptions;

pub use super::netlink::{FunctionSettings, LinkState, Rate, Setting, Vlan};
