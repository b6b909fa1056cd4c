//! What a user needs who is not root: devices that root has bound, and files of theirs that may be opened.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};

use super::vf::{FIRST, SECOND};
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::{Error, Result};
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "a user without root gives a prepared function to a guest, and reads how to be let until then",
        machine: Machine::example,
        limit: Duration::from_secs(180),
        run: without_root,
    }]
}

const RULES: &str = include_str!("../../../resources/udev/70-viaduct.rules");
const GROUP: &str = include_str!("../../../resources/sysusers.d/viaduct.conf");
const LIMITS: &str = include_str!("../../../resources/limits.d/viaduct.conf");

fn without_root(l1: &Host) -> Result<()> {
    let tried = prepared_and_used(l1);
    // The device manager would rename the interfaces of the scenarios after this one.
    l1.sh("udevadm control --exit; viaduct unbind 03:10.1 03:10.3; userdel -r ada 2> /dev/null; chown root:root /dev/kvm")?;
    tried?;
    for function in [FIRST, SECOND] {
        let driver = l1.driver(function)?;
        expect(driver.as_deref() == Some("igbvf"), "root gives them back")?;
    }
    Ok(())
}

fn prepared_and_used(l1: &Host) -> Result<()> {
    install(l1, LIMITS, "/etc/security/limits.d/viaduct.conf")?;
    install(l1, GROUP, "/etc/sysusers.d/viaduct.conf")?;
    l1.sh("systemd-sysusers; useradd -m -G kvm ada; mkdir -p /etc/udev/rules.d; \
        /usr/lib/systemd/systemd-udevd --daemon; udevadm trigger -s misc; udevadm settle; viaduct bind 03:10.3; udevadm settle")?;
    let plan = l1
        .viaduct("run --memory 256M --vfio 03:10.3")
        .script("lab-dhcp && ping -c 1 10.0.2.2");
    // Root's group of users is not hers yet, so nor are its limits.
    let run = format!("ulimit -l unlimited; su ada -c '{}'", plan.command()?);
    let refused = l1.output(&run, Duration::from_secs(30))?;
    let said = &refused.stderr;
    expect(refused.code == 1, "she may not open the group yet")?;
    expect(said.contains("no permission to open /dev/vfio/"), said)?;
    be_let(l1, said)?;
    let limit = l1.sh("su ada -c 'id -nG; ulimit -l'")?;
    expect(
        limit.contains("vfio") && limit.contains("unlimited"),
        &limit,
    )?;
    let run = format!("su ada -c '{}' < /dev/null", plan.command()?);
    let output = l1.output(&run, Duration::from_secs(90))?;
    let what = format!("her guest works: {}{}", output.stdout, output.stderr);
    expect(
        output.code == 0 && output.stdout.contains("LAB-L2 exit 0"),
        &what,
    )?;
    expect(
        output.stdout.contains("1 packets received"),
        "its function does",
    )?;
    // On a slow host there is a line now and then of how far it is.
    let mut said = output.stderr.lines();
    expect(
        said.all(|line| line.contains("populating guest memory")),
        &format!("nothing is missed: {}", output.stderr),
    )?;
    as_shipped(l1)
}

/// Types what was printed, for good, as she would.
fn be_let(l1: &Host, said: &str) -> Result<()> {
    let fix = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("for good:  "));
    let fix = fix.and_then(|line| line.strip_suffix("; then log in again"));
    let fix = fix.ok_or_else(|| Error::Unexpected(format!("no fix in: {said}")))?;
    l1.sh(&format!(
        "sudo() {{ \"$@\"; }}; USER=ada; {fix}; udevadm settle"
    ))?;
    Ok(())
}

/// The rule that is shipped says the same, for what is bound from then on as well.
fn as_shipped(l1: &Host) -> Result<()> {
    install(l1, RULES, "/etc/udev/rules.d/70-viaduct.rules")?;
    l1.sh("udevadm verify /etc/udev/rules.d/70-viaduct.rules && udevadm control --reload")?;
    l1.sh("viaduct bind 03:10.1; udevadm settle")?;
    let owner = l1.sh("stat -c '%G %a' /dev/vfio/$(basename $(readlink /sys/bus/pci/devices/0000:03:10.1/iommu_group))")?;
    expect(
        owner.trim() == "vfio 660",
        &format!("the rule made it {owner}"),
    )
}

fn install(l1: &Host, contents: &str, path: &str) -> Result<()> {
    let encoded = BASE64_STANDARD.encode(contents);
    let command = format!("mkdir -p $(dirname {path}); echo {encoded} | base64 -d > {path}");
    l1.sh(&command).map(drop)
}
