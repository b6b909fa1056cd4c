//! A device: whether a guest can have it now, and what it will be like there.

mod functions;
mod hardware;
mod surroundings;
mod taking;
#[cfg(test)]
mod tests;

use devices::pci::Bdf;
use vfio::host::{
    self, Danger, DeviceError, Facts, Group, GroupError, Holder, Host, Known, short,
    sriov::FunctionSettings,
};

use self::surroundings::Surroundings;
use super::{
    files::Files,
    report::{Check, Section},
    system::{User, name_of},
};
use crate::names::Names;

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
    group_file: Option<GroupFile>,
}

/// The file by which a guest is given the devices of a group, once they are on vfio-pci.
#[derive(Debug)]
struct GroupFile {
    path: String,
    /// Its owner, group and mode.
    owner: (u32, u32, u32),
    /// The group of users who may use it.
    users: Option<String>,
}

/// What there is to say of each of the devices, in the order in which they were named.
pub(super) fn sections(
    host: &Host,
    files: &Files,
    named: &[Bdf],
    user: &User,
) -> Result<Vec<Section>, DeviceError> {
    let around = Surroundings::read(host, named);
    let section = |&bdf: &Bdf| {
        let device = Device::read(host, files, &around, bdf)?;
        Ok(Section {
            of: device.title(&around.names),
            checks: device.checks(user),
        })
    };
    named.iter().map(section).collect()
}

impl Device {
    fn read(
        host: &Host,
        files: &Files,
        around: &Surroundings,
        bdf: Bdf,
    ) -> Result<Self, DeviceError> {
        let facts = around.facts(bdf).ok_or(DeviceError::NotFound(bdf))?.clone();
        let number = facts.device.iommu_group;
        let physical = facts.device.virtual_function_of;
        let physical = physical.and_then(|(bdf, _)| Some(around.facts(bdf)?.device.clone()));
        let sriov = physical.as_ref().unwrap_or(&facts.device).sriov.as_ref();
        let functions = sriov.map_or(&[][..], |sriov| &sriov.functions);
        Ok(Self {
            named: around.named.clone(),
            group: around.group(number),
            viable: host.viability(bdf, &around.named),
            holders: around.holders(number),
            dangers: host.dangers(&facts.device),
            function_holders: around.holders_among(functions, bdf),
            settings: around.settings(&facts.device),
            group_file: number.and_then(|group| GroupFile::read(files, group)),
            physical,
            facts,
        })
    }

    fn title(&self, names: &Names) -> String {
        let device = &self.facts.device;
        let (vendor, id) = (device.vendor, device.device);
        let name = names.full(vendor, id);
        format!("{} {name} [{vendor:04x}:{id:04x}]", device.bdf)
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

impl GroupFile {
    fn read(files: &Files, group: u32) -> Option<Self> {
        let path = format!("dev/vfio/{group}");
        let owner = files.owner(&path)?;
        let (_, gid, mode) = owner;
        let groups = files.text("etc/group").unwrap_or_default();
        let is_shared = gid != 0 && mode & 0o060 == 0o060;
        Some(Self {
            path: format!("/{path}"),
            owner,
            users: is_shared
                .then(|| name_of(&groups, &gid.to_string()))
                .flatten(),
        })
    }
}
