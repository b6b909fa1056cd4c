//! `viaduct list --json`: everything that is known, in one place. What this user may not know is `"unknown"`, what is not there is
//! `null`; numbers are in bytes, IDs in hexadecimal as people write them.

use devices::pci::bar::BarKind;
use serde_json::{Value, json};
use vfio::host::{
    Facts, Group, Holder, Inventory, Known, NetInterface,
    facts::{Bar, ConfigAccess, Interrupts, Mapping, Msix, Pin, Trapped},
};

use crate::names::{self, Names};

/// The document: the functions, the groups that these are in, and why there are no groups if there are none.
pub(super) fn document(shown: &[&Facts], inventory: &Inventory, names: &Names) -> Value {
    let functions: Vec<Value> = shown.iter().map(|facts| function(facts, names)).collect();
    let groups = inventory.groups.values();
    let is_shown = |group: &&Group| {
        let mut numbers = shown.iter().map(|facts| facts.device.iommu_group);
        numbers.any(|number| number == Some(group.number))
    };
    let groups: Vec<Value> = groups
        .filter(is_shown)
        .map(|one| group(one, inventory))
        .collect();
    json!({
        "functions": functions,
        "groups": groups,
        "no_iommu": inventory.no_iommu.map(|cause| cause.why()),
    })
}

fn function(facts: &Facts, names: &Names) -> Value {
    let device = &facts.device;
    let mut value = json!({
        "address": device.bdf.to_string(),
        "class": format!("{:06x}", device.class),
        "class_name": names::class(device.class),
        "vendor": id(device.vendor),
        "vendor_name": names.vendor(device.vendor),
        "device": id(device.device),
        "device_name": names.device(device.vendor, device.device),
        "subsystem_vendor": id(device.subsystem_vendor),
        "subsystem_device": id(device.subsystem_device),
        "header_type": device.header_type,
        "is_bridge": device.is_bridge(),
        "driver": device.driver,
        "iommu_group": device.iommu_group,
        "numa_node": device.numa_node,
        "boot_vga": device.boot_vga,
        "reset_methods": device.reset_methods,
        "interfaces": device.interfaces.iter().map(interface).collect::<Vec<_>>(),
    });
    let more = [
        (
            "virtual_function_of",
            device.virtual_function_of.map(
                |(physical, index)| json!({ "address": physical.to_string(), "index": index }),
            ),
        ),
        (
            "sriov",
            device.sriov.as_ref().map(|sriov| {
                let functions: Vec<String> =
                    sriov.functions.iter().map(ToString::to_string).collect();
                json!({ "total": sriov.total, "functions": functions })
            }),
        ),
        ("bars", Some(facts.bars.iter().map(bar).collect())),
        ("rom", facts.rom.map(|rom| json!({ "size": rom.size }))),
        ("interrupts", Some(interrupts(&facts.interrupts))),
        ("power", Some(power(facts))),
        ("link", facts.link.as_ref().map(link)),
        ("config", Some(access(facts.config).into())),
    ];
    for (key, fact) in more {
        value[key] = fact.unwrap_or(Value::Null);
    }
    value
}

fn id(number: u16) -> String {
    format!("{number:04x}")
}

fn known(fact: Known<Value>) -> Value {
    fact.known().unwrap_or_else(|| "unknown".into())
}

fn interface(interface: &NetInterface) -> Value {
    json!({
        "name": interface.name,
        "mac": interface.mac.map(|mac| mac.to_string()),
        "is_up": interface.is_up,
        "state": interface.state,
    })
}

fn bar(bar: &Bar) -> Value {
    let (kind, prefetchable) = match bar.kind {
        BarKind::Io => ("ports", false),
        BarKind::Memory32 { prefetchable } => ("memory32", prefetchable),
        BarKind::Memory64 { prefetchable } => ("memory64", prefetchable),
    };
    json!({
        "index": bar.index,
        "kind": kind,
        "prefetchable": prefetchable,
        "size": bar.size,
        "address": bar.address,
        "mapping": known(bar.mapping.map(mapping)),
    })
}

/// How a guest reaches it: `direct` without exits, to all or to all but the pages of MSI-X; `trapped` with one for each access.
fn mapping(mapping: Mapping) -> Value {
    match mapping {
        Mapping::Whole => json!({ "direct": true, "withheld": 0 }),
        Mapping::AroundMsix { withheld } => json!({ "direct": true, "withheld": withheld }),
        Mapping::Trapped(why) => json!({ "direct": false, "why": trapped(why) }),
    }
}

fn trapped(why: Trapped) -> &'static str {
    match why {
        Trapped::Ports => "ports",
        Trapped::NoAddress => "no address",
        Trapped::SharesPage => "shares a page",
        Trapped::MsixOnly => "MSI-X only",
    }
}

fn interrupts(interrupts: &Interrupts) -> Value {
    let msi = interrupts.msi.map(|msi| {
        let value = msi.map(
            |msi| json!({ "vectors": msi.vectors, "address_64": msi.wide, "masking": msi.masking }),
        );
        value.unwrap_or(Value::Null)
    });
    json!({
        "pin": known(interrupts.pin.map(|pin| pin.map_or(Value::Null, self::pin))),
        "msi": known(msi),
        "msix": known(interrupts.msix.map(|msix| msix.map_or(Value::Null, self::msix))),
    })
}

fn pin(pin: Pin) -> Value {
    let can_be_disabled = known(pin.can_be_disabled.map(Value::from));
    json!({ "pin": pin.letter.to_string(), "can_be_disabled": can_be_disabled })
}

fn msix(msix: Msix) -> Value {
    let at = &msix.location;
    json!({
        "vectors": at.vectors,
        "table": { "bar": at.table_bar, "offset": at.table_offset },
        "pending": { "bar": at.pba_bar, "offset": at.pba_offset },
        "shares_a_page": msix.shares_a_page(),
    })
}

fn power(facts: &Facts) -> Value {
    let power = &facts.power;
    json!({ "state": power.state, "runtime": power.runtime, "control": power.control })
}

fn link(link: &vfio::host::facts::Link) -> Value {
    json!({
        "speed": link.speed,
        "width": link.width,
        "max_speed": link.max_speed,
        "max_width": link.max_width,
    })
}

fn access(access: ConfigAccess) -> &'static str {
    match access {
        ConfigAccess::Complete => "complete",
        ConfigAccess::Header => "header",
        ConfigAccess::Silent => "silent",
        ConfigAccess::Unreadable => "unreadable",
    }
}

fn group(group: &Group, inventory: &Inventory) -> Value {
    let members: Vec<Value> = group
        .members
        .iter()
        .map(|member| {
            json!({ "name": member.name, "driver": member.driver, "is_bridge": member.is_bridge })
        })
        .collect();
    let holders = inventory.holders.get(&group.number);
    let holders = holders.map_or(Known::Known(&[][..]), |holders| {
        holders.as_ref().map(Vec::as_slice)
    });
    let held = known(holders.map(|all| all.iter().map(holder).collect()));
    json!({ "number": group.number, "members": members, "in_use_by": held })
}

fn holder(holder: &Holder) -> Value {
    json!({ "pid": holder.pid, "command": holder.command, "guest": holder.guest })
}
