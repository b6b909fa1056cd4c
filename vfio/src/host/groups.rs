//! IOMMU groups: the devices that the IOMMU cannot tell apart, so that they go to one guest together or not at all.

use std::{fmt, path::PathBuf};

use devices::pci::Bdf;

use super::{Device, DeviceError, Host, NoIommu, is_vfio, short, sysfs, unique};

/// An IOMMU group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its number.
    pub number: u32,
    /// Who is in it.
    pub members: Vec<Member>,
}

/// A device in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The kernel's name of it.
    pub name: String,
    /// Its address, where it is a PCI function.
    pub bdf: Option<Bdf>,
    /// The driver that has it.
    pub driver: Option<String>,
    /// It leads to another bus, so it is the host's for good.
    pub is_bridge: bool,
}

impl Member {
    /// Whether its driver stands in the way of giving the group to a guest.
    fn blocks(&self) -> bool {
        // The kernel lets drivers stay that do no DMA of their own (driver_managed_dma): pcieport on the bridges of the group, and
        // pci-stub. Not shpchp, which a bridge can have as well.
        self.driver
            .as_deref()
            .is_some_and(|driver| !is_vfio(driver) && !matches!(driver, "pcieport" | "pci-stub"))
    }

    /// Its address, if it is a function that a guest can have.
    fn function(&self) -> Option<Bdf> {
        self.bdf.filter(|_| !self.is_bridge)
    }

    /// No command of ours takes a bridge, or a device that is not on the PCI bus.
    fn detach_by_hand(&self, f: &mut fmt::Formatter<'_>, group: u32) -> fmt::Result {
        let name = &self.name;
        write!(
            f,
            "\n  detach {name} by hand, as root:  echo {name} > /sys/kernel/iommu_groups/{group}/devices/{name}/driver/unbind"
        )
    }
}

/// A device's group cannot be given to a guest.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The device has no group.
    #[error(transparent)]
    NoIommu(#[from] NoIommu),
    /// Others in it are in use by the host.
    #[error(transparent)]
    NotViable(#[from] GroupNotViable),
    /// There is no such device.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Devices of the group are on drivers of the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct GroupNotViable {
    /// Which device was asked for.
    pub device: Bdf,
    /// What goes to the guest with it.
    pub taking: Vec<Bdf>,
    /// Its group.
    pub group: u32,
    /// Who stands in the way; at least one.
    pub blockers: Vec<Member>,
}

impl fmt::Display for GroupNotViable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who: Vec<String> = self
            .blockers
            .iter()
            .map(|m| {
                format!(
                    "{} ({})",
                    m.name,
                    m.driver.as_deref().unwrap_or("no driver")
                )
            })
            .collect();
        let (device, group) = (self.device, self.group);
        write!(f, "{device}: IOMMU group {group} is not usable: ")?;
        match &self.blockers[..] {
            [
                Member {
                    name,
                    driver: Some(driver),
                    ..
                },
            ] => write!(f, "{name} in the same group is bound to {driver}")?,
            _ => write!(f, "still bound in the same group: {}", who.join(", "))?,
        }
        for blocker in &self.blockers {
            if blocker.function().is_none() {
                blocker.detach_by_hand(f, group)?;
            }
        }
        let functions: Vec<Bdf> = self.blockers.iter().filter_map(Member::function).collect();
        self.give_or_detach(f, &functions)
    }
}

impl GroupNotViable {
    fn give_or_detach(&self, f: &mut fmt::Formatter<'_>, functions: &[Bdf]) -> fmt::Result {
        if functions.is_empty() {
            return Ok(());
        }
        let run: String = self
            .taking
            .iter()
            .chain(functions)
            .map(|&b| format!(" --vfio {}", short(b)))
            .collect();
        let bind: String = functions
            .iter()
            .map(|&b| format!(" {}", short(b)))
            .collect();
        let it = if functions.len() == 1 {
            "it from its driver:       "
        } else {
            "them from their drivers:"
        };
        write!(
            f,
            "\n  give the whole group to the guest:  viaduct run{run}"
        )?;
        write!(f, "\n  or detach {it:<26}viaduct bind{bind}")
    }
}

impl Host {
    /// These devices, and all others of their groups that a guest can have.
    pub fn whole_groups(&self, devices: &[Bdf]) -> Result<Vec<Bdf>, GroupError> {
        let mut all = devices.to_vec();
        for &device in devices {
            let group = self.group_of(device)?;
            all.extend(group.members.iter().filter_map(Member::function));
        }
        Ok(unique(&all))
    }

    /// Who is in a group.
    pub fn group(&self, number: u32) -> Group {
        let names = self.member_names(number).into_iter();
        let members = names.map(|name| self.member(number, name)).collect();
        Group { number, members }
    }

    /// The names of those in a group.
    pub(super) fn member_names(&self, group: u32) -> Vec<String> {
        sysfs::names(&self.group_dir(group))
    }

    /// The one called `name`.
    pub(super) fn member(&self, group: u32, name: String) -> Member {
        let bdf = name.parse().ok();
        Member {
            bdf,
            driver: sysfs::link_name(&self.group_dir(group).join(&name).join("driver")),
            is_bridge: bdf.is_some_and(|bdf| self.is_bridge(bdf)),
            name,
        }
    }

    fn group_dir(&self, group: u32) -> PathBuf {
        let groups = self.roots.sys.join("kernel/iommu_groups");
        groups.join(group.to_string()).join("devices")
    }

    /// The group that a function is in.
    pub fn group_of(&self, device: Bdf) -> Result<Group, GroupError> {
        Ok(self.group(self.group_number(&self.device(device)?)?))
    }

    /// The number of the group that a function is in.
    pub(super) fn group_number(&self, device: &Device) -> Result<u32, GroupError> {
        let missing = || self.no_iommu(device.bdf).into();
        device.iommu_group.ok_or_else(missing)
    }

    /// Whether the group of `device` can be given to a guest that gets all of `taking`.
    pub fn viability(&self, device: Bdf, taking: &[Bdf]) -> Result<(), GroupError> {
        self.viability_of(self.group_of(device)?, device, taking)
    }

    pub(super) fn viability_of(
        &self,
        group: Group,
        device: Bdf,
        taking: &[Bdf],
    ) -> Result<(), GroupError> {
        let goes_along = |m: &Member| m.bdf.is_some_and(|b| b == device || taking.contains(&b));
        let blockers: Vec<Member> = group
            .members
            .into_iter()
            .filter(|member| member.blocks() && !goes_along(member))
            .collect();
        if blockers.is_empty() {
            return Ok(());
        }
        let mut all = taking.to_vec();
        if !all.contains(&device) {
            all.insert(0, device);
        }
        Err(GroupNotViable {
            device,
            taking: all,
            group: group.number,
            blockers,
        }
        .into())
    }
}
