//! The scenarios: each boots real guests with real drivers in an L1 and asserts on what a person would look at. Those that
//! want the same machine share its boot, one after the other; one that fails costs the next a fresh boot, so that what it
//! left behind is nobody's trouble. Different machines run side by side.

mod address_space;
mod amd;
mod boot;
mod boots;
pub(crate) mod cards;
mod console;
pub(crate) mod debian;
mod disks;
mod dma;
mod doctor;
mod drivers;
mod ending;
mod errors;
mod hands;
mod interrupts;
mod iommufd;
mod kernels;
mod killed;
mod list;
mod mediated;
mod network;
mod permissions;
mod ports;
mod prepared;
mod reading;
mod reference;
mod refusals;
mod reset;
mod rom;
mod rounds;
mod schedule;
mod several;
mod shape;
mod sriov;
mod through_iommufd;
mod vf;
mod vga;
mod virtual_devices;

use std::time::Duration;

pub(crate) use self::schedule::Way;
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

/// Those of every run.
fn usual() -> Vec<Scenario> {
    [
        reference::scenarios(),
        hands::scenarios(),
        vf::scenarios(),
        refusals::scenarios(),
        permissions::scenarios(),
        ports::scenarios(),
        prepared::scenarios(),
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
        amd::scenarios(),
        boot::scenarios(),
        shape::scenarios(),
        virtual_devices::scenarios(),
        disks::scenarios(),
        debian::scenarios(),
        network::scenarios(),
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

/// Those of a thorough run alone: a usual one has neither the time nor the downloads for them, or they hang in emulation.
fn thorough() -> Vec<Scenario> {
    [
        kernels::scenarios(),
        cards::thorough(),
        interrupts::thorough(),
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

/// Those whose name contains the filter, which is in lower case. A person who names scenarios of a thorough run wants them.
fn named(filter: &str, effort: Effort) -> Vec<Scenario> {
    let mut scenarios = usual();
    if effort == Effort::Thorough || !filter.is_empty() {
        scenarios.extend(thorough());
    }
    scenarios.retain(|scenario| scenario.name.to_lowercase().contains(filter));
    scenarios
}

/// What they are called.
pub(crate) fn names(filter: &str, effort: Effort) -> Vec<&'static str> {
    let scenarios = named(filter, effort);
    scenarios.iter().map(|scenario| scenario.name).collect()
}

/// Whether there is any scenario for the filter: without one there is nothing to build or boot.
pub(crate) fn any(filter: &str, effort: Effort) -> bool {
    !named(filter, effort).is_empty()
}

/// Runs those whose name contains the filter.
pub(crate) fn run(filter: &str, way: Way) -> Result<Tally> {
    // Without it there is nothing to tell of any scenario.
    let image = Image::ready(HostKernel::Stock, None)?;
    let dir = paths::run("test")?;
    image.announce(&dir)?;
    let tally = schedule::run(named(filter, way.effort), way, &dir);
    println!("logs: {}", dir.display());
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_of_a_thorough_run_are_run_by_a_usual_one_only_where_it_names_them() {
        let only = thorough().pop().unwrap().name;
        assert!(!names("", Effort::Usual).contains(&only));
        assert!(names("", Effort::Thorough).contains(&only));
        assert_eq!(names(&only.to_lowercase(), Effort::Usual), [only]);
    }
}
