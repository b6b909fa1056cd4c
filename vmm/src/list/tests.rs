//! What people see of machines unlike the lab.

use serde_json::Value;
use vfio::host::recorded::{AMD, INTEL, MANY_FUNCTIONS, NO_IOMMU, Recorded, VMD};

use super::*;

const NAMES: &str = "10ec  Realtek Semiconductor\n\t8168  RTL8111 Gigabit Ethernet\n";

fn table(machine: &str, all: bool, groups: bool, width: Option<usize>) -> Vec<String> {
    let inventory = Recorded::new(machine).host().inventory();
    let shown = chosen(&inventory, &[], all);
    let ids = shown.iter().map(|f| (f.device.vendor, f.device.device));
    let names = Names::in_text(NAMES, ids);
    lines(&shown, &inventory, &names, groups, width).0
}

fn row(machine: &str, address: &str) -> String {
    let all = table(machine, true, false, None);
    let row = all.iter().find(|line| line.starts_with(address)).unwrap();
    row.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn json(machine: &str) -> Value {
    let inventory = Recorded::new(machine).host().inventory();
    let shown = chosen(&inventory, &[], false);
    json::document(&shown, &inventory, &Names::default())
}

#[test]
fn a_row_says_at_a_glance_what_a_device_is_and_who_goes_with_it() {
    assert_eq!(
        row(AMD, "2a:00.0"),
        "2a:00.0 Ethernet r8169 13 +02:00.0 +02:00.1 pm,bus INTx MSI:1 MSI-X:4 \
         enp42s0 04:42:1a:00:00:01 Realtek Semiconductor RTL8111 Gigabit Ethernet"
    );
    assert_eq!(
        row(INTEL, "17:00.1"),
        "17:00.1 Ethernet i40e 41 0 flr,bus INTx MSI:1 MSI-X:129 0/64 VFs ens1f1 3c:fd:fe:00:00:11 Intel device 1572"
    );
    assert_eq!(
        row(MANY_FUNCTIONS, "3b:1f.4"),
        "3b:1f.4 Ethernet ixgbevf 102 - flr MSI-X:3 3b:00.0/vf62 vf62 02:00:00:00:00:3e Intel device 1565"
    );
    let disk = row(VMD, "10000:e1:00.0");
    assert!(
        disk.starts_with("10000:e1:00.0 NVMe nvme 4 +00:0e.0 "),
        "{disk}"
    );
}

#[test]
fn bridges_are_told_of_only_where_everything_is() {
    let has_bridge = |lines: Vec<String>| lines.iter().any(|line| line.contains("PCI bridge"));
    assert!(!has_bridge(table(AMD, false, false, None)));
    assert!(has_bridge(table(AMD, true, false, None)));
}

#[test]
fn by_groups_each_says_what_belongs_together() {
    let lines = table(AMD, false, true, None);
    let at = lines.iter().position(|line| line.starts_with("group 13"));
    let at = at.unwrap();
    assert_eq!(
        lines[at],
        "group 13: its 3 devices go to one guest, or none"
    );
    let addresses: Vec<&str> = lines[at + 1..at + 4]
        .iter()
        .map(|line| &line[..7])
        .collect();
    assert_eq!(addresses, ["02:00.0", "02:00.1", "2a:00.0"]);
    let without = table(NO_IOMMU, false, true, None);
    assert!(without[1].starts_with("no group"), "{}", without[1]);
}

#[test]
fn every_machine_fits_eighty_columns_with_what_decides() {
    for machine in [AMD, INTEL, VMD, MANY_FUNCTIONS, NO_IOMMU] {
        let lines = table(machine, true, false, Some(80));
        assert!(lines.len() > 3, "{lines:#?}");
        assert!(
            lines.iter().all(|line| line.chars().count() <= 80),
            "{lines:#?}"
        );
        for title in ["ADDRESS", "DRIVER", "GROUP", "NAME"] {
            assert!(lines[0].contains(title), "{}", lines[0]);
        }
    }
}

#[test]
fn json_has_every_fact() {
    let document = json(INTEL);
    let functions = document["functions"].as_array().unwrap();
    let port = functions
        .iter()
        .find(|f| f["address"] == "0000:17:00.0")
        .unwrap();
    assert_eq!(port["bars"][1]["mapping"]["withheld"], 0x2000);
    assert_eq!(port["bars"][0]["prefetchable"], true);
    assert_eq!(port["interrupts"]["msix"]["table"]["bar"], 3);
    assert_eq!(port["interrupts"]["pin"]["can_be_disabled"], true);
    assert_eq!(port["sriov"]["total"], 64);
    assert_eq!(port["rom"]["size"], 512 << 10);
    assert_eq!(port["link"]["width"], 8);
    assert_eq!(port["interfaces"][0]["is_up"], true);
    assert_eq!(port["virtual_function_of"], Value::Null);
    assert_eq!(port["config"], "complete");
    let group = document["groups"].as_array().unwrap();
    let group = group.iter().find(|group| group["number"] == 40).unwrap();
    assert_eq!(group["members"][0]["name"], "0000:17:00.0");
    assert_eq!(document["no_iommu"], Value::Null);
    assert!(json(NO_IOMMU)["no_iommu"].is_string());
}

#[test]
fn what_only_root_may_read_is_a_question_mark_and_said_so() {
    let machine = Recorded::new(NO_IOMMU);
    let config = "sys/bus/pci/devices/0000:00:02.0/config";
    let bytes = std::fs::read(machine.path(config)).unwrap();
    machine.file(config, &bytes[..64]);
    let inventory = machine.host().inventory();
    let shown = chosen(&inventory, &["00:02.0".parse().unwrap()], false);
    let names = Names::default();
    let (lines, _) = lines(&shown, &inventory, &names, false, None);
    assert!(lines[1].contains("INTx ?"), "{}", lines[1]);
    let document = json::document(&shown, &inventory, &names);
    assert_eq!(document["functions"][0]["interrupts"]["msix"], "unknown");
    assert_eq!(document["functions"][0]["bars"][1]["mapping"], "unknown");
    let hints = hints(&shown, &inventory, &[]).join("\n");
    assert!(
        hints.contains("viaduct doctor") && hints.contains("sudo viaduct list"),
        "{hints}"
    );
}
