//! The boots of one machine that scenarios share: the first is for all of them, and after one that failed there is another.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use super::Scenario;
use crate::cards::Machine;
use crate::effort::Effort;
use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::image::Image;
use crate::log::Log;
use crate::progress::{note, step};

/// A machine that is booted whenever a scenario finds it down.
pub(super) struct Boots<'a> {
    image: &'a Image,
    machine: &'a Machine,
    /// Where the logs are kept, those of the scenarios and those of each boot.
    dir: &'a Path,
    effort: Effort,
    number: u32,
    up: Option<Host>,
}

impl<'a> Boots<'a> {
    /// None yet.
    pub(super) fn new(
        image: &'a Image,
        machine: &'a Machine,
        dir: &'a Path,
        effort: Effort,
    ) -> Self {
        Self {
            image,
            machine,
            dir,
            effort,
            number: 0,
            up: None,
        }
    }

    /// How the scenario ends. It runs a second time if the emulator is why it failed.
    pub(super) fn run(&mut self, scenario: &Scenario) -> Result<()> {
        let result = self.attempt(scenario, watched);
        // One that has nothing to run on says so, and costs the next no boot.
        let Some(error) = result.as_ref().err().filter(|error| !is_skip(error)) else {
            return result;
        };
        let lost = self.up.take().is_some_and(|host| host.clock().is_lost());
        if !lost {
            return result;
        }
        note(&format!("{error}"));
        note("the emulator lost the timer of one of L1's processors: once more, in a new L1");
        // Not watched: a second time it is not the emulator's chance, but the scenario's own.
        let again = self.attempt(scenario, unwatched);
        if again.as_ref().is_err_and(|error| !is_skip(error)) {
            self.up = None;
        }
        again
    }

    fn attempt(
        &mut self,
        scenario: &Scenario,
        run: fn(&Scenario, &Host) -> Result<()>,
    ) -> Result<()> {
        let mut host = match self.up.take() {
            Some(host) => host,
            None => self.boot()?,
        };
        let result = self.run_on(&mut host, scenario, run);
        self.up = Some(host);
        result
    }

    fn boot(&mut self) -> Result<Host> {
        let dir = self.dir.join(format!("boot-{}", self.number));
        self.number += 1;
        fs::create_dir_all(&dir).doing(|| format!("making {}", dir.display()))?;
        step("Booting L1", || Host::boot(self.image, self.machine, &dir))
    }

    fn run_on(
        &self,
        host: &mut Host,
        scenario: &Scenario,
        run: fn(&Scenario, &Host) -> Result<()>,
    ) -> Result<()> {
        let name = scenario
            .name
            .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        // By boot too: what runs once more leaves the log of its first time.
        let file = format!("{name}.{}.log", self.number);
        let log = Log::create(&self.dir.join(file))?;
        host.begin(log.clone(), scenario.limit, self.effort);
        let result = run(scenario, host);
        if let Err(error) = &result {
            log.add("lab", &error.to_string());
            if !is_skip(error) {
                note(&format!("full log: {}", log.path().display()));
            }
        }
        result
    }
}

/// Runs it, and ends it early where the emulator has lost a timer.
fn watched(scenario: &Scenario, host: &Host) -> Result<()> {
    let clock = host.clock();
    thread::scope(|scope| {
        let (running, ended) = mpsc::channel();
        scope.spawn(move || clock.watch(&ended));
        let result = (scenario.run)(host);
        drop(running);
        result
    })
}

fn unwatched(scenario: &Scenario, host: &Host) -> Result<()> {
    (scenario.run)(host)
}

fn is_skip(error: &Error) -> bool {
    matches!(error, Error::Skipped(_))
}
