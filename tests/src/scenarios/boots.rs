//! The boots of one machine that scenarios share: the first is for all of them, and after one that failed there is another.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use super::{Scenario, Way};
use crate::cards::Machine;
use crate::error::{Doing, Result};
use crate::host::Host;
use crate::image::Image;
use crate::log::Log;
use crate::paths;
use crate::progress::note;

/// A machine that is booted whenever a scenario finds it down.
pub(super) struct Boots<'a> {
    image: &'a Image,
    machine: &'a Machine,
    /// Where the logs are kept, those of the scenarios and those of each boot.
    dir: &'a Path,
    way: Way,
    number: u32,
    up: Option<Host>,
    /// What happened to boots, each with its cause.
    accidents: Vec<String>,
}

impl<'a> Boots<'a> {
    /// None yet.
    pub(super) fn new(image: &'a Image, machine: &'a Machine, dir: &'a Path, way: Way) -> Self {
        Self {
            image,
            machine,
            dir,
            way,
            number: 0,
            up: None,
            accidents: Vec::new(),
        }
    }

    /// How the scenario ends.
    pub(super) fn run(&mut self, scenario: &Scenario) -> Result<()> {
        let mut host = match self.up.take() {
            Some(host) => host,
            None => self.boot()?,
        };
        let result = self.run_on(&mut host, scenario);
        match result {
            Err(error) if !error.is_skip() => Err(error.beside(host.accident())),
            // A scenario that is skipped leaves its L1 as it was. A timer that is lost may be reported too late for this scenario,
            // and must not fail the next one.
            result => {
                self.up = Some(host).filter(|host| host.is_up() && host.watch().seen().is_none());
                result
            }
        }
    }

    /// The accidents of its boots.
    pub(super) fn accidents(&self) -> &[String] {
        &self.accidents
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
        if let Some(error) = host.first_boot() {
            let cause = error.to_string();
            let first_line = cause.lines().next().unwrap_or_default();
            self.accidents
                .push(format!("{first_line}; up the second time"));
        }
        Ok(host)
    }

    fn run_on(&self, host: &mut Host, scenario: &Scenario) -> Result<()> {
        let name = scenario
            .name
            .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let log = Log::create(&self.dir.join(format!("{name}.log")))?;
        let seed = self.way.seed_of(scenario.name);
        host.begin(log.clone(), scenario.limit, self.way.effort, seed);
        let host_release = self.image.host_release()?;
        let guest_release = self.image.guest_release()?;
        let kernels = format!("L1 kernel {host_release}, guest kernel {guest_release}");
        host.log("lab", &format!("seed {seed}; {kernels}"));
        let result = host.judge(watched(scenario, host));
        if let Err(error) = &result {
            log.add("lab", &error.to_string());
            if !error.is_skip() {
                note(&format!("full log: {}", log.path().display()));
            }
        }
        result
    }
}

impl Drop for Boots<'_> {
    /// Everything that ran on the L1 that is still up has passed: its logs are enough. After a failure the whole folder stays.
    fn drop(&mut self) {
        if let Some(host) = self.up.take() {
            let boot = host.dir().to_owned();
            drop(host);
            paths::keep_logs(&boot);
        }
    }
}

/// Runs it, and ends it early where the emulator has lost a timer of L1's.
fn watched(scenario: &Scenario, host: &Host) -> Result<()> {
    let watch = host.watch();
    thread::scope(|scope| {
        let (running, ended) = mpsc::channel();
        scope.spawn(move || watch.watch(&ended));
        let result = (scenario.run)(host);
        drop(running);
        result
    })
}
