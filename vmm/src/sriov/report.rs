//! A physical function and its virtual ones, for a person and for programs.

use std::fmt::Write;

use serde_json::{Value, json};
use vfio::host::{
    Holder,
    sriov::{PhysicalFunction, Rate, VirtualFunction, Vlan},
};

use crate::output;

/// Prints it.
pub(super) fn print(physical: &PhysicalFunction, json: bool) {
    if json {
        output::line(format!("{:#}", as_json(physical)));
    } else {
        output::line(as_text(physical).trim_end());
    }
}

const HEADINGS: [&str; 11] = [
    "vf", "address", "driver", "group", "mac", "vlan", "trust", "spoofchk", "rate", "link",
    "used by",
];

fn as_text(physical: &PhysicalFunction) -> String {
    let mut text = headline(physical);
    if physical.functions.is_empty() {
        return text;
    }
    let rows = physical.functions.iter().map(row);
    let rows: Vec<_> = [HEADINGS.map(String::from)]
        .into_iter()
        .chain(rows)
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            // Into a string nothing fails.
            let width = width(column);
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `0000:03:00.1: eth2 (up, 52:54:00:03:00:01) on igb, 2 of 7 virtual functions`
fn headline(physical: &PhysicalFunction) -> String {
    let mut text = format!("{}:", physical.bdf);
    if let Some(interface) = &physical.interface {
        let state = match physical.up {
            Some(true) => "up",
            Some(false) => "down",
            None => "state unknown",
        };
        let mac = physical
            .mac
            .map(|mac| format!(", {mac}"))
            .unwrap_or_default();
        let _ = write!(text, " {interface} ({state}{mac})");
    }
    let driver = physical.driver.as_deref().unwrap_or("no driver");
    let (enabled, total) = (physical.functions.len(), physical.total);
    let _ = write!(text, " on {driver}, {enabled} of {total} virtual functions");
    if physical.probe == Some(false) {
        text.push_str("; no driver of the host takes new ones");
    }
    text.push('\n');
    text
}

fn row(function: &VirtualFunction) -> [String; HEADINGS.len()] {
    let settings = &function.settings;
    let unknown = || "-".to_owned();
    let switch = |on: Option<bool>| match on {
        Some(true) => "on".to_owned(),
        Some(false) => "off".to_owned(),
        None => unknown(),
    };
    let holders: Vec<String> = function.holders.iter().map(Holder::to_string).collect();
    [
        function.index.to_string(),
        function.bdf.to_string(),
        driver(function),
        function
            .group
            .map_or_else(unknown, |group| group.to_string()),
        settings.mac.map_or_else(unknown, |mac| mac.to_string()),
        settings.vlan.map_or_else(unknown, vlan),
        switch(settings.trust),
        switch(settings.spoof_check),
        settings.rate.map_or_else(unknown, rate),
        settings.link.map_or_else(unknown, |link| link.to_string()),
        if holders.is_empty() {
            unknown()
        } else {
            holders.join(", ")
        },
    ]
}

/// `igbvf (eth3)`
fn driver(function: &VirtualFunction) -> String {
    let driver = function.driver.as_deref().unwrap_or("-");
    match &function.interfaces[..] {
        [] => driver.to_owned(),
        some => format!("{driver} ({})", some.join(", ")),
    }
}

fn vlan(vlan: Vlan) -> String {
    let Vlan {
        id,
        priority,
        is_service,
    } = vlan;
    let service = if is_service { "ad" } else { "" };
    match (id, priority) {
        (0, 0) => "none".into(),
        (id, 0) => format!("{id}{service}"),
        (id, priority) => format!("{id}:{priority}{service}"),
    }
}

fn rate(rate: Rate) -> String {
    match (rate.max, rate.min) {
        (0, 0) => "any".into(),
        (max, 0) => max.to_string(),
        (max, min) => format!("{max}:{min}"),
    }
}

fn as_json(physical: &PhysicalFunction) -> Value {
    let functions: Vec<Value> = physical.functions.iter().map(function_as_json).collect();
    json!({
        "address": physical.bdf.to_string(),
        "driver": physical.driver,
        "interface": physical.interface,
        "up": physical.up,
        "mac": physical.mac.map(|mac| mac.to_string()),
        "total": physical.total,
        "probe": physical.probe,
        "functions": functions,
    })
}

fn function_as_json(function: &VirtualFunction) -> Value {
    let settings = &function.settings;
    let holder = |holder: &Holder| json!({ "pid": holder.pid, "command": holder.command, "guest": holder.guest });
    let vlan = |vlan: Vlan| {
        let protocol = if vlan.is_service { "802.1ad" } else { "802.1Q" };
        json!({ "id": vlan.id, "qos": vlan.priority, "protocol": protocol })
    };
    json!({
        "index": function.index,
        "address": function.bdf.to_string(),
        "driver": function.driver,
        "group": function.group,
        "interfaces": function.interfaces,
        "mac": settings.mac.map(|mac| mac.to_string()),
        "vlan": settings.vlan.map(vlan),
        "trust": settings.trust,
        "spoofchk": settings.spoof_check,
        "rate": settings.rate.map(|rate| json!({ "max": rate.max, "min": rate.min })),
        "link": settings.link.map(|link| link.to_string()),
        "used_by": function.holders.iter().map(holder).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use vfio::host::{
        Mac,
        sriov::{FunctionSettings, LinkState},
    };

    use super::*;

    fn card() -> PhysicalFunction {
        let bare = VirtualFunction {
            index: 0,
            bdf: "03:10.1".parse().unwrap(),
            driver: None,
            group: None,
            interfaces: vec![],
            settings: FunctionSettings::default(),
            holders: vec![],
        };
        let settings = FunctionSettings {
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            vlan: Some(Vlan {
                id: 100,
                priority: 3,
                is_service: false,
            }),
            trust: Some(false),
            spoof_check: Some(true),
            rate: Some(Rate { max: 500, min: 0 }),
            link: Some(LinkState::Auto),
        };
        let holder = Holder {
            pid: 7,
            command: "viaduct".into(),
            guest: None,
        };
        let busy = VirtualFunction {
            index: 1,
            bdf: "03:10.3".parse().unwrap(),
            driver: Some("igbvf".into()),
            group: Some(9),
            interfaces: vec!["eth3".into()],
            settings,
            holders: vec![holder],
        };
        PhysicalFunction {
            bdf: "03:00.1".parse().unwrap(),
            driver: Some("igb".into()),
            interface: Some("eth2".into()),
            up: Some(true),
            mac: Some(Mac([0x52, 0x54, 0, 3, 0, 1])),
            total: 7,
            probe: Some(true),
            functions: vec![bare, busy],
        }
    }

    #[test]
    fn a_person_reads_a_line_for_each_function_in_columns() {
        assert_eq!(
            as_text(&card()),
            "0000:03:00.1: eth2 (up, 52:54:00:03:00:01) on igb, 2 of 7 virtual functions\n\
             vf  address       driver        group  mac                vlan   trust  spoofchk  rate  link  used by\n\
             0   0000:03:10.1  -             -      -                  -      -      -         -     -     -\n\
             1   0000:03:10.3  igbvf (eth3)  9      02:00:00:00:00:01  100:3  off    on        500   auto  process 7 (viaduct)\n"
        );
    }

    #[test]
    fn a_card_without_functions_or_an_interface_is_one_line() {
        let nvme = PhysicalFunction {
            driver: None,
            interface: None,
            up: None,
            mac: None,
            probe: Some(false),
            functions: vec![],
            ..card()
        };
        assert_eq!(
            as_text(&nvme),
            "0000:03:00.1: on no driver, 0 of 7 virtual functions; no driver of the host takes new ones\n"
        );
    }

    #[test]
    fn programs_get_every_fact_and_null_for_what_is_not_known() {
        let json = as_json(&card());
        assert_eq!(json["functions"][0]["spoofchk"], Value::Null);
        assert_eq!(json["functions"][1]["spoofchk"], true);
        assert_eq!(json["functions"][1]["vlan"]["qos"], 3);
        assert_eq!(json["functions"][1]["used_by"][0]["pid"], 7);
        assert_eq!(json["total"], 7);
    }
}
