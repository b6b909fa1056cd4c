//! `viaduct unbind`: devices go back to the driver they had, or to one that is named.
//!
//! Each device on its own: what keeps one of them does not keep the others.

use devices::pci::Bdf;

use super::{
    BindingError, Device, Host, JournalError, StepError, is_vfio,
    journal::{Entry, Journal},
    steps::Step,
    unique,
};

/// What became of a device that was to be unbound.
#[derive(Debug)]
pub struct Unbound {
    /// Which device.
    pub device: Bdf,
    /// The driver that it was on, and the one that it is on now.
    pub moved: Result<(Option<String>, Option<String>), BindingError>,
}

impl Host {
    /// Gives devices back to the driver they had before we bound them, or to `driver`, or, where neither is known, to whichever
    /// driver wants them.
    pub fn unbind(
        &self,
        devices: &[Bdf],
        driver: Option<&str>,
    ) -> Result<Vec<Unbound>, JournalError> {
        let mut journal = Journal::lock(self)?;
        let unbind = unique(devices).into_iter().map(|device| Unbound {
            device,
            moved: self.unbind_one(&mut journal, device, driver),
        });
        Ok(unbind.collect())
    }

    fn unbind_one(
        &self,
        journal: &mut Journal<'_>,
        device: Bdf,
        driver: Option<&str>,
    ) -> Result<(Option<String>, Option<String>), BindingError> {
        let facts = self.device(device)?;
        let before = journal.get(device).cloned();
        self.check_unbind(&facts, driver, before.as_ref())?;
        match (driver, before) {
            (None, Some(before)) => self.put_back(journal, device, &before)?,
            (driver, before) => {
                let steps = self.steps_onwards(&facts, driver)?;
                self.move_on(journal, &facts, (driver, before), &steps)?;
            }
        }
        Ok((facts.driver, self.driver_of(device)))
    }

    /// What is checked before anything is changed.
    pub(super) fn check_unbind(
        &self,
        device: &Device,
        driver: Option<&str>,
        before: Option<&Entry>,
    ) -> Result<(), BindingError> {
        self.refuse_if_held(device, before)?;
        let leaves_host = driver.is_some() && device.driver.as_deref() != driver;
        if leaves_host && device.driver.as_deref().is_some_and(|now| !is_vfio(now)) {
            self.refuse_if_dangerous(device)?;
        }
        Ok(())
    }

    /// To `driver`, or from vfio-pci to whichever driver wants it.
    pub(super) fn steps_onwards(
        &self,
        device: &Device,
        driver: Option<&str>,
    ) -> Result<Vec<Step>, StepError> {
        let (bdf, now) = (device.bdf, device.driver.clone());
        let on_host = now.as_deref().is_some_and(|now| !is_vfio(now));
        let free = Step::Override(bdf, None);
        Ok(match driver {
            Some(driver) if now.as_deref() == Some(driver) => {
                let reserved = self.driver_override(bdf)?;
                Vec::from_iter(reserved.map(|_| free))
            }
            Some(driver) => {
                let mut steps = vec![Step::Override(bdf, Some(driver.to_owned()))];
                steps.extend(now.map(|now| Step::Unbind(bdf, now)));
                steps.push(Step::Bind(bdf, driver.to_owned()));
                // The reservation was for the match only: `driver` keeps the device without it.
                steps.push(free);
                steps
            }
            None if on_host => Vec::new(),
            None => {
                let mut steps = vec![free];
                steps.extend(now.map(|now| Step::Unbind(bdf, now)));
                steps.push(Step::Probe(bdf));
                steps
            }
        })
    }

    fn move_on(
        &self,
        journal: &mut Journal<'_>,
        device: &Device,
        (driver, before): (Option<&str>, Option<Entry>),
        steps: &[Step],
    ) -> Result<(), BindingError> {
        let bdf = device.bdf;
        if !steps.is_empty() {
            let before = match before {
                Some(before) => before,
                None => self.entry_of(bdf, None)?,
            };
            let to = driver.map(str::to_owned);
            journal.record(bdf, Entry { to, ..before })?;
            self.perform(steps)?;
        }
        if let Some(driver) = driver {
            self.expect_driver(bdf, driver)?;
        }
        Ok(journal.forget(bdf)?)
    }
}
