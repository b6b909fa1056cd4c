//! Which devices are not taken, and what people are told: all of it before anything is changed.

use devices::pci::Bdf;

use super::{
    BindOptions, Danger, Device, DeviceError, GroupError, Holder, Host, JournalError, StepError,
    device::Surroundings, facts::ConfigSpace, is_vfio, journal::Entry, short, sriov::SriovError,
    steps::VFIO_PCI,
};

/// Devices cannot be bound. What had been changed is back as it was, unless the text says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum BindingError {
    /// There is no such device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Its group does not allow it.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// It is a bridge.
    #[error(
        "{0}: is a bridge, which a guest cannot have: the devices behind it need it\n  see which devices there are:  viaduct list"
    )]
    Bridge(Bdf),
    /// The host stands on it.
    #[error("{device}: not taken from this host: {}\n  if that is what you want:  viaduct run --force …, or viaduct bind --force {}", list(dangers), short(*device))]
    Danger {
        /// Which device.
        device: Bdf,
        /// Why not; at least one reason.
        dangers: Vec<Danger>,
    },
    /// Another process has it.
    #[error(
        "{device}: in use by {}\n  shut that guest down, or end the process:  kill{}",
        list(holders),
        pids(holders)
    )]
    InUse {
        /// Which device.
        device: Bdf,
        /// Who; at least one.
        holders: Vec<Holder>,
    },
    /// The driver is not one of VFIO's.
    #[error(
        "{driver} does not give devices to userspace\n  to give devices to it:  viaduct unbind DEV --driver {driver}"
    )]
    NotVfio {
        /// Which driver.
        driver: String,
    },
    /// The caller leaves it on its driver, which is not one of VFIO's.
    #[error(
        "{device}: is {}, and managed=off does not rebind it\n  bind it first:  viaduct bind {}",
        bound(driver.as_deref()),
        short(*device)
    )]
    NotBound {
        /// Which device.
        device: Bdf,
        /// Its driver, if it has one.
        driver: Option<String>,
    },
    /// The kernel cannot give devices to userspace.
    #[error(
        "{device}: there is no vfio-pci driver in this kernel: {said}\n  install the modules of the running kernel, then, as root:  modprobe vfio-pci"
    )]
    NoVfio {
        /// Which device wants it.
        device: Bdf,
        /// What the module loader said.
        said: String,
    },
    /// The previous driver cannot be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A virtual function cannot be made ready.
    #[error(transparent)]
    Virtual(#[from] Box<SriovError>),
    /// A step failed.
    #[error(transparent)]
    Step(#[from] StepError),
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    items.join(" and ")
}

fn bound(driver: Option<&str>) -> String {
    driver.map_or_else(
        || "bound to no driver".to_owned(),
        |driver| format!("bound to {driver}"),
    )
}

fn pids(holders: &[Holder]) -> String {
    let pids = holders.iter().map(|holder| format!(" {}", holder.pid));
    pids.collect()
}

impl Host {
    /// What [`Host::take`] checks before it changes anything.
    pub fn check_take(&self, devices: &[Bdf], options: &BindOptions) -> Result<(), BindingError> {
        let around = self.surroundings();
        for &device in devices {
            let group = self.check_one(device, &around, options)?;
            self.viability_of(self.group(group), device, devices)?;
        }
        Ok(())
    }

    /// What [`Host::bind`] checks before it changes anything. Not that each group is taken whole: one device of it may be bound
    /// after the other.
    pub fn check_bind(&self, devices: &[Bdf], options: &BindOptions) -> Result<(), BindingError> {
        if let Some(driver) = options.driver.as_deref().filter(|driver| !is_vfio(driver)) {
            let driver = driver.to_owned();
            return Err(BindingError::NotVfio { driver });
        }
        let around = self.surroundings();
        devices
            .iter()
            .try_for_each(|&device| self.check_one(device, &around, options).map(drop))
    }

    /// Checks devices that stay on their driver: each is on one of VFIO's, and no process has its group open.
    pub fn check_free(&self, devices: &[Bdf]) -> Result<(), BindingError> {
        for &device in devices {
            let group = self.group_of(device)?.number;
            self.refuse_if_held_by(device, self.holders(group))?;
            let driver = self.driver_of(device);
            if !driver.as_deref().is_some_and(is_vfio) {
                return Err(BindingError::NotBound { device, driver });
            }
        }
        Ok(())
    }

    /// Returns the number of its group.
    fn check_one(
        &self,
        device: Bdf,
        around: &Surroundings,
        options: &BindOptions,
    ) -> Result<u32, BindingError> {
        let config = ConfigSpace::header(&self.pci_dir(device));
        let facts = self.device_among(device, &config, around)?;
        if facts.is_bridge() {
            return Err(BindingError::Bridge(device));
        }
        let group = self.group_number(&facts)?;
        self.refuse_if_held_by(device, self.holders(group))?;
        let on_vfio = facts.driver.as_deref().is_some_and(is_vfio);
        if !on_vfio && !options.force {
            self.refuse_if_dangerous(&facts)?;
        }
        Ok(group)
    }

    pub(super) fn refuse_if_dangerous(&self, device: &Device) -> Result<(), BindingError> {
        let dangers = self.dangers(device);
        if dangers.is_empty() {
            return Ok(());
        }
        let device = device.bdf;
        Err(BindingError::Danger { device, dangers })
    }

    /// Has the kernel load vfio-pci, if one of `devices` needs it and it is not there.
    pub fn load_vfio(&self, devices: &[Bdf]) -> Result<(), BindingError> {
        let elsewhere = |device: &&Bdf| !self.driver_of(**device).as_deref().is_some_and(is_vfio);
        let Some(&device) = devices.iter().find(elsewhere).filter(|_| !self.has_vfio()) else {
            return Ok(());
        };
        // The container's backend is a module of its own, which only some module loaders bring along. vfio-pci is what counts.
        let _may_be_built_in = self.changes.load_module("vfio_iommu_type1");
        let said = match self.changes.load_module(VFIO_PCI) {
            Ok(()) if self.has_vfio() => return Ok(()),
            Ok(()) => "the module is loaded but has not registered".into(),
            Err(error) => error.to_string(),
        };
        Err(BindingError::NoVfio { device, said })
    }

    /// Whether a living viaduct owns it, or anyone has its group open.
    pub(super) fn refuse_if_held(
        &self,
        device: &Device,
        before: Option<&Entry>,
    ) -> Result<(), BindingError> {
        self.refuse_if_owned(device.bdf, before)?;
        let on_vfio = device.driver.as_deref().is_some_and(is_vfio);
        let group = device.iommu_group.filter(|_| on_vfio);
        let holders = group.map(|group| self.holders(group)).unwrap_or_default();
        self.refuse_if_held_by(device.bdf, holders)
    }

    fn refuse_if_held_by(&self, device: Bdf, holders: Vec<Holder>) -> Result<(), BindingError> {
        // We may have it open ourselves: the files of a guest that has just ended close a moment late.
        let mut holders = holders;
        holders.retain(|holder| holder.pid != std::process::id());
        if holders.is_empty() {
            return Ok(());
        }
        Err(BindingError::InUse { device, holders })
    }

    pub(super) fn refuse_if_owned(
        &self,
        device: Bdf,
        before: Option<&Entry>,
    ) -> Result<(), BindingError> {
        match before.and_then(|entry| entry.owner.as_ref()) {
            Some(owner) if self.is_alive(owner) => {
                let holders = vec![self.holder(owner.pid)];
                Err(BindingError::InUse { device, holders })
            }
            _ => Ok(()),
        }
    }
}
