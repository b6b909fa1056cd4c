//! The boots of one machine that scenarios share: the first is for all of them, and after one that failed there is another.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use super::Scenario;
use crate::cards::Machine;
use crate::effort::Effort;
use crate::error::{Doing, Result};
use crate::host::Host;
use crate::image::Image;
use crate::log::Log;
use crate::progress::note;

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

    /// How the scenario ends.
    pub(super) fn run(&mut self, scenario: &Scenario) -> Result<()> {
        let mut host = match self.up.take() {
            Some(host) => host,
            None => self.boot()?,
        };
        let result = self.run_on(&mut host, scenario);
        match &result {
            // One that has nothing to run on says so, and costs the next no boot.
            Err(error) if !error.is_skip() => {
                if host.clock().is_lost() {
                    note("the emulator lost the timer of one of L1's processors");
                }
            }
            // What its kernel says of a timer may have come too late for this one, and is no fault of the next one's.
            _ => self.up = Some(host).filter(|host| !host.clock().is_lost()),
        }
        result
    }

    fn boot(&mut self) -> Result<Host> {
        let dir = self.dir.join(format!("boot-{}", self.number));
        self.number += 1;
        fs::create_dir_all(&dir).doing(|| format!("making {}", dir.display()))?;
        let start = Instant::now();
        let host = Host::boot(self.image, self.machine, &dir)?;
        // One line, for others may be said meanwhile.
        let took = start.elapsed().as_secs_f32();
        eprintln!("==> Booted L1 in {took:.1} s: {}", dir.display());
        Ok(host)
    }

    fn run_on(&self, host: &mut Host, scenario: &Scenario) -> Result<()> {
        let name = scenario
            .name
            .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let log = Log::create(&self.dir.join(format!("{name}.log")))?;
        host.begin(log.clone(), scenario.limit, self.effort);
        let result = watched(scenario, host);
        if let Err(error) = &result {
            log.add("lab", &error.to_string());
            if !error.is_skip() {
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
