//! A device that reports an error that the hardware cannot correct (AER, PCIe 6.0 §6.2).

use std::time::Duration;

use serde_json::json;

use super::interrupts::machine;
use super::{Scenario, expect};
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "a device that reports an error ends its guest with the reason, and goes back",
        machine,
        limit: Duration::from_secs(120),
        run: reported,
    }]
}

/// A virtio-rng behind a port of its own, which QEMU calls `failing`.
const DEVICE: &str = "0000:02:00.0";

/// Of the device and its port: that errors are messages on the way up, and system errors for who has no such messages. It is firmware
/// that sets this on a real machine; a driver may as well.
const REPORTING: &str = "for f in 02:00.0 00:03.0; do setpci -s $f COMMAND=100:100 CAP_EXP+8.w=f:f; done; \
    setpci -s 00:03.0 BRIDGE_CONTROL=2:2";

fn reported(l1: &Host) -> Result<()> {
    let before = l1.bindings()?;
    l1.sh("dmesg --clear")?;
    let mut guest = l1
        .viaduct("run --memory 256M --vfio 02:00.0,addr=06")
        .script("dd if=/dev/hwrng of=/dev/null bs=16 count=1 2>&1; echo == up; sleep 100")
        .start()?;
    let said = guest.wait_for("== up")?;
    expect(said.contains("1+0 records in"), "the device works")?;
    l1.sh(REPORTING)?;
    let inject = json!({ "command-line": "pcie_aer_inject_error failing COMP_TIME" });
    l1.monitor("human-monitor-command", &inject)?;
    expect(guest.wait_for_end()? == 1, "the guest ends with status 1")?;
    let why = format!("{DEVICE} reported an error that it cannot correct");
    expect(guest.errors().contains(&why), &why)?;
    // What it says to type.
    let which = l1.sh(&format!("dmesg | grep -e AER -e {DEVICE}"))?;
    expect(which.contains("CmpltTO"), "the host's kernel says which")?;
    expect(l1.bindings()? == before, "the device is back on its driver")
}
