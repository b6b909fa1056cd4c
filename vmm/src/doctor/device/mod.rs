//! A device: whether a guest can have it now, and what it will be like there.

mod functions;
mod hardware;
mod taking;
#[cfg(test)]
mod tests;

use devices::pci::Bdf;
use vfio::host::{
    self, Danger, DeviceError, Facts, Group, GroupError, Holder, Host, Inventory, Known, short,
    sriov::FunctionSettings,
};

use super::{
    files::Files,
    report::{Check, Section},
    system::User,
};

/// What is known of a device, and of those that it depends on.
#[derive(Debug)]
pub(super) struct Device {
    facts: Facts,
    /// All that are asked about: a guest would get them together.
    named: Vec<Bdf>,
    group: Option<Group>,
    viable: Result<(), GroupError>,
    /// Who has its group open.
    holders: Known<Vec<Holder>>,
    dangers: Vec<Danger>,
    /// The physical function that it is one of.
    physical: Option<host::Device>,
    /// What that one's driver keeps for it.
    settings: Option<FunctionSettings>,
    /// Who has virtual functions of it, or of the physical function that it is one of; not who has itself.
    function_holders: Vec<Holder>,
    /// The file by which a guest is given its group, once it is on vfio-pci, and its owner, group and mode.
    group_file: Option<(String, (u32, u32, u32))>,
}

/// What there is to say of each of the devices, in the order in which they were named.
pub(super) fn sections(
    host: &Host,
    files: &Files,
    named: &[Bdf],
    user: &User,
) -> Result<Vec<Section>, DeviceError> {
    let inventory = host.inventory();
    let section = |&bdf: &Bdf| {
        let device = Device::read(host, files, &inventory, bdf, named)?;
        Ok(Section {
            of: device.title(),
            checks: device.checks(user),
        })
    };
    named.iter().map(section).collect()
}

impl Device {
    fn read(
        host: &Host,
        files: &Files,
        inventory: &Inventory,
        bdf: Bdf,
        named: &[Bdf],
    ) -> Result<Self, DeviceError> {
        let facts = host.facts(bdf)?;
        let number = facts.device.iommu_group;
        let none = Known::Known(Vec::new());
        let holders = number.and_then(|group| inventory.holders.get(&group).cloned());
        let physical = facts.device.virtual_function_of;
        let physical = physical.and_then(|(bdf, _)| host.device(bdf).ok());
        let sriov = physical.as_ref().unwrap_or(&facts.device).sriov.as_ref();
        let functions = sriov
            .map(|sriov| sriov.functions.clone())
            .unwrap_or_default();
        Ok(Self {
            named: named.to_vec(),
            group: number.and_then(|group| inventory.groups.get(&group).cloned()),
            viable: host.viability(bdf, named),
            holders: holders.unwrap_or(none),
            dangers: host.dangers(&facts.device),
            function_holders: holders_of(inventory, &functions, bdf),
            settings: settings(host, &facts.device),
            physical,
            group_file: number.and_then(|group| {
                let path = format!("dev/vfio/{group}");
                let owner = files.owner(&path)?;
                Some((format!("/{path}"), owner))
            }),
            facts,
        })
    }

    fn title(&self) -> String {
        let device = &self.facts.device;
        format!(
            "{} [{:04x}:{:04x}]",
            device.bdf, device.vendor, device.device
        )
    }

    /// As people type it.
    fn name(&self) -> String {
        short(self.facts.device.bdf)
    }

    fn checks(&self, user: &User) -> Vec<Check> {
        if self.facts.device.is_bridge() {
            let what = "is a bridge, which a guest cannot have: the devices behind it need it";
            return vec![Check::failure("kind", what)];
        }
        let taking = self.taking(user).into_iter();
        taking
            .chain(self.functions())
            .chain(self.hardware())
            .collect()
    }
}

/// What the physical function's driver keeps for a virtual one.
fn settings(host: &Host, device: &host::Device) -> Option<FunctionSettings> {
    let (physical, index) = device.virtual_function_of?;
    let functions = host.physical(physical).ok()?.functions.into_iter();
    let mut functions = functions.filter(|function| function.index == index);
    Some(functions.next()?.settings)
}

/// Who has any of the functions, but for one.
fn holders_of(inventory: &Inventory, functions: &[Bdf], but: Bdf) -> Vec<Holder> {
    let others = inventory.functions.iter().map(|facts| &facts.device);
    let others = others.filter(|one| functions.contains(&one.bdf) && one.bdf != but);
    let groups = others.filter_map(|one| one.iommu_group);
    let mut holders: Vec<Holder> = groups
        .filter_map(|group| inventory.holders.get(&group)?.as_ref().known())
        .flatten()
        .cloned()
        .collect();
    holders.sort_by_key(|holder| holder.pid);
    holders.dedup_by_key(|holder| holder.pid);
    holders
}
