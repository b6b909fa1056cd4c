//! Setting what a physical function keeps for a virtual one.

use devices::pci::Bdf;

use super::{Setting, SriovError};
use crate::host::{Device, Host, netlink::Link};

impl Host {
    /// Sets one thing for virtual function `index` of `physical`.
    pub fn set_function(
        &self,
        physical: Bdf,
        index: u32,
        setting: Setting,
    ) -> Result<(), SriovError> {
        let function = self.virtual_function(physical, index)?;
        let physical = self.device(physical)?;
        let (interface, link) = self.link_of(&physical, function)?;
        self.links
            .set(&link, index, setting)
            .map_err(|cause| SriovError::Netlink {
                device: function,
                interface,
                driver: physical.driver,
                cause,
            })
    }

    /// The same as a command that someone could type, once there are `enabled` functions; as many as there are, if that is none.
    pub fn set_function_plan(
        &self,
        physical: Bdf,
        index: u32,
        enabled: Option<u32>,
        setting: Setting,
    ) -> Result<String, SriovError> {
        if enabled.is_none_or(|enabled| index >= enabled) {
            self.virtual_function(physical, index)?;
        }
        let (interface, _) = self.link_of(&self.device(physical)?, physical)?;
        Ok(format!("ip link set {interface} vf {index} {setting}"))
    }

    /// The interface through which `physical` is asked to do something for `device`.
    pub(super) fn link_of(
        &self,
        physical: &Device,
        device: Bdf,
    ) -> Result<(String, Link), SriovError> {
        let driver = physical.driver.clone();
        let Some(interface) = self.uplink(physical) else {
            return Err(SriovError::NoInterface {
                device,
                physical: physical.bdf,
                driver,
            });
        };
        let interface = interface.name.clone();
        match self.links.link(&interface) {
            Ok(link) => Ok((interface, link)),
            Err(cause) => Err(SriovError::Netlink {
                device,
                interface,
                driver,
                cause,
            }),
        }
    }
}
