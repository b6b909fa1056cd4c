//! What several devices have in common, read once: all functions of the host, their groups, and who has them.

use std::collections::{BTreeMap, BTreeSet};

use devices::pci::Bdf;
use vfio::host::{Device, Facts, Group, Holder, Host, Inventory, Known, sriov::FunctionSettings};

use crate::names::Names;

/// The devices that are asked about, and those around them.
pub(super) struct Surroundings {
    pub(super) named: Vec<Bdf>,
    pub(super) names: Names,
    inventory: Inventory,
    /// What the physical functions of those that are asked about keep for their virtual ones, by index.
    settings: BTreeMap<Bdf, Vec<(u32, FunctionSettings)>>,
}

impl Surroundings {
    pub(super) fn read(host: &Host, named: &[Bdf]) -> Self {
        let inventory = host.inventory();
        let asked = inventory.functions.iter().map(|facts| &facts.device);
        let asked = asked.filter(|one| named.contains(&one.bdf));
        let physical = asked
            .clone()
            .filter_map(|one| Some(one.virtual_function_of?.0));
        let physical: BTreeSet<Bdf> = physical.collect();
        let all = inventory.functions.iter().map(|facts| &facts.device);
        let settings = all
            .filter(|one| physical.contains(&one.bdf))
            .map(|one| (one.bdf, host.function_settings(one)));
        Self {
            named: named.to_vec(),
            names: Names::of_system(asked.map(|one| (one.vendor, one.device))),
            settings: settings.collect(),
            inventory,
        }
    }

    pub(super) fn facts(&self, bdf: Bdf) -> Option<&Facts> {
        let mut all = self.inventory.functions.iter();
        all.find(|facts| facts.device.bdf == bdf)
    }

    pub(super) fn group(&self, number: Option<u32>) -> Option<Group> {
        self.inventory.groups.get(&number?).cloned()
    }

    /// Who has a group open. One that nobody could have open is not among those that were looked for.
    pub(super) fn holders(&self, group: Option<u32>) -> Known<Vec<Holder>> {
        let found = group.and_then(|group| self.inventory.holders.get(&group));
        found.cloned().unwrap_or(Known::Known(Vec::new()))
    }

    /// Who has any of the functions, but for one.
    pub(super) fn holders_among(&self, functions: &[Bdf], but: Bdf) -> Vec<Holder> {
        let others = functions.iter().filter(|&&bdf| bdf != but);
        let groups = others.filter_map(|&bdf| self.facts(bdf)?.device.iommu_group);
        let mut holders: Vec<Holder> = groups
            .filter_map(|group| self.holders(Some(group)).known())
            .flatten()
            .collect();
        holders.sort_by_key(|holder| holder.pid);
        holders.dedup_by_key(|holder| holder.pid);
        holders
    }

    /// What the physical function's driver keeps for a virtual one.
    pub(super) fn settings(&self, device: &Device) -> Option<FunctionSettings> {
        let (physical, index) = device.virtual_function_of?;
        let mut functions = self.settings.get(&physical)?.iter();
        let (_, settings) = functions.find(|(number, _)| *number == index)?;
        Some(*settings)
    }
}
