//! Taking devices for a guest and giving them back; `viaduct bind`.
//!
//! Order: everything that can be checked is checked before anything is changed; the journal is locked; each device's past is on
//! disk before its first step, and forgotten after its last.

use devices::pci::Bdf;

use super::{
    BindingError, Host, Mac, StepError, is_vfio,
    journal::{Entry, Journal, Owner},
    steps::{Step, VFIO_PCI},
    unique,
};

/// How to take devices.
#[derive(Debug, Clone, Default)]
pub struct BindOptions {
    /// Take also what the host stands on ([`Danger`](super::Danger)).
    pub force: bool,
    /// What the guest is called, for those who find its devices in use.
    pub guest: Option<String>,
    /// Which driver of VFIO's; without, the one made for the device, or else vfio-pci.
    pub driver: Option<String>,
    /// The addresses that virtual functions get, which get their own back in the end.
    pub macs: Vec<(Bdf, Mac)>,
}

impl BindOptions {
    fn mac_of(&self, device: Bdf) -> Option<Mac> {
        let mut macs = self.macs.iter();
        macs.find(|(of, _)| *of == device).map(|(_, mac)| *mac)
    }
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
        let displaced = self.displace_all(&devices, options, Some(&owner))?;
        Ok(Taken {
            host: self.clone(),
            displaced,
        })
    }

    /// Binds devices to vfio-pci until they are unbound or restored.
    pub fn bind(&self, devices: &[Bdf], options: &BindOptions) -> Result<(), BindingError> {
        let devices = unique(devices);
        self.check_bind(&devices, options)?;
        self.load_vfio(&devices)?;
        self.displace_all(&devices, options, None).map(drop)
    }

    /// All of them, or none. Returns what was displaced.
    fn displace_all(
        &self,
        devices: &[Bdf],
        options: &BindOptions,
        owner: Option<&Owner>,
    ) -> Result<Vec<(Bdf, Entry)>, BindingError> {
        if devices.is_empty() {
            // A guest without devices of ours needs no right to bind any.
            return Ok(Vec::new());
        }
        let mut journal = match Journal::lock(self) {
            Err(error) if error.is_no_right() && self.are_prepared(devices)? => {
                for &device in devices {
                    self.make_ready(device, options)?;
                }
                return Ok(Vec::new());
            }
            journal => journal?,
        };
        for &device in devices {
            self.refuse_if_owned(device, journal.get(device))?;
        }
        let mut displaced = Vec::new();
        for &device in devices {
            match self.displace(&mut journal, device, options, owner) {
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
        before: Option<&Entry>,
        options: &BindOptions,
        owner: Option<&Owner>,
    ) -> Result<Option<Entry>, StepError> {
        let stays = self.stays_on_vfio(device, options.driver.as_deref());
        let entry = match before {
            None if stays => return Ok(None),
            // Bound for good by `viaduct bind`: it stays bound.
            Some(before) if stays && before.owner.is_none() => return Ok(None),
            None => self.entry_of(device, owner)?,
            // Left by someone who died. Where it goes back to is what they wrote down, unless somebody has given it a driver
            // since, or they had not got as far as taking it from one.
            Some(before) => {
                let now = self.driver_of(device).filter(|driver| !is_vfio(driver));
                let module = now.as_deref().and_then(|driver| self.module_of(driver));
                Entry {
                    module: module.or(before.module.clone()),
                    driver: now.or(before.driver.clone()),
                    owner: owner.cloned(),
                    to: None,
                    ..before.clone()
                }
            }
        };
        Ok(Some(entry))
    }

    /// Where the device is now.
    pub(super) fn entry_of(&self, device: Bdf, owner: Option<&Owner>) -> Result<Entry, StepError> {
        let driver = self.driver_of(device);
        Ok(Entry {
            module: driver.as_deref().and_then(|driver| self.module_of(driver)),
            driver,
            driver_override: self.driver_override(device)?,
            owner: owner.cloned(),
            to: None,
            mac: None,
        })
    }

    /// To vfio-pci, with its past in the journal. Nothing is returned, nor written, of what was there and stays there.
    fn displace(
        &self,
        journal: &mut Journal<'_>,
        device: Bdf,
        options: &BindOptions,
        owner: Option<&Owner>,
    ) -> Result<Option<Entry>, BindingError> {
        let before = journal.get(device);
        let Some(mut entry) = self.past_of(device, before, options, owner)? else {
            self.make_ready(device, options)?;
            return Ok(None);
        };
        // What a dead guest left is what counts: the address is that guest's now.
        entry.mac = entry
            .mac
            .or_else(|| self.changed_mac(device, options.mac_of(device)));
        journal.record(device, entry.clone())?;
        // Through the physical function's driver, and before the virtual one leaves its own.
        self.make_ready(device, options)?;
        let asked = options.driver.as_deref();
        if !self.stays_on_vfio(device, asked) {
            let driver = self.hand_to_vfio(device, asked)?;
            let from = entry.driver.as_deref().unwrap_or("no driver");
            log::info!("{device}: taken from {from}, bound to {driver}");
        }
        Ok(Some(entry))
    }

    fn make_ready(&self, device: Bdf, options: &BindOptions) -> Result<(), BindingError> {
        let ready = self.prepare_function(device, options.mac_of(device));
        ready.map(drop).map_err(|error| Box::new(error).into())
    }

    /// To the driver that was asked for, or to the best one that takes it. Returns which.
    fn hand_to_vfio(&self, device: Bdf, asked: Option<&str>) -> Result<String, StepError> {
        if let Some(driver) = asked {
            return self.bring_to(device, driver);
        }
        let best = self.best_vfio_driver(device);
        match self.bring_to(device, &best) {
            Err(error @ (StepError::Refused { .. } | StepError::NotBound { .. }))
                if best != VFIO_PCI =>
            {
                log::warn!("{error}\n  it gets {VFIO_PCI} instead");
                self.bring_to(device, VFIO_PCI)
            }
            result => result,
        }
    }

    fn bring_to(&self, device: Bdf, driver: &str) -> Result<String, StepError> {
        self.perform(&self.steps_to(device, driver))?;
        self.expect_driver(device, driver)?;
        Ok(driver.to_owned())
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
            if let Some(mac) = before.mac {
                // Before its driver has it, which reads it once.
                self.put_mac_back(device, mac);
            }
            let steps = self.steps_back(device, before)?;
            self.ensure_past_driver(before, &steps);
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
