//! `viaduct restore`: puts back what a viaduct that is no more left bound, or what `viaduct bind` bound.

use std::fmt;

use devices::pci::Bdf;

use super::{
    BindingError, Holder, Host, JournalError,
    journal::{Entry, Journal},
};

/// What became of a device that the journal names.
#[derive(Debug)]
pub struct Restored {
    /// Which device.
    pub device: Bdf,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a device.
#[derive(Debug)]
pub enum Outcome {
    /// It is on the driver that it had.
    Back(Option<String>),
    /// Somebody gave it to another driver in the meantime, and it stays there.
    Elsewhere(String),
    /// It is no longer there.
    Gone,
    /// A process has it, and it stays there.
    InUse(Vec<Holder>),
    /// It could not be put back; it can be tried again.
    Failed(BindingError),
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.device;
        match &self.outcome {
            Outcome::Back(Some(driver)) => write!(f, "{device}: back on {driver}"),
            Outcome::Back(None) => write!(f, "{device}: without a driver, as before"),
            Outcome::Elsewhere(driver) => {
                write!(f, "{device}: bound to {driver} in the meantime, left there")
            }
            Outcome::Gone => write!(f, "{device}: no longer there"),
            Outcome::InUse(holders) => {
                let who: Vec<String> = holders.iter().map(Holder::to_string).collect();
                write!(f, "{device}: in use by {}, left there", who.join(" and "))
            }
            Outcome::Failed(error) => write!(f, "{error}"),
        }
    }
}

impl Host {
    /// Puts back every driver that a `bind` of ours, or a guest that is no more, displaced. Devices of living guests stay. It
    /// can be run at any time, as often as one likes.
    pub fn restore(&self) -> Result<Vec<Restored>, JournalError> {
        let mut journal = Journal::lock(self)?;
        let past = journal.entries();
        let restore = past.into_iter().map(|(device, before)| Restored {
            device,
            outcome: self.restore_one(&mut journal, device, &before),
        });
        Ok(restore.collect())
    }

    fn restore_one(&self, journal: &mut Journal<'_>, device: Bdf, before: &Entry) -> Outcome {
        let put_back = |journal: &mut Journal<'_>| {
            if let Ok(facts) = self.device(device) {
                self.refuse_if_held(&facts, Some(before))?;
            }
            self.put_back(journal, device, before)
        };
        match put_back(journal) {
            Err(BindingError::InUse { holders, .. }) => Outcome::InUse(holders),
            Err(error) => Outcome::Failed(error),
            Ok(()) if !self.pci_dir(device).exists() => Outcome::Gone,
            Ok(()) => match self.driver_of(device) {
                now if now == before.driver => Outcome::Back(now),
                Some(other) => Outcome::Elsewhere(other),
                None => Outcome::Back(None),
            },
        }
    }
}
