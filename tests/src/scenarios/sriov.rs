//! Virtual functions, from none to a guest and back, without `echo` and `ip`.

use std::time::Duration;

use serde_json::Value;

use super::refusals::refused;
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::{Error, Result};
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "virtual functions are made, set, given to a guest, kept while it runs, and removed",
        machine: Machine::example,
        limit: Duration::from_secs(180),
        run: from_none_to_a_guest_and_back,
    }]
}

const MAC: &str = "02:00:00:aa:00:02";
const SET: &str = "viaduct sriov 03:00.0 --vf 2 --mac 02:00:00:aa:00:03 --vlan 100:3 --trust on --spoofchk off --rate 50";

fn from_none_to_a_guest_and_back(l1: &Host) -> Result<()> {
    // By the interface where a person would, by the address elsewhere.
    let name = l1.sh("ls /sys/bus/pci/devices/0000:03:00.0/net")?;
    let name = name.trim();
    let none = l1.sh(&format!("ip link set {name} down; viaduct sriov {name}"))?;
    let down = format!("0000:03:00.0: {name} (down");
    expect(none.contains(&down), "the physical one is seen to be down")?;
    expect(none.contains("0 of 7 virtual"), "there are none yet")?;
    let three = l1.sh(&format!("viaduct sriov {name} --vfs 3"))?;
    let up = format!("{name} (up");
    expect(three.contains(&up), "the physical one was brought up")?;
    expect(
        three.matches("igbvf (eth").count() == 3,
        "three are on their driver",
    )?;
    let seven = ["0000:03:00.0: can have 7", "viaduct sriov 03:00.0 --vfs 7"];
    refused(l1, "viaduct sriov 03:00.0 --vfs 8", 1, &seven)?;
    l1.sh(SET)?;
    same_as_ip(l1, name)?;
    let unknown = ["Operation not supported", "igb cannot set this"];
    refused(l1, "viaduct sriov 03:00.0 --vf 0 --link on", 1, &unknown)?;
    refused(
        l1,
        "viaduct sriov 03:00.0 --vf 0 --rate 50:10",
        1,
        &["igb does not take this value"],
    )?;
    kept_for_a_guest(l1, name)?;
    l1.sh("viaduct sriov 03:00.0 --vfs 0")?;
    let left = l1.sh("cat /sys/bus/pci/devices/0000:03:00.0/sriov_numvfs")?;
    expect(left.trim() == "0", "they are gone when the guest is")
}

/// What is told of each function is what iproute2 tells.
fn same_as_ip(l1: &Host, name: &str) -> Result<()> {
    let json = |command: &str| -> Result<Value> {
        let said = l1.sh(command)?;
        let parsed = serde_json::from_str(&said);
        parsed.map_err(|error| Error::Unexpected(format!("`{command}`: {error}: {said}")))
    };
    let ours = json("viaduct sriov 03:00.0 --json")?;
    let theirs = json(&format!("/usr/sbin/ip -j link show {name}"))?;
    for index in 0..3 {
        let (our, their) = (&ours["functions"][index], &theirs[0]["vfinfo_list"][index]);
        let vlan = &their["vlan_list"][0];
        // Neither has a VLAN where there is none. All else both have.
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let pairs = [
            (&our["index"], &their["vf"]),
            (&our["mac"], &their["address"]),
            (&our["trust"], &their["trust"]),
            (&our["spoofchk"], &their["spoofchk"]),
            (&our["rate"]["max"], &their["rate"]["max_tx"]),
            (&our["rate"]["min"], &their["rate"]["min_tx"]),
            (&our["link"], &their["link_state"]),
        ];
        let same = our["index"] == index
            && pairs
                .iter()
                .all(|(our, their)| our == their && !our.is_null())
            && number(&our["vlan"]["id"]) == number(&vlan["vlan"])
            && number(&our["vlan"]["qos"]) == number(&vlan["qos"]);
        expect(same, &format!("{our} is what ip says: {their}"))?;
    }
    let set = &ours["functions"][2];
    expect(
        set["mac"] == "02:00:00:aa:00:03",
        "the MAC is the one that was set",
    )?;
    expect(
        set["vlan"]["id"] == 100 && set["vlan"]["qos"] == 3,
        "so is the VLAN",
    )?;
    expect(
        set["trust"] == true && set["spoofchk"] == false,
        "so are the switches",
    )?;
    expect(set["rate"]["max"] == 50, "so is the rate")
}

fn kept_for_a_guest(l1: &Host, name: &str) -> Result<()> {
    let mut guest = l1
        .viaduct(&format!("run --memory 256M --vfio {name}/vf1,mac={MAC}"))
        .script("cat /sys/class/net/eth0/address; lab-dhcp || exit; echo == works; read -r")
        .start()?;
    let said = guest.wait_for("== works")?;
    expect(said.contains(MAC), "the guest has the MAC of mac=")?;
    let pid = l1.sh("pidof viaduct")?;
    let who = format!("process {} (viaduct)", pid.trim());
    let kill = format!("kill {}", pid.trim());
    for number in [0, 1] {
        let command = format!("viaduct sriov 03:00.0 --vfs {number}");
        refused(
            l1,
            &command,
            1,
            &["0000:03:10.2 (vf1) is in use by", &who, &kill],
        )?;
    }
    let shown = l1.sh("viaduct sriov 03:00.0")?;
    expect(shown.contains(&who), "the guest is shown with its function")?;
    guest.type_in("\n")?;
    guest.succeeds()?;
    let shown = l1.sh("viaduct sriov 03:00.0")?;
    expect(
        shown.contains("0000:03:10.2") && !shown.contains(MAC),
        "the guest's address went with it",
    )
}
