//! A physical function and its virtual ones, as they are now.

use devices::pci::Bdf;

use super::{FunctionSettings, SriovError};
use crate::host::{Device, Holder, Host, Mac, NetInterface, netlink::Link, sysfs};

/// A function that can have virtual ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhysicalFunction {
    /// Its address.
    pub bdf: Bdf,
    /// What it is bound to.
    pub driver: Option<String>,
    /// Its network interface, through which its virtual functions are set.
    pub interface: Option<String>,
    /// Whether that is up: a virtual function has no link before.
    pub up: Option<bool>,
    /// Its address.
    pub mac: Option<Mac>,
    /// How many virtual ones it can have.
    pub total: u32,
    /// Whether the host's drivers take new ones (`sriov_drivers_autoprobe`).
    pub probe: Option<bool>,
    /// Its virtual functions, by index.
    pub functions: Vec<VirtualFunction>,
}

/// A virtual function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualFunction {
    /// Which of its physical one's it is.
    pub index: u32,
    /// Its address.
    pub bdf: Bdf,
    /// What it is bound to.
    pub driver: Option<String>,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// The network interfaces on it.
    pub interfaces: Vec<String>,
    /// What the physical function keeps for it.
    pub settings: FunctionSettings,
    /// The processes that have it, or a device of its group. Only root sees those of others.
    pub holders: Vec<Holder>,
}

impl Host {
    /// What there is to know of a physical function and its virtual ones.
    pub fn physical(&self, bdf: Bdf) -> Result<PhysicalFunction, SriovError> {
        let device = self.device(bdf)?;
        let Some(sriov) = &device.sriov else {
            return Err(not_physical(&device));
        };
        let interface = self.uplink(&device);
        let link = self.link(interface);
        let functions = (0..).zip(&sriov.functions);
        let functions =
            functions.map(|(index, &bdf)| self.function_facts(index, bdf, link.as_ref()));
        Ok(PhysicalFunction {
            bdf,
            driver: device.driver.clone(),
            interface: interface.map(|one| one.name.clone()),
            up: link.as_ref().map(|link| link.up),
            mac: interface.and_then(|one| one.mac),
            total: sriov.total,
            probe: self.probes(bdf),
            functions: functions.collect::<Result<_, _>>()?,
        })
    }

    /// What a physical function's driver keeps for its virtual ones, by index. Nothing where it cannot be asked.
    pub fn function_settings(&self, physical: &Device) -> Vec<(u32, FunctionSettings)> {
        let link = self.link(self.uplink(physical));
        link.map_or_else(Vec::new, |link| link.functions)
    }

    /// Without it there are still the functions, and what sysfs says of them.
    fn link(&self, interface: Option<&NetInterface>) -> Option<Link> {
        let name = &interface?.name;
        let link = self.links.link(name);
        link.map_err(|error| log::warn!("{name}: {error}")).ok()
    }

    fn function_facts(
        &self,
        index: u32,
        bdf: Bdf,
        link: Option<&Link>,
    ) -> Result<VirtualFunction, SriovError> {
        let device = self.device(bdf)?;
        let told = link.and_then(|link| link.functions.iter().find(|(number, _)| *number == index));
        Ok(VirtualFunction {
            index,
            bdf,
            group: device.iommu_group,
            holders: device
                .iommu_group
                .map(|group| self.holders(group))
                .unwrap_or_default(),
            interfaces: device.interfaces.into_iter().map(|one| one.name).collect(),
            driver: device.driver,
            settings: told.map(|(_, settings)| *settings).unwrap_or_default(),
        })
    }

    /// The interface of the physical function itself. In switchdev mode there is one more on it for each virtual function, whose port
    /// is called `pf0vf1` (or `pf0sf1`; Documentation/networking/devlink/devlink-port.rst).
    pub(super) fn uplink<'a>(&self, physical: &'a Device) -> Option<&'a NetInterface> {
        let class = self.roots.sys.join("class/net");
        physical.interfaces.iter().find(|one| {
            let port = sysfs::text(&class.join(&one.name).join("phys_port_name"));
            port.is_none_or(|port| !port.contains("vf") && !port.contains("sf"))
        })
    }

    fn probes(&self, physical: Bdf) -> Option<bool> {
        let attribute = self.pci_dir(physical).join("sriov_drivers_autoprobe");
        sysfs::number(&attribute).map(|number| number != 0)
    }
}

fn not_physical(device: &Device) -> SriovError {
    SriovError::NotPhysical {
        device: device.bdf,
        virtual_of: device.virtual_function_of.map(|(physical, _)| physical),
    }
}
