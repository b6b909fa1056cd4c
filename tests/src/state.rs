//! The state of L1 that commands of Viaduct can change, to compare before and after one that must change nothing.

use crate::error::{Error, Result};
use crate::host::Host;

/// The state at one time, a line for each fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State(String);

/// Of PCI functions: driver, reservation, attributes that can be written. Of interfaces: MAC, flags (as IFF_UP), MTU, addresses, and
/// what the physical function has set for each virtual one. Then modules, the journal, device nodes with their owners, huge pages,
/// and processes of Viaduct. Not what changes by itself: link states, IPv6 addresses, counters.
const LOOK: &str = "\
    cd /sys/bus/pci/devices && stat -c %N */driver || exit; \
    grep -sH . */{driver_override,enable,reset_method,sriov_numvfs,sriov_drivers_autoprobe,d3cold_allowed,power/control}; \
    cd /sys/class/net && grep -H . */{address,flags,mtu} || exit; \
    for physical in */device/sriov_numvfs; do ip link show ${physical%%/*} | grep -w vf | sed \"s/^/${physical%%/*} /\"; done; \
    ip -4 -o addr show | awk '{ print $2, $4 }'; \
    cut -d ' ' -f 1 /proc/modules | sort | sed 's/^/module /'; \
    find /run/viaduct -printf '%p %M %u:%g\\n' 2> /dev/null | sort; cat /run/viaduct/bindings.json 2> /dev/null; echo; \
    stat -c '%n %A %U:%G' /dev/kvm /dev/vfio/* 2> /dev/null; \
    grep -H . /sys/kernel/mm/hugepages/*/nr_hugepages; \
    pgrep -ax viaduct; true";

impl State {
    /// Lines of one that are not in the other.
    fn without<'a>(&'a self, other: &'a Self, sign: &'a str) -> impl Iterator<Item = String> + 'a {
        let lines = self.0.lines();
        let only = lines.filter(|line| !other.0.lines().any(|same| same == *line));
        only.map(move |line| format!("  {sign} {line}"))
    }

    /// What has changed from this to the later one, as a diff.
    fn changes(&self, later: &Self) -> Vec<String> {
        self.without(later, "-")
            .chain(later.without(self, "+"))
            .collect()
    }
}

impl Host {
    /// The state as it is.
    pub(crate) fn state(&self) -> Result<State> {
        let state = self.sh(LOOK)?;
        if state.contains("/driver'") && state.contains("/flags:") {
            return Ok(State(state));
        }
        let what = format!("L1 has no drivers or no interfaces: {state}");
        Err(Error::Unexpected(what))
    }

    /// Fails unless the state is the same as before.
    pub(crate) fn expect_unchanged(&self, before: &State) -> Result<()> {
        let now = self.state()?;
        if now == *before {
            return Ok(());
        }
        let changes = before.changes(&now).join("\n");
        Err(Error::Unexpected(format!(
            "changed on the host:\n{changes}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_by_the_line_before_and_the_line_after() {
        let before = State("eth0 vf 1 mac a\nmodule igb\n".into());
        let later = State("eth0 vf 1 mac b\nmodule igb\nmodule tun\n".into());
        let changes = before.changes(&later);
        assert_eq!(
            changes,
            [
                "  - eth0 vf 1 mac a",
                "  + eth0 vf 1 mac b",
                "  + module tun"
            ]
        );
        assert!(before.changes(&before).is_empty());
    }
}
