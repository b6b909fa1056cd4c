//! Taking devices for a guest and giving them back; `viaduct bind` and `unbind`.
//!
//! Order: everything that can be checked is checked before anything is changed; the journal is locked; each device's past is on
//! disk before its first step, and forgotten after its last.

use devices::pci::Bdf;

use super::{
    BindingError, Device, Host, StepError, is_vfio,
    journal::{Entry, Journal, Owner},
    steps::{Step, VFIO_PCI},
};

/// How to take devices.
#[derive(Debug, Clone, Default)]
pub struct BindOptions {
    /// Take also what the host stands on ([`Danger`](super::Danger)).
    pub force: bool,
    /// What the guest is called, for those who find its devices in use.
    pub guest: Option<String>,
}

/// Devices that are this process's to give to a guest, until they are given back.
///
/// Dropped, it gives them back as well as it can. Every VFIO file of theirs must be closed before: vfio-pci waits for that, and
/// while it waits this process cannot end, whatever kills it.
#[must_use = "dropped, the devices go back to their drivers"]
pub struct Taken {
    host: Host,
    displaced: Vec<(Bdf, Entry)>,
}

impl Taken {
    /// The devices that will go back; not those that were on vfio-pci before.
    pub fn displaced(&self) -> Vec<Bdf> {
        self.displaced.iter().map(|(device, _)| *device).collect()
    }

    /// Gives every device back to the driver it had. All are tried; the first error is returned, the others are logged.
    pub fn give_back(mut self) -> Result<(), BindingError> {
        self.give_all_back()
    }

    fn give_all_back(&mut self) -> Result<(), BindingError> {
        if self.displaced.is_empty() {
            return Ok(());
        }
        let displaced = std::mem::take(&mut self.displaced);
        let mut journal = Journal::lock(&self.host)?;
        self.host.put_all_back(&mut journal, &displaced)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Err(error) = self.give_all_back() {
            log::error!("{error}\n  what is left to be put back:  viaduct restore");
        }
    }
}

impl Host {
    /// Takes devices for a guest of this process: each whole group or none of it. What is on vfio-pci already stays there, and
    /// is not given back to anyone.
    pub fn take(&self, devices: &[Bdf], options: &BindOptions) -> Result<Taken, BindingError> {
        let devices = unique(devices);
        self.check_take(&devices, options)?;
        self.load_vfio(&devices)?;
        let owner = self.this_process(options.guest.clone());
        let displaced = self.displace_all(&devices, Some(&owner))?;
        Ok(Taken {
            host: self.clone(),
            displaced,
        })
    }

    /// Binds devices to vfio-pci until they are unbound or restored.
    pub fn bind(&self, devices: &[Bdf], options: &BindOptions) -> Result<(), BindingError> {
        let devices = unique(devices);
        for &device in &devices {
            self.check_one(device, options)?;
        }
        self.load_vfio(&devices)?;
        self.displace_all(&devices, None).map(drop)
    }

    /// The steps of [`Host::take`] and [`Host::bind`], as commands that someone could type.
    pub fn plan(&self, devices: &[Bdf]) -> Vec<String> {
        let steps = unique(devices)
            .into_iter()
            .flat_map(|d| self.steps_to_vfio(d));
        let mut commands: Vec<String> = steps.map(|step| step.to_string()).collect();
        if !commands.is_empty() && !self.has_vfio() {
            commands.insert(0, format!("modprobe {VFIO_PCI}"));
        }
        commands
    }

    /// Gives devices back to the driver they had before we bound them, or to `driver`, or, where neither is known, to whichever
    /// driver wants them.
    pub fn unbind(&self, devices: &[Bdf], driver: Option<&str>) -> Result<(), BindingError> {
        let mut journal = Journal::lock(self)?;
        unique(devices).into_iter().try_for_each(|device| {
            let facts = self.device(device)?;
            self.refuse_if_held(&facts, &journal)?;
            match (driver, journal.get(device).cloned()) {
                (Some(driver), before) => self.move_to(&mut journal, &facts, driver, before),
                (None, Some(before)) => self.put_back(&mut journal, device, &before),
                (None, None) => Ok(self.release(device)?),
            }
        })
    }

    /// From vfio-pci to whichever driver wants it: there is no record of where it was.
    fn release(&self, device: Bdf) -> Result<(), StepError> {
        let now = self.driver_of(device);
        if now.as_deref().is_some_and(|driver| !is_vfio(driver)) {
            return Ok(());
        }
        let mut steps = vec![Step::Override(device, None)];
        steps.extend(now.map(|driver| Step::Unbind(device, driver)));
        steps.push(Step::Probe(device));
        self.perform(&steps)
    }

    fn move_to(
        &self,
        journal: &mut Journal<'_>,
        device: &Device,
        driver: &str,
        before: Option<Entry>,
    ) -> Result<(), BindingError> {
        let bdf = device.bdf;
        if device.driver.as_deref() == Some(driver) {
            return Ok(journal.forget(bdf)?);
        }
        if device.driver.as_deref().is_some_and(|now| !is_vfio(now)) {
            self.refuse_if_dangerous(device)?;
        }
        let before = match before {
            Some(before) => before,
            None => Entry {
                driver: device.driver.clone(),
                driver_override: self.driver_override(bdf)?,
                owner: None,
            },
        };
        journal.record(bdf, before)?;
        let mut steps = vec![Step::Override(bdf, Some(driver.to_owned()))];
        steps.extend(device.driver.clone().map(|now| Step::Unbind(bdf, now)));
        steps.push(Step::Bind(bdf, driver.to_owned()));
        // The reservation was for the match only: `driver` keeps the device without it.
        steps.push(Step::Override(bdf, None));
        self.perform(&steps)?;
        self.expect_driver(bdf, driver)?;
        Ok(journal.forget(bdf)?)
    }

