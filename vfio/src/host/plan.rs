//! What a command would do, as commands that someone could type (`--dry-run`). Nothing is changed, no module is loaded, no lock taken.

use devices::pci::Bdf;

use super::{BindOptions, BindingError, Host, is_vfio, steps::VFIO_PCI, unique};

/// What would become of a device.
#[derive(Debug)]
pub struct Planned {
    /// Which device.
    pub device: Bdf,
    /// The commands, none if it is where it should be; or why it would be left where it is.
    pub commands: Result<Vec<String>, BindingError>,
}

impl Host {
    /// The steps of [`Host::take`].
    pub fn plan(&self, devices: &[Bdf]) -> Vec<String> {
        self.plan_steps(devices, None)
    }

    /// The steps of [`Host::bind`], or why there are none.
    pub fn plan_bind(
        &self,
        devices: &[Bdf],
        options: &BindOptions,
    ) -> Result<Vec<String>, BindingError> {
        self.check_bind(devices, options)?;
        Ok(self.plan_steps(devices, options.driver.as_deref()))
    }

    fn plan_steps(&self, devices: &[Bdf], driver: Option<&str>) -> Vec<String> {
        let (mut modules, mut steps) = (Vec::new(), Vec::new());
        for device in unique(devices) {
            if self.stays_on_vfio(device, driver) {
                continue;
            }
            let driver = driver.map_or_else(|| self.expected_vfio_driver(device), str::to_owned);
            let load = format!("modprobe {driver}");
            if !self.driver_dir(&driver).exists() && !modules.contains(&load) {
                modules.push(load);
            }
            let to = self.steps_to(device, &driver);
            steps.extend(to.iter().map(ToString::to_string));
        }
        modules.extend(steps);
        modules
    }

    /// Whether it is on a driver that hands it to userspace, and on `driver` if that one was asked for.
    pub(super) fn stays_on_vfio(&self, device: Bdf, driver: Option<&str>) -> bool {
        let now = self.driver_of(device);
        now.is_some_and(|now| is_vfio(&now) && driver.is_none_or(|driver| driver == now))
    }

    /// The steps of [`Host::unbind`].
    pub fn plan_unbind(
        &self,
        devices: &[Bdf],
        driver: Option<&str>,
    ) -> Result<Vec<Planned>, BindingError> {
        let past = self.journal_entries()?;
        let plan = |device| {
            let facts = self.device(device)?;
            let before = past.get(&device);
            self.check_unbind(&facts, driver, before)?;
            let steps = match (driver, before) {
                (None, Some(before)) => self.steps_back(device, before)?,
                _ => self.steps_onwards(&facts, driver)?,
            };
            Ok(steps.iter().map(ToString::to_string).collect())
        };
        let devices = unique(devices).into_iter();
        let plans = devices.map(|device| Planned {
            device,
            commands: plan(device),
        });
        Ok(plans.collect())
    }

    /// The steps of [`Host::restore`].
    pub fn plan_restore(&self) -> Result<Vec<Planned>, BindingError> {
        let plan = |device, before| {
            let facts = self.device(device)?;
            self.refuse_if_held(&facts, Some(before))?;
            let steps = self.steps_back(device, before)?;
            Ok(steps.iter().map(ToString::to_string).collect())
        };
        let past = self.journal_entries()?;
        let plans = past.iter().map(|(&device, before)| Planned {
            device,
            commands: plan(device, before),
        });
        Ok(plans.collect())
    }

    /// Whether vfio-pci is there; [`Host::load_vfio`] can call it.
    pub(super) fn has_vfio(&self) -> bool {
        self.driver_dir(VFIO_PCI).exists()
    }
}
