//! What a guest talks to its host by, besides the network: a virtio console.

use std::time::Duration;

use super::vf::{SECOND, expect_back};
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "hvc0 is typed on, printed on and resized beside a VF, and again after a reboot",
        machine: Machine::example,
        limit: Duration::from_secs(150),
        run: console,
    }]
}

/// Its person is on hvc0: the driver is a module, so that the kernel's own console stays the serial port.
const TALK: &str = "exec </dev/hvc0 >/dev/hvc0 2>&1; echo == up; read -r word; echo heard $word; \
    until [ \"$(stty size)\" = \"$word\" ]; do sleep 0.1; done; echo == resized; \
    seq 300; lab-dhcp || exit; ping -c 3 10.0.2.2 || exit; echo == works; read -r order; eval $order";

fn console(l1: &Host) -> Result<()> {
    let mut guest = l1
        .viaduct("run --memory 256M --vfio 03:10.3 --serial null --console stdio")
        .script(TALK)
        .on_terminal()
        .start()?;
    for size in ["50 132", "24 80"] {
        guest.wait_for("== up")?;
        guest.type_in(&format!("{size}\n"))?;
        guest.wait_for(&format!("heard {size}"))?;
        let (rows, columns) = size.split_once(' ').unwrap_or_default();
        l1.sh(&format!(
            "stty -F $(readlink /proc/$(pgrep -x viaduct)/fd/0) rows {rows} cols {columns}"
        ))?;
        guest.wait_for("== resized")?;
        let printed = guest.wait_for("== works")?;
        let printed = printed.lines().filter_map(|line| line.trim().parse().ok());
        let numbers: Vec<u32> = printed.take(300).collect();
        let all: Vec<u32> = (1..=300).collect();
        expect(numbers == all, "what is printed comes whole and in order")?;
        if size == "50 132" {
            guest.type_in("reboot -f\n")?;
        }
    }
    guest.type_in("poweroff -f\n")?;
    guest.wait_for_end()?;
    let ended_well = guest.console().lines().any(|line| line == "status 0");
    expect(ended_well, "the exit status is 0")?;
    expect_back(l1, SECOND)
}
