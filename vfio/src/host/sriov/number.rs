//! How many virtual functions a physical one has.
//!
//! The kernel changes the number only from 0 and to 0, so another number means that all go first. Whoever uses one is asked nothing:
//! the kernel would take it away under them. So nobody may, and the journal's lock keeps it so until the new ones are there.

use std::{
    fmt, io,
    time::{Duration, Instant},
};

use devices::pci::Bdf;

use super::{PhysicalFunction, SriovError, VirtualFunction, wait::Announcements};
use crate::host::{Holder, Host, StepError, attributes::Request, journal::Journal, sysfs};

/// How to change the number.
#[derive(Debug, Clone, Copy, Default)]
pub struct NumberOptions {
    /// Whether the host's drivers take the new ones. As it was, where this is none.
    pub probe: Option<bool>,
    /// Remove also those that the host itself is using.
    pub force: bool,
}

/// A driver that takes longer to make its functions, or to be loaded, is not waited for.
const DRIVERS: Duration = Duration::from_secs(10);

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Whether drivers take new functions.
    Probe(bool),
    /// Brings the interface up, before drivers of virtual functions ask for what only a physical one that is up answers.
    Up(String),
    /// How many there are.
    Number(u32),
}

impl PhysicalFunction {
    fn steps(&self, number: u32, options: NumberOptions) -> Vec<Step> {
        let there = self.functions.len();
        let changes = u32::try_from(there) != Ok(number);
        let mut steps = Vec::new();
        let probe = options.probe.filter(|&probe| self.probe != Some(probe));
        steps.extend(probe.map(Step::Probe));
        if changes && there > 0 {
            steps.push(Step::Number(0));
        }
        if number > 0 {
            let down = self.interface.clone().filter(|_| self.up == Some(false));
            steps.extend(down.map(Step::Up));
        }
        if changes && number > 0 {
            steps.push(Step::Number(number));
        }
        steps
    }
}

/// As someone would type it.
struct Typed<'a>(Bdf, &'a Step);

impl fmt::Display for Typed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = format!("/sys/bus/pci/devices/{}", self.0);
        match self.1 {
            Step::Probe(on) => write!(f, "echo {} > {dir}/sriov_drivers_autoprobe", u8::from(*on)),
            Step::Up(interface) => write!(f, "ip link set {interface} up"),
            Step::Number(number) => write!(f, "echo {number} > {dir}/sriov_numvfs"),
        }
    }
}

impl Host {
    /// What [`Host::set_number`] would do, as commands that someone could type; none where all is as it shall be.
    pub fn number_plan(
        &self,
        physical: Bdf,
        number: u32,
        options: NumberOptions,
    ) -> Result<Vec<String>, SriovError> {
        let facts = self.physical(physical)?;
        self.check_number(&facts, number, options)?;
        let steps = facts.steps(number, options);
        let typed = steps.iter().map(|step| Typed(physical, step).to_string());
        Ok(typed.collect())
    }

    /// Makes it `number` virtual functions, and waits for them and for those drivers of theirs that there are.
    pub fn set_number(
        &self,
        physical: Bdf,
        number: u32,
        options: NumberOptions,
    ) -> Result<(), SriovError> {
        let facts = self.physical(physical)?;
        self.check_number(&facts, number, options)?;
        let mut journal = Journal::lock(self)?;
        // Again, now that nobody of ours can take one.
        let facts = self.physical(physical)?;
        self.check_number(&facts, number, options)?;
        self.refuse_owned(&facts, number, &journal)?;
        let announcements = Announcements::open();
        for step in facts.steps(number, options) {
            log::info!("{}", Typed(physical, &step));
            self.perform_number(&facts, &step)?;
            if step == Step::Number(0) {
                // Others will have their addresses, whose drivers nobody displaced.
                for gone in &facts.functions {
                    journal.forget(gone.bdf)?;
                }
            }
        }
        let made = self.wait_for_functions(physical, number, announcements.ok().as_ref())?;
        if made < number {
            return Err(SriovError::Fewer {
                physical,
                asked: number,
                made,
                driver: facts.driver,
            });
        }
        Ok(())
    }

