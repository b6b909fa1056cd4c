//! Making a virtual function ready for a guest: its physical one up, and an address, which only that one can set.

use devices::pci::Bdf;

use super::{Setting, SriovError};
use crate::host::{Device, Host, Mac, netlink::Link, sysfs};

/// Base class of network controllers.
const NETWORK: u32 = 0x02;

impl Host {
    /// Makes a virtual function of a network card ready for a guest, before it is taken: its physical function is brought up
    /// (a virtual one gets no link, and its driver no answer, before that), and it gets the address `mac`, or, where it has none, one
    /// that is [derived](Mac::derived). Returns the address it has.
    ///
    /// What is no virtual function of a network card is left as it is, unless `mac` is asked for. What nobody asked for and cannot be
    /// done, without the right for instance, is a warning: a guest may still do.
    pub fn prepare_function(&self, bdf: Bdf, mac: Option<Mac>) -> Result<Option<Mac>, SriovError> {
        let device = self.device(bdf)?;
        let Some((physical, index)) = device.virtual_function_of else {
            return mac.map_or(Ok(None), |_| Err(SriovError::NotVirtual(bdf)));
        };
        let physical = self.device(physical)?;
        match self.prepare_through(&physical, &device, index, mac) {
            Err(error) if mac.is_none() => {
                // Some cards that are not for networks have virtual functions, too.
                if device.class >> 16 == NETWORK {
                    log::warn!("{error}");
                }
                Ok(None)
            }
            result => result,
        }
    }

    fn prepare_through(
        &self,
        physical: &Device,
        function: &Device,
        index: u32,
        asked: Option<Mac>,
    ) -> Result<Option<Mac>, SriovError> {
        let (interface, link) = self.bring_up(physical, function.bdf)?;
        let has = self.own_mac(function, index, &link);
        let Some(mac) = address_to_set(has, asked, link.mac, index) else {
            return Ok(has);
        };
        log::info!("{interface}: virtual function {index} gets the address {mac}");
        self.set_function(physical.bdf, index, Setting::Mac(mac))?;
        Ok(Some(mac))
    }

    /// The address of a function as its physical one has it; all zeros is none.
    pub(super) fn own_mac(&self, function: &Device, index: u32, link: &Link) -> Option<Mac> {
        let told = link.functions.iter().find(|(number, _)| *number == index);
        let mac = told.and_then(|(_, settings)| settings.mac)?;
        Some(if self.rolled_dice(function) {
            Mac::default()
        } else {
            mac
        })
    }

    /// Whether the address of a function is one that the host's driver drew by lot, and has told the physical function of: the next
    /// driver would draw another (`addr_assign_type` 1, Documentation/ABI/testing/sysfs-class-net).
    fn rolled_dice(&self, function: &Device) -> bool {
        let class = self.roots.sys.join("class/net");
        let mut names = function.interfaces.iter().map(|one| &one.name);
        names.any(|name| sysfs::number(&class.join(name).join("addr_assign_type")) == Some(1))
    }

    /// Brings the interface of a physical function up, for the sake of `function`.
    pub(super) fn bring_up(
        &self,
        physical: &Device,
        function: Bdf,
    ) -> Result<(String, Link), SriovError> {
        let (interface, link) = self.link_of(physical, function)?;
        if !link.up {
            log::info!("{interface}: bringing it up for its virtual functions");
            self.links
                .set_up(&link)
                .map_err(|cause| SriovError::Netlink {
                    device: function,
                    interface: interface.clone(),
                    driver: physical.driver.clone(),
                    cause,
                })?;
        }
        Ok((interface, link))
    }
}

/// The address to set, if any: what is asked for, or a derived one where it has none.
fn address_to_set(
    has: Option<Mac>,
    asked: Option<Mac>,
    physical: Option<Mac>,
    index: u32,
) -> Option<Mac> {
    let derived = || {
        // A driver that does not tell of its functions' addresses (`has` is none) manages them itself.
        let physical = physical.filter(|_| has.is_some_and(Mac::is_zero))?;
        Some(Mac::derived(physical, index))
    };
    asked.or_else(derived).filter(|&mac| has != Some(mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHYSICAL: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const ZERO: Mac = Mac([0; 6]);

    #[test]
    fn a_function_without_an_address_gets_a_derived_one_and_keeps_it() {
        let first = address_to_set(Some(ZERO), None, Some(PHYSICAL), 1);
        assert_eq!(first, Some(Mac::derived(PHYSICAL, 1)));
        assert_eq!(address_to_set(first, None, Some(PHYSICAL), 1), None);
    }

    #[test]
    fn an_address_that_someone_set_is_changed_only_when_asked_for() {
        assert_eq!(address_to_set(Some(OTHER), None, Some(PHYSICAL), 1), None);
        let asked = Some(PHYSICAL);
        assert_eq!(address_to_set(Some(OTHER), asked, None, 1), asked);
        assert_eq!(address_to_set(Some(OTHER), Some(OTHER), None, 1), None);
    }

    #[test]
    fn a_driver_that_tells_of_no_addresses_is_left_alone_unless_asked() {
        assert_eq!(address_to_set(None, None, Some(PHYSICAL), 0), None);
        assert_eq!(address_to_set(None, Some(OTHER), None, 0), Some(OTHER));
    }
}