    /// All of them, or none. Returns what was displaced.
    fn displace_all(
        &self,
        devices: &[Bdf],
        owner: Option<&Owner>,
    ) -> Result<Vec<(Bdf, Entry)>, BindingError> {
        if devices.is_empty() {
            // A guest without devices of ours needs no right to bind any.
            return Ok(Vec::new());
        }
        let mut journal = Journal::lock(self)?;
        for &device in devices {
            self.refuse_if_owned(device, &journal)?;
        }
        let mut displaced = Vec::new();
        for &device in devices {
            match self.displace(&mut journal, device, owner) {
                Ok(entry) => displaced.extend(entry.map(|entry| (device, entry))),
                Err(error) => {
                    self.roll_back(&mut journal, device, &displaced, &error);
                    return Err(error);
                }
            }
        }
        Ok(displaced)
    }

    /// What to write down of the device before it is moved; nothing if it stays on vfio-pci when we are done.
    fn past_of(
        &self,
        device: Bdf,
        journal: &Journal<'_>,
        owner: Option<&Owner>,
    ) -> Result<Option<Entry>, StepError> {
        let driver = self.driver_of(device);
        let on_vfio = driver.as_deref().is_some_and(is_vfio);
        let owner = owner.cloned();
        let entry = match journal.get(device) {
            None if on_vfio => return Ok(None),
            // Bound for good by `viaduct bind`: it stays bound.
            Some(before) if on_vfio && before.owner.is_none() => return Ok(None),
            None => Entry {
                driver_override: self.driver_override(device)?,
                driver,
                owner,
            },
            // Left by someone who died. Where it goes back to is what they wrote down, unless somebody has given it a driver
            // since, or they had not got as far as taking it from one.
            Some(before) => Entry {
                driver: driver.filter(|_| !on_vfio).or(before.driver.clone()),
                driver_override: before.driver_override.clone(),
                owner,
            },
        };
        Ok(Some(entry))
    }

    /// To vfio-pci, with its past on disk. Nothing is returned, nor written, of what was there and stays there.
    fn displace(
        &self,
        journal: &mut Journal<'_>,
        device: Bdf,
        owner: Option<&Owner>,
    ) -> Result<Option<Entry>, BindingError> {
        let Some(entry) = self.past_of(device, journal, owner)? else {
            return Ok(None);
        };
        journal.record(device, entry.clone())?;
        let steps = self.steps_to_vfio(device);
        if !steps.is_empty() {
            self.perform(&steps)?;
            self.expect_driver(device, VFIO_PCI)?;
            let from = entry.driver.as_deref().unwrap_or("no driver");
            log::info!("{device}: taken from {from}, bound to {VFIO_PCI}");
        }
        Ok(Some(entry))
    }

    /// After `failed` could not be displaced: it, and those before it, go back.
    fn roll_back(
        &self,
        journal: &mut Journal<'_>,
        failed: Bdf,
        displaced: &[(Bdf, Entry)],
        why: &BindingError,
    ) {
        let mut back = displaced.to_vec();
        // One whose driver sleeps would only keep us waiting again; it stays in the journal, for `viaduct restore`.
        let sleeps = matches!(why, BindingError::Step(StepError::Sleeps { .. }));
        let failed = journal
            .get(failed)
            .filter(|_| !sleeps)
            .map(|entry| (failed, entry.clone()));
        back.extend(failed);
        if let Err(error) = self.put_all_back(journal, &back) {
            log::error!("{error}\n  what is left to be put back:  viaduct restore");
        }
    }

    /// Last one first. All are tried; the first error is returned.
    fn put_all_back(
        &self,
        journal: &mut Journal<'_>,
        displaced: &[(Bdf, Entry)],
    ) -> Result<(), BindingError> {
        let mut first = Ok(());
        for (device, before) in displaced.iter().rev() {
            match self.put_back(journal, *device, before) {
                Err(error) if first.is_err() => log::error!("{error}"),
                result => first = first.and(result),
            }
        }
        first
    }

    /// Back to where it was, then forgotten. Works from after any step, any number of times.
    pub(super) fn put_back(
        &self,
        journal: &mut Journal<'_>,
        device: Bdf,
        before: &Entry,
    ) -> Result<(), BindingError> {
        if self.pci_dir(device).exists() {
            let steps = self.steps_back(device, before)?;
            self.perform(&steps)?;
            let bound = steps.iter().find_map(|step| match step {
                Step::Bind(_, driver) => Some(driver),
                _ => None,
            });
            if let Some(driver) = bound {
                self.expect_driver(device, driver)?;
                log::info!("{device}: given back to {driver}");
            }
        }
        Ok(journal.forget(device)?)
    }
}

fn unique(devices: &[Bdf]) -> Vec<Bdf> {
    let mut seen = Vec::new();
    for &device in devices {
        if !seen.contains(&device) {
            seen.push(device);
        }
    }
    seen
}
