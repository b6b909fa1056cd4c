//! What can be known of a PCI function without touching it: where its registers are and which of them a guest reaches directly, how
//! it interrupts, its ROM, power and link.
//!
//! Everything comes from sysfs, and what that does not tell this user is [`Known::Unknown`], never a guess. Nothing is written,
//! and nothing of the device is read but the first 256 bytes of configuration space, where the kernel allows it.

mod bars;
mod config;
mod interrupts;
mod inventory;
mod link;
mod power;
mod resource;

use devices::pci::Bdf;

pub use bars::{Bar, Mapping, Rom, Trapped};
pub use config::ConfigAccess;
pub(super) use config::ConfigSpace;
pub use interrupts::{Interrupts, Msix, Pin};
pub use inventory::Inventory;
pub use link::Link;
pub use power::Power;
pub(super) use resource::resources;

use super::{Device, DeviceError, Host, device::Surroundings};

/// A fact, or that it is kept from this user or was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known<T> {
    /// The fact.
    Known(T),
    /// The kernel shows it to root only, or the device does not answer.
    Unknown,
}

impl<T> Known<T> {
    /// The fact made into another.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Known<U> {
        match self {
            Self::Known(fact) => Known::Known(f(fact)),
            Self::Unknown => Known::Unknown,
        }
    }

    /// By reference.
    pub fn as_ref(&self) -> Known<&T> {
        match self {
            Self::Known(fact) => Known::Known(fact),
            Self::Unknown => Known::Unknown,
        }
    }

    /// The fact, if it is known.
    pub fn known(self) -> Option<T> {
        match self {
            Self::Known(fact) => Some(fact),
            Self::Unknown => None,
        }
    }
}

/// A function, as it was when asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Who it is, and who has it.
    pub device: Device,
    /// Its base address registers, those that it uses.
    pub bars: Vec<Bar>,
    /// Its expansion ROM.
    pub rom: Option<Rom>,
    /// How it interrupts.
    pub interrupts: Interrupts,
    /// What state of power it is in.
    pub power: Power,
    /// Its PCI Express link.
    pub link: Option<Link>,
    /// How much of its configuration space could be read: without all of it some of the above is unknown.
    pub config: ConfigAccess,
}

impl Host {
    /// All that there is to know about a function.
    pub fn facts(&self, bdf: Bdf) -> Result<Facts, DeviceError> {
        self.facts_among(bdf, &self.surroundings())
    }

    fn facts_among(&self, bdf: Bdf, around: &Surroundings) -> Result<Facts, DeviceError> {
        let dir = self.pci_dir(bdf);
        // Before its configuration space: the kernel wakes a sleeping function to read that.
        let power = Power::read(&dir);
        let config = ConfigSpace::conventional(&dir);
        let device = self.device_among(bdf, &config, around)?;
        let resources = resources(&dir);
        let interrupts = Interrupts::of(&config);
        Ok(Facts {
            bars: self.bars(&device, &resources, interrupts.msix.as_ref()),
            rom: Rom::among(&resources),
            link: Link::read(&dir),
            config: config.access(),
            interrupts,
            power,
            device,
        })
    }
}
