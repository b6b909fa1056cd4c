//! The address that a virtual function had before a guest got another, and how it gets it back.

use devices::pci::Bdf;
use serde::{Deserialize, Serialize};

use super::{Setting, SriovError};
use crate::host::{Host, Mac};

/// What a function's address was, and what it is meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) struct ChangedMac {
    was: Mac,
    is: Mac,
}

impl Host {
    /// What to write down before `bdf` gets the address `asked`. None where there is nothing to put back.
    pub(in crate::host) fn changed_mac(&self, bdf: Bdf, asked: Option<Mac>) -> Option<ChangedMac> {
        let is = asked?;
        let function = self.device(bdf).ok()?;
        let (physical, index) = function.virtual_function_of?;
        let physical = self.device(physical).ok()?;
        let (_, link) = self.link_of(&physical, bdf).ok()?;
        // One that was drawn by lot is none: the driver that gets the function back draws another.
        let was = self.own_mac(&function, index, &link)?;
        (was != is).then_some(ChangedMac { was, is })
    }

    /// Gives `bdf` the address back that it had, unless somebody has given it yet another. Whatever stands in the way, its driver gets
    /// the function back.
    pub(in crate::host) fn put_mac_back(&self, bdf: Bdf, mac: ChangedMac) {
        if let Err(error) = self.try_put_mac_back(bdf, mac) {
            log::warn!("{error}\n  it keeps the address of its guest, {}", mac.is);
        }
    }

    fn try_put_mac_back(&self, bdf: Bdf, mac: ChangedMac) -> Result<(), SriovError> {
        let function = self.device(bdf)?;
        let Some((physical, index)) = function.virtual_function_of else {
            return Ok(());
        };
        let (_, link) = self.link_of(&self.device(physical)?, bdf)?;
        if self.own_mac(&function, index, &link) != Some(mac.is) {
            return Ok(());
        }
        log::info!("{bdf}: has the address {} again", mac.was);
        self.set_function(physical, index, Setting::Mac(mac.was))
    }
}
