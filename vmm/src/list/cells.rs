//! What the table says of a device: a few words for each column, `-` for nothing, `?` for what this user may not know.

use devices::pci::Bdf;
use vfio::host::{Facts, Group, Inventory, Known, facts::Interrupts};

use super::table::{Column, NOTHING};
use crate::names::{self, Names};

/// How many columns there are.
pub(super) const COLUMNS: usize = 10;

/// What the kernel shows to root only.
pub(super) const UNKNOWN: &str = "?";

/// More members of a group than these are counted, not named.
const NAMED_MEMBERS: usize = 2;

/// The columns. What decides about a device stays in the narrowest terminal.
pub(super) const fn columns() -> [Column; COLUMNS] {
    const fn column(title: &'static str, dispensable: u8) -> Column {
        Column { title, dispensable }
    }
    [
        column("ADDRESS", 0),
        column("CLASS", 4),
        column("DRIVER", 0),
        column("GROUP", 0),
        column("NODE", 7),
        column("RESET", 6),
        column("INTERRUPTS", 5),
        column("SR-IOV", 3),
        column("INTERFACE", 2),
        column("NAME", 0),
    ]
}

/// A device's row.
pub(super) fn row(facts: &Facts, inventory: &Inventory, names: &Names) -> [String; COLUMNS] {
    let device = &facts.device;
    [
        short(device.bdf),
        names::class(device.class).to_owned(),
        driver(facts, inventory),
        group(facts, inventory),
        device
            .numa_node
            .map_or_else(nothing, |node| node.to_string()),
        or_nothing(device.reset_methods.join(",")),
        interrupts(&facts.interrupts),
        or_nothing(sriov(facts)),
        or_nothing(interfaces(facts)),
        names.full(device.vendor, device.device),
    ]
}

fn nothing() -> String {
    NOTHING.to_owned()
}

fn or_nothing(text: String) -> String {
    if text.is_empty() { nothing() } else { text }
}

/// As people type it: without the segment where that is 0.
fn short(bdf: Bdf) -> String {
    let long = bdf.to_string();
    long.strip_prefix("0000:")
        .map_or_else(|| long.clone(), str::to_owned)
}

/// The driver, and who has the device of it: `vfio-pci (pid 4711)`.
fn driver(facts: &Facts, inventory: &Inventory) -> String {
    let Some(driver) = &facts.device.driver else {
        return nothing();
    };
    let group = facts.device.iommu_group;
    let holders = group.and_then(|group| inventory.holders.get(&group));
    match holders {
        Some(Known::Known(holders)) if !holders.is_empty() => {
            let pids: Vec<String> = holders
                .iter()
                .map(|holder| holder.pid.to_string())
                .collect();
            format!("{driver} (pid {})", pids.join(" "))
        }
        Some(Known::Unknown) => format!("{driver} ({UNKNOWN})"),
        _ => driver.clone(),
    }
}

/// The group, and which other devices go where this one goes: `13 +02:00.0 +02:00.1`.
fn group(facts: &Facts, inventory: &Inventory) -> String {
    let Some(number) = facts.device.iommu_group else {
        return nothing();
    };
    let group = inventory.groups.get(&number);
    let others = group
        .map(|group| others(group, facts.device.bdf))
        .unwrap_or_default();
    match others.len() {
        0 => number.to_string(),
        1..=NAMED_MEMBERS => format!("{number} +{}", others.join(" +")),
        many => format!("{number} +{many} others"),
    }
}

/// The others in the group, but for bridges: they stay with the host.
fn others(group: &Group, device: Bdf) -> Vec<String> {
    let members = group.members.iter();
    let others = members.filter(|member| !member.is_bridge && member.bdf != Some(device));
    others
        .map(|member| member.bdf.map_or_else(|| member.name.clone(), short))
        .collect()
}

/// `INTx MSI-X:10`; what is known to be there comes first.
fn interrupts(interrupts: &Interrupts) -> String {
    let pin = match &interrupts.pin {
        Known::Known(pin) => pin.map(|_| "INTx".to_owned()),
        Known::Unknown => Some(UNKNOWN.to_owned()),
    };
    let messages = match (&interrupts.msi, &interrupts.msix) {
        (Known::Known(msi), Known::Known(msix)) => [
            msi.map(|msi| format!("MSI:{}", msi.vectors)),
            msix.map(|msix| format!("MSI-X:{}", msix.location.vectors)),
        ],
        _ => [Some(UNKNOWN.to_owned()), None],
    };
    let mut all: Vec<String> = pin
        .into_iter()
        .chain(messages.into_iter().flatten())
        .collect();
    all.dedup();
    or_nothing(all.join(" "))
}

fn sriov(facts: &Facts) -> String {
    let device = &facts.device;
    let physical = device.sriov.as_ref();
    let physical = physical.map(|sriov| format!("{}/{} VFs", sriov.functions.len(), sriov.total));
    let virtual_of = device.virtual_function_of;
    let of = virtual_of.map(|(physical, index)| format!("{}/vf{index}", short(physical)));
    physical.or(of).unwrap_or_default()
}

/// `eth2 52:54:00:01:02:03`. Of a bridge there are none: what stands on the devices behind it is theirs.
fn interfaces(facts: &Facts) -> String {
    if facts.device.is_bridge() {
        return String::new();
    }
    let interface = |interface: &vfio::host::NetInterface| match interface.mac {
        Some(mac) => format!("{} {mac}", interface.name),
        None => interface.name.clone(),
    };
    let all: Vec<String> = facts.device.interfaces.iter().map(interface).collect();
    all.join(", ")
}
