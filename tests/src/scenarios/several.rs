//! More than one: virtual functions in a guest, boots of a guest, guests on a host.

use std::time::Duration;

use super::reading::Statistics;
use super::refusals::refused;
use super::vf::{FIRST, SECOND, STATS, expect_back};
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::guest::Guest;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "two VFs work in one guest, and again after it has rebooted",
            machine: Machine::example,
            limit: Duration::from_secs(180),
            run: two_vfs_and_a_reboot,
        },
        Scenario {
            name: "two guests have a VF each, and a third is told who has it",
            machine: Machine::example,
            limit: Duration::from_secs(150),
            run: two_guests,
        },
    ]
}

/// Pings through every NIC, then does what is typed.
const EACH_NIC: &str = "lab-dhcp || exit; for nic in /sys/class/net/eth*; do \
    ping -A -q -c 3 -I ${nic##*/} 10.0.2.2 || exit; done; echo == works; read -r order; eval $order";

pub(super) fn two_vfs_and_a_reboot(l1: &Host) -> Result<()> {
    let mut guest = l1
        .viaduct("run --cpus 2 --memory 384M --vfio 03:10.1 --vfio 03:10.3 --stats /run/stats.json")
        .script(EACH_NIC)
        .start()?;
    for order in ["reboot\n", "true\n"] {
        guest.wait_for("LAB-L2 init")?;
        let said = guest.wait_for("== works")?;
        let both = said.contains("52:54:00:03:10:01") && said.contains("52:54:00:03:10:03");
        expect(both, "both VFs have their addresses")?;
        let answered = said.matches("3 packets received").count();
        expect(answered == 2, "ping 3/3 through each VF")?;
        guest.type_in(order)?;
    }
    guest.succeeds()?;
    let resets = Statistics::read(l1, STATS)?.number("/resets")?;
    expect(resets == 1, "the machine was reset once")?;
    expect_back(l1, FIRST)?;
    expect_back(l1, SECOND)
}

fn with_vf<'a>(l1: &'a Host, vf: &str) -> Result<Guest<'a>> {
    let plan = l1.viaduct(&format!("run --memory 256M --vfio {vf}"));
    plan.script(EACH_NIC).start()
}

pub(super) fn two_guests(l1: &Host) -> Result<()> {
    let mut guests = [with_vf(l1, "03:10.1")?, with_vf(l1, "03:10.3")?];
    for guest in &mut guests {
        let said = guest.wait_for("== works")?;
        expect(said.contains("3 packets received"), "ping 3/3 in each")?;
    }
    let during = l1.state()?;
    let pid = l1.sh("pgrep -fx 'viaduct run .*03:10.3'")?;
    let holder = format!("0000:03:10.3: in use by process {} (viaduct)", pid.trim());
    let third = "viaduct run --kernel /lab/l2/vmlinuz --vfio 03:10.3";
    refused(l1, third, 1, &[&holder, &format!("kill {}", pid.trim())])?;
    l1.expect_unchanged(&during)?;
    for guest in guests {
        guest.type_in("true\n")?;
        guest.succeeds()?;
    }
    expect_back(l1, FIRST)?;
    expect_back(l1, SECOND)
}
