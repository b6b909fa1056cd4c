//! The demonstration: a guest with an assigned VF that has an address. With a terminal a person sits at its console; without
//! one the guest pings through the VF and powers off.

use crate::error::{Error, Result};
use crate::guest::Plan;
use crate::host::Host;
use crate::progress::note;
use crate::terminal::{self, Leave};

const DEVICE: &str = "03:10.3";
const UNATTENDED: &str = "lab-dhcp && ping -c 3 10.0.2.2";

/// Runs it in this L1.
pub(crate) fn run(mut host: Host) -> Result<i32> {
    if terminal::is_interactive() {
        attended(&mut host)
    } else {
        unattended(&host)
    }
}

/// The guest of the demonstration. The lab's own test of itself has the reference VMM run it.
fn plan(host: &Host) -> Result<Plan<'_>> {
    if std::env::var("VIADUCT_LAB_VMM").is_ok_and(|vmm| vmm == "qemu") {
        let address = format!("0000:{DEVICE}");
        host.bind_to_vfio(&address)?;
        return Ok(host.reference(2, "512M", &[&address]));
    }
    Ok(host.viaduct(&format!(
        "run --cpus 2 --memory 512M --vfio {DEVICE},addr=06"
    )))
}

fn show(command: &str) {
    note(&format!(
        "In L1, which has an SR-IOV card with a virtual function at {DEVICE}:"
    ));
    eprintln!("\n    {command}\n");
}

fn attended(host: &mut Host) -> Result<i32> {
    let command = plan(host)?.command()?;
    show(&command);
    note(
        "You will be at the guest's console. `poweroff` there, or Ctrl-C, ends the demonstration.",
    );
    terminal::run_on(host, &command, Leave::CtrlC)
}

fn unattended(host: &Host) -> Result<i32> {
    let plan = plan(host)?.script(UNATTENDED).shown();
    show(&plan.command()?);
    let console = plan.start()?.succeeds()?;
    if console.contains(" 0% packet loss") {
        note("The guest had an address on its VF, pinged through it, and powered off.");
        return Ok(0);
    }
    Err(Error::Unexpected("the guest's ping lost packets".into()))
}