    fn check_number(
        &self,
        facts: &PhysicalFunction,
        number: u32,
        options: NumberOptions,
    ) -> Result<(), SriovError> {
        let physical = facts.bdf;
        if number > facts.total {
            return Err(SriovError::TooMany {
                physical,
                total: facts.total,
                asked: number,
            });
        }
        for function in going(facts, number) {
            if !function.holders.is_empty() {
                let holders = function.holders.clone();
                return Err(in_use(physical, function, holders));
            }
            let dangers = self.dangers(&self.device(function.bdf)?);
            if !dangers.is_empty() && !options.force {
                return Err(SriovError::Needed {
                    physical,
                    function: function.bdf,
                    index: function.index,
                    asked: number,
                    dangers,
                });
            }
        }
        Ok(())
    }

    /// A guest that has taken one may not have opened it yet.
    fn refuse_owned(
        &self,
        facts: &PhysicalFunction,
        number: u32,
        journal: &Journal<'_>,
    ) -> Result<(), SriovError> {
        for function in going(facts, number) {
            let entry = journal.get(function.bdf);
            let owner = entry.and_then(|entry| entry.owner.as_ref());
            if let Some(owner) = owner.filter(|owner| self.is_alive(owner)) {
                let holders = vec![self.holder(owner.pid)];
                return Err(in_use(facts.bdf, function, holders));
            }
        }
        Ok(())
    }

    fn perform_number(&self, facts: &PhysicalFunction, step: &Step) -> Result<(), SriovError> {
        let physical = facts.bdf;
        let write = |attribute, number| self.write_number(physical, attribute, number);
        match step {
            Step::Up(_) => self.bring_up(&self.device(physical)?, physical).map(drop),
            Step::Probe(on) => write("sriov_drivers_autoprobe", u32::from(*on))?.map_err(|cause| {
                SriovError::Step(StepError::Refused {
                    device: physical,
                    what: "saying whether drivers take its virtual functions",
                    command: Typed(physical, step).to_string(),
                    cause,
                })
            }),
            Step::Number(number) => {
                write("sriov_numvfs", *number)?.map_err(|cause| SriovError::Number {
                    physical,
                    asked: *number,
                    driver: facts.driver.clone(),
                    cause,
                })
            }
        }
    }

    fn write_number(
        &self,
        physical: Bdf,
        attribute: &'static str,
        number: u32,
    ) -> Result<io::Result<()>, SriovError> {
        let request = Request {
            attribute: self.pci_dir(physical).join(attribute),
            text: Some(number.to_string()),
        };
        let what = "changing the number of its virtual functions";
        Ok(self.access(physical, what, request)?.map(drop))
    }

    /// How many there are once they are there, each with its driver if it has one.
    fn wait_for_functions(
        &self,
        physical: Bdf,
        number: u32,
        announcements: Option<&Announcements>,
    ) -> Result<u32, SriovError> {
        let there = || -> Vec<Bdf> {
            let sriov = self.device(physical).ok().and_then(|device| device.sriov);
            sriov.map(|sriov| sriov.functions).unwrap_or_default()
        };
        let count = || u32::try_from(there().len()).unwrap_or(u32::MAX);
        let wait = |holds: &mut dyn FnMut() -> bool| match announcements {
            Some(announcements) => {
                announcements.wait_until(Instant::now() + DRIVERS.min(self.patience), holds)
            }
            None => holds(),
        };
        wait(&mut || count() >= number);
        let has_driver = |bdf: &Bdf| self.driver_of(*bdf).is_some();
        let probes = self.physical(physical)?.probe != Some(false);
        if probes && !there().iter().all(has_driver) && self.load_drivers(&there()) {
            wait(&mut || there().iter().all(has_driver));
        }
        Ok(count())
    }

    /// Has the drivers of `functions` loaded, as the system's device manager does (which may be at it, or not be there). Whether
    /// there is one.
    fn load_drivers(&self, functions: &[Bdf]) -> bool {
        let alias = |&bdf: &Bdf| sysfs::text(&self.pci_dir(bdf).join("modalias"));
        let mut aliases: Vec<String> = functions.iter().filter_map(alias).collect();
        aliases.sort_unstable();
        aliases.dedup();
        let load = |alias: &String| self.changes.load_for(alias).is_ok();
        aliases.iter().filter(|alias| load(alias)).count() > 0
    }
}

/// The functions that have to go before there are `number` of them.
fn going(facts: &PhysicalFunction, number: u32) -> &[VirtualFunction] {
    match u32::try_from(facts.functions.len()) {
        Ok(there) if there == number => &[],
        _ => &facts.functions,
    }
}

fn in_use(physical: Bdf, function: &VirtualFunction, holders: Vec<Holder>) -> SriovError {
    SriovError::InUse {
        physical,
        function: function.bdf,
        index: function.index,
        holders,
    }
}
