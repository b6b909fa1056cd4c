//! The host's side of assignment: which PCI functions there are, which IOMMU group each is in, and how one is taken from its
//! driver for a guest and given back.
//!
//! Everything is read from sysfs (`Documentation/ABI/testing/sysfs-bus-pci` of the kernel) and procfs at the moment of the
//! question; nothing is cached, because drivers, interfaces and virtual functions come and go under us. What is changed goes
//! through one small trait, so that tests can stop the machine between any two steps.
//!
//! A device is taken by `driver_override`, never by `new_id`: that one would catch every device with the same ID. What was
//! there before is in the journal before the first change.

mod attributes;
mod binding;
mod changes;
mod danger;
mod device;
mod display;
pub mod facts;
mod faults;
mod groups;
mod holders;
mod iommu;
mod journal;
pub mod limits;
mod line;
mod mac;
mod mediated;
mod netlink;
mod plan;
mod prepared;
#[cfg(any(test, feature = "testing"))]
pub mod recorded;
mod refusals;
mod resolve;
mod restore;
mod session;
pub mod sriov;
mod steps;
mod sysfs;
mod unbinding;
mod variants;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use devices::pci::Bdf;

pub use attributes::serve_attributes;
pub use binding::{BindOptions, Taken};
pub use danger::Danger;
pub use device::{Device, DeviceError, NetInterface, Sriov};
pub use display::HostDisplay;
pub use facts::{Facts, Inventory, Known};
pub use faults::{Access, DmaFault, FaultLog};
pub use groups::{Group, GroupError, GroupNotViable, Member};
pub use holders::Holder;
pub use iommu::{NoIommu, NoIommuCause};
pub use journal::JournalError;
pub use line::InterruptLine;
pub use mac::{Mac, MacParseError};
pub use mediated::MediatedError;
pub use netlink::NetlinkError;
pub use plan::Planned;
pub use refusals::BindingError;
pub use resolve::ResolveError;
pub use restore::{Outcome, Restored};
pub use steps::StepError;
pub use unbinding::Unbound;

/// Where the kernel's file systems are. Tests and recorded machines put them elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// sysfs.
    pub sys: PathBuf,
    /// devtmpfs.
    pub dev: PathBuf,
    /// procfs.
    pub proc: PathBuf,
    /// What the system's packages installed; the kernel's modules are in `modules/` below it.
    pub lib: PathBuf,
    /// What does not outlive the boot; the journal is in `viaduct/` below it.
    pub run: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            dev: "/dev".into(),
            proc: "/proc".into(),
            lib: "/lib".into(),
            run: "/run".into(),
        }
    }
}

/// A host: the machine that devices are taken from.
#[derive(Clone)]
pub struct Host {
    roots: Roots,
    changes: Arc<dyn changes::Changes>,
    links: Arc<dyn netlink::Links>,
    session: Arc<Mutex<session::Session>>,
    /// How long a write that binds or unbinds may take, and how long to wait for another viaduct's lock.
    patience: Duration,
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// This machine. The program calls [`serve_attributes`] before it does anything else.
    pub fn new() -> Self {
        let changes = Arc::new(changes::Running::live());
        Self {
            links: Arc::new(netlink::Running),
            ..Self::with_changes(Roots::default(), changes)
        }
    }

    /// A machine recorded as directories. No module is ever loaded for it.
    pub fn at(roots: Roots) -> Self {
        Self::with_changes(roots, Arc::new(changes::Running::recorded()))
    }

    fn with_changes(roots: Roots, changes: Arc<dyn changes::Changes>) -> Self {
        // Unbinding a busy network card takes seconds; one that takes half a minute is not coming back.
        let patience = Duration::from_secs(30);
        Self {
            roots,
            changes,
            links: Arc::new(netlink::Recorded),
            session: Arc::default(),
            patience,
        }
    }

    /// Every PCI function, in order of address.
    pub fn functions(&self) -> Vec<Bdf> {
        let mut all: Vec<Bdf> = sysfs::names(&self.roots.sys.join("bus/pci/devices"))
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        all.sort_unstable();
        all
    }

    fn pci_dir(&self, device: Bdf) -> PathBuf {
        self.roots
            .sys
            .join("bus/pci/devices")
            .join(device.to_string())
    }

    fn driver_dir(&self, driver: &str) -> PathBuf {
        self.roots.sys.join("bus/pci/drivers").join(driver)
    }

    /// The driver that has the function now.
    pub fn driver_of(&self, device: Bdf) -> Option<String> {
        sysfs::link_name(&self.pci_dir(device).join("driver"))
    }
}

/// The name people type: without the segment where that is 0.
pub fn short(device: Bdf) -> String {
    let long = device.to_string();
    long.strip_prefix("0000:")
        .map_or(long.clone(), String::from)
}

/// Each once, in the order of their first naming.
fn unique(devices: &[Bdf]) -> Vec<Bdf> {
    let mut seen = Vec::new();
    for &device in devices {
        if !seen.contains(&device) {
            seen.push(device);
        }
    }
    seen
}

/// Whether `driver` is one that hands its devices to userspace: vfio-pci, or one of its variants (`mlx5_vfio_pci`).
pub fn is_vfio(driver: &str) -> bool {
    driver.replace('_', "-").ends_with("vfio-pci")
}
