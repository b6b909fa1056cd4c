//! The scenarios: each boots real guests with real drivers in an L1 and asserts on what a person would look at. Those that
//! want the same machine share its boot, one after the other; one that fails costs the next a fresh boot, so that what it
//! left behind is nobody's trouble.

mod address_space;
mod boot;
mod boots;
pub(crate) mod cards;
mod console;
mod dma;
mod doctor;
mod drivers;
mod ending;
mod errors;
mod hands;
mod interrupts;
mod iommufd;
mod killed;
mod list;
mod mediated;
mod permissions;
mod reference;
mod refusals;
mod reset;
mod rom;
mod rounds;
mod several;
mod sriov;
mod through_iommufd;
mod vf;
mod vga;
mod virtual_devices;

use std::time::{Duration, Instant};

use self::boots::Boots;
use crate::cards::{HostKernel, Machine};
use crate::effort::Effort;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::image::Image;
use crate::paths;
use crate::report::Tally;

/// One scenario.
pub(crate) struct Scenario {
    /// A sentence that is true when it passes.
    pub(crate) name: &'static str,
    /// The machine it wants.
    pub(crate) machine: fn() -> Machine,
    /// What it may take; forty times that in a thorough run.
    pub(crate) limit: Duration,
    /// What it does.
    pub(crate) run: fn(&Host) -> Result<()>,
}

/// All of them.
fn all() -> Vec<Scenario> {
    [
        reference::scenarios(),
        hands::scenarios(),
        vf::scenarios(),
        refusals::scenarios(),
        permissions::scenarios(),
        list::scenarios(),
        sriov::scenarios(),
        doctor::scenarios(),
        drivers::scenarios(),
        several::scenarios(),
        rom::scenarios(),
        address_space::scenarios(),
        vga::scenarios(),
        ending::scenarios(),
        killed::scenarios(),
        rounds::scenarios(),
        console::scenarios(),
        dma::scenarios(),
        boot::scenarios(),
        virtual_devices::scenarios(),
        interrupts::scenarios(),
        errors::scenarios(),
        reset::scenarios(),
        cards::scenarios(),
        iommufd::scenarios(),
        mediated::scenarios(),
        through_iommufd::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Fails the scenario unless `truth` holds.
pub(crate) fn expect(truth: bool, what: &str) -> Result<()> {
    if truth {
        Ok(())
    } else {
        Err(Error::Unexpected(format!("not so: {what}")))
    }
}

/// The names that contain the filter, by machine.
fn batches(filter: &str) -> Vec<(Machine, Vec<Scenario>)> {
    let mut batches: Vec<(Machine, Vec<Scenario>)> = Vec::new();
    for scenario in all()
        .into_iter()
        .filter(|scenario| scenario.name.contains(filter))
    {
        let machine = (scenario.machine)();
        match batches.iter_mut().find(|(known, _)| *known == machine) {
            Some((_, batch)) => batch.push(scenario),
            None => batches.push((machine, vec![scenario])),
        }
    }
    batches
}

/// Whether there is any scenario for the filter: without one there is nothing to build or boot.
pub(crate) fn any(filter: &str) -> bool {
    all().iter().any(|scenario| scenario.name.contains(filter))
}

/// Runs those whose name contains the filter.
pub(crate) fn run(filter: &str, effort: Effort) -> Result<Tally> {
    let mut tally = Tally::default();
    // Without it there is nothing to tell of any scenario.
    Image::ready(HostKernel::Stock)?;
    let dir = paths::run("test")?;
    for (number, (machine, batch)) in batches(filter).into_iter().enumerate() {
        let dir = dir.join(format!("batch-{number}"));
        // A run of everything is to fit into CI's 40 minutes on a fresh machine of two cores; whoever names scenarios wants them.
        let image = if filter.is_empty() && !Image::has_kernel(machine.kernel) {
            Err(Error::Skipped("the host's other kernel is not built yet, which takes minutes: cargo lab image --kernel iommufd".into()))
        } else {
            Image::ready(machine.kernel)
        };
        match image {
            Ok(image) => {
                let mut boots = Boots::new(&image, &machine, &dir, effort);
                for scenario in batch {
                    let start = Instant::now();
                    let result = boots.run(&scenario);
                    tally.count(scenario.name, start.elapsed(), &result);
                }
            }
            Err(error) => {
                let result = Err(error);
                for scenario in batch {
                    tally.count(scenario.name, Duration::ZERO, &result);
                }
            }
        }
    }
    println!("logs: {}", dir.display());
    Ok(tally)
}
