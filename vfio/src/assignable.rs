//! What can be assigned: a PCI function of the host's, or a mediated device that a driver of the host's makes of one.

use std::{fmt, path::PathBuf};

use devices::pci::Bdf;

/// A device of the host's by the name that sysfs and VFIO have for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Assignable {
    /// A PCI function.
    Function(Bdf),
    /// A mediated device (Documentation/driver-api/vfio-mediated-device.rst of the kernel), by its UUID.
    Mediated(String),
}

impl Assignable {
    /// Its address, if it is a PCI function.
    pub fn function(&self) -> Option<Bdf> {
        match self {
            Self::Function(bdf) => Some(*bdf),
            Self::Mediated(_) => None,
        }
    }

    /// Where sysfs has it.
    pub fn sysfs(&self) -> PathBuf {
        let bus = match self {
            Self::Function(_) => "pci",
            Self::Mediated(_) => "mdev",
        };
        PathBuf::from(format!("/sys/bus/{bus}/devices/{self}"))
    }
}

impl From<Bdf> for Assignable {
    fn from(function: Bdf) -> Self {
        Self::Function(function)
    }
}

impl fmt::Display for Assignable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(bdf) => bdf.fmt(f),
            Self::Mediated(uuid) => f.write_str(uuid),
        }
    }
}
