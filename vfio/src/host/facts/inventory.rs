//! Every function of the host at once: what several of them have in common is read once.

use std::collections::BTreeMap;

use devices::pci::Bdf;

use super::{Facts, Known};
use crate::host::{DeviceError, Group, Holder, Host, Member, NoIommuCause, is_vfio};

/// The PCI functions of a host, and how its IOMMU divides them.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// The functions, in order of address.
    pub functions: Vec<Facts>,
    /// Their groups, by number.
    pub groups: BTreeMap<u32, Group>,
    /// Who has the groups open that can be; unknown where other people's processes would have to be looked at.
    pub holders: BTreeMap<u32, Known<Vec<Holder>>>,
    /// Why there are no groups, if there are none.
    pub no_iommu: Option<NoIommuCause>,
}

impl Host {
    /// All that there is to know about every function.
    pub fn inventory(&self) -> Inventory {
        let around = self.surroundings();
        let facts = |bdf| match self.facts_among(bdf, &around) {
            Ok(facts) => Some(facts),
            // It has just been removed.
            Err(DeviceError::NotFound(_)) => None,
            Err(error) => {
                log::warn!("{error}");
                None
            }
        };
        let functions: Vec<Facts> = self.functions().into_iter().filter_map(facts).collect();
        let groups = self.groups_of(&functions);
        let open = groups.values().filter(|group| has_vfio(group));
        let open: Vec<u32> = open.map(|group| group.number).collect();
        Inventory {
            holders: self.holders_of_all(&open),
            no_iommu: groups.is_empty().then(|| self.no_iommu_cause()),
            groups,
            functions,
        }
    }

    fn groups_of(&self, functions: &[Facts]) -> BTreeMap<u32, Group> {
        let by_address: BTreeMap<Bdf, &Facts> =
            functions.iter().map(|f| (f.device.bdf, f)).collect();
        let member = |name: String, number: u32| {
            let bdf: Option<Bdf> = name.parse().ok();
            match bdf.and_then(|bdf| by_address.get(&bdf)) {
                Some(Facts { device, .. }) => Member {
                    name,
                    bdf,
                    driver: device.driver.clone(),
                    is_bridge: device.is_bridge(),
                },
                None => self.member(number, name),
            }
        };
        let numbers = functions.iter().filter_map(|f| f.device.iommu_group);
        let mut groups = BTreeMap::new();
        for number in numbers {
            groups.entry(number).or_insert_with(|| {
                let names = self.member_names(number).into_iter();
                let members = names.map(|name| member(name, number)).collect();
                Group { number, members }
            });
        }
        groups
    }
}

/// Whether a guest could have it open.
fn has_vfio(group: &Group) -> bool {
    let mut drivers = group.members.iter().filter_map(|m| m.driver.as_deref());
    drivers.any(is_vfio)
}
