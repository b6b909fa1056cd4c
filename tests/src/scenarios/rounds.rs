//! Many devices bound and unbound many times, and two that want the same one.

use std::time::Duration;

use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "eight devices are bound and unbound again and again, and all is as before",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: eight_devices,
        },
        Scenario {
            name: "of two guests that race for a device one gets it and the other says who has it",
            machine: Machine::example,
            limit: Duration::from_secs(120),
            run: race,
        },
    ]
}

const MORE_FUNCTIONS: &str = "echo 4 > /sys/bus/pci/devices/0000:03:00.0/sriov_numvfs; \
    until [ $(ls -d /sys/bus/pci/drivers/igbvf/0000:* | wc -l) = 6 ]; do sleep 0.1; done";
const NO_MORE_FUNCTIONS: &str = "echo 0 > /sys/bus/pci/devices/0000:03:00.0/sriov_numvfs";
/// Six virtual functions, and the group that two cards share, of which one is named.
const EIGHT: &str = "03:10.0 03:10.1 03:10.2 03:10.3 03:10.4 03:10.6 05:01.0";

fn eight_devices(l1: &Host) -> Result<()> {
    l1.sh(MORE_FUNCTIONS)?;
    let (before, unchanged) = (l1.bindings()?, l1.state()?);
    let plan = l1.sh(&format!("viaduct bind --group --dry-run {EIGHT}"))?;
    expect(
        plan.lines().count() == 3 * 8,
        "three steps for each of eight",
    )?;
    l1.expect_unchanged(&unchanged)?;
    for round in 0..l1.amount(3, 50) {
        let said = l1.sh(&format!("viaduct bind --group {EIGHT}"))?;
        let bound = said.lines().filter(|line| line.ends_with("-> vfio-pci"));
        expect(bound.count() == 8, &format!("eight are bound:\n{said}"))?;
        let back = if round % 2 == 0 {
            format!("viaduct unbind --group {EIGHT}")
        } else {
            "viaduct restore".into()
        };
        // What is planned is the same as what is done, command for command.
        let said = l1.sh(&format!("{back} --dry-run | grep -c bind; {back}"))?;
        expect(
            said.starts_with("16\n"),
            &format!("eight leave and come back:\n{said}"),
        )?;
        expect(
            l1.bindings()? == before,
            &format!("all is as before, after\n{said}"),
        )?;
    }
    l1.sh(NO_MORE_FUNCTIONS).map(drop)
}

/// Starts two guests at once, and prints: the process of the winner and its name; what the loser has said; how both ended.
const RACE: &str = r#"
declare -A name
for guest in red blue; do
    viaduct run --name $guest --kernel /lab/l2/vmlinuz --initrd /lab/l2/initrd --memory 256M --vfio 03:10.3 \
        > /dev/null 2> /run/race-$guest < /dev/null &
    name[$!]=$guest
done
wait -n -p loser "${!name[@]}"; lost=$?
for pid in "${!name[@]}"; do
    [ $pid = $loser ] || winner=$pid
done
kill -TERM $winner; wait $winner
echo "ended $lost $?"
echo "winner process $winner (viaduct, guest '${name[$winner]}')"
cat /run/race-${name[$winner]} >&2
cat /run/race-${name[$loser]}"#;

fn race(l1: &Host) -> Result<()> {
    let before = l1.bindings()?;
    for _ in 0..l1.amount(3, 30) {
        let said = l1.sh(RACE)?;
        expect(
            said.contains("ended 1 0"),
            &format!("one loses, one wins:\n{said}"),
        )?;
        let winner = said.lines().find_map(|line| line.strip_prefix("winner "));
        let says = format!("0000:03:10.3: in use by {}", winner.unwrap_or("nobody"));
        expect(
            said.contains(&says),
            &format!("the other says \"{says}\":\n{said}"),
        )?;
        expect(l1.bindings()? == before, "the host is as before")?;
    }
    Ok(())
}
