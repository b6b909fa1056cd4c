//! What runs when: scenarios that want the same machine in one line, which one L1 or several work off side by side; those that
//! failed by an accident of emulation once more at the end, alone.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Scenario;
use super::boots::Boots;
use crate::accident::Accident;
use crate::capacity;
use crate::cards::{Iommu, Machine};
use crate::effort::Effort;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::report::Tally;

/// How scenarios are run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    /// How much each does.
    pub(crate) effort: Effort,
    /// How many L1s there are at the same time.
    pub(crate) machines: usize,
    /// The IOMMU of the hosts that scenarios want to have one in use.
    pub(crate) iommu: Iommu,
    /// What random points are drawn from.
    pub(crate) seed: u64,
    /// Whether it is everything that is run, and no scenario was asked for by its name.
    pub(crate) everything: bool,
}

impl Way {
    /// As many L1s side by side as this machine has room for.
    pub(crate) fn usual_machines() -> usize {
        capacity::machines()
    }

    /// What a scenario's random points are drawn from: the same for its name in every run of this seed (FNV-1a).
    pub(super) fn seed_of(self, name: &str) -> u64 {
        let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        name.bytes().fold(self.seed ^ 0xcbf2_9ce4_8422_2325, fold)
    }

    /// The machine that a scenario runs on.
    fn machine(self, scenario: &Scenario) -> Machine {
        let machine = (scenario.machine)();
        match machine.iommu {
            Iommu::Intel => machine.iommu(self.iommu),
            _ => machine,
        }
    }

    /// A run of everything is to fit into CI's time on a fresh machine of two cores; a person who names scenarios wants them.
    fn image(self, machine: &Machine) -> Result<Image> {
        if self.everything && !Image::has_kernel(machine.kernel) {
            return Err(Error::Skipped("the host's other kernel is not built yet, which takes minutes: cargo lab image --kernel iommufd".into()));
        }
        Image::ready(machine.kernel, machine.guest_kernel)
    }
}

/// The scenarios that want one machine, and how many L1s work on them.
struct Line {
    machine: Machine,
    waiting: VecDeque<Scenario>,
    workers: usize,
}

impl Line {
    /// What is left may take this much at most, one after the other.
    fn left(&self) -> Duration {
        self.waiting.iter().map(|scenario| scenario.limit).sum()
    }

    /// Another L1 costs a boot. It is worth that where no other works on the line, or where two wait besides the next one of each.
    fn wants_worker(&self) -> bool {
        match self.workers {
            0 => !self.waiting.is_empty(),
            workers => self.waiting.len() >= workers + 2,
        }
    }
}

/// A run of scenarios: what is still to do, and the results so far.
struct Course {
    way: Way,
    dir: PathBuf,
    lines: Mutex<Vec<Line>>,
    tally: Mutex<Tally>,
    again: Mutex<Vec<(Machine, Scenario, Accident)>>,
}

/// Runs them all; logs are kept in `dir`.
pub(super) fn run(scenarios: Vec<Scenario>, way: Way, dir: &Path) -> Tally {
    let course = Course {
        way,
        dir: dir.to_owned(),
        lines: Mutex::new(lines(scenarios, way)),
        tally: Mutex::default(),
        again: Mutex::default(),
    };
    thread::scope(|scope| {
        for worker in 0..way.machines.max(1) {
            let course = &course;
            scope.spawn(move || course.work(worker));
        }
    });
    let again = std::mem::take(&mut *locked(&course.again));
    for (number, (machine, scenario, accident)) in again.iter().enumerate() {
        course.repeat(number, machine, scenario, *accident);
    }
    locked(&course.tally).clone()
}

fn lines(scenarios: Vec<Scenario>, way: Way) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for scenario in scenarios {
        let machine = way.machine(&scenario);
        match lines.iter_mut().find(|line| line.machine == machine) {
            Some(line) => line.waiting.push_back(scenario),
            None => lines.push(Line {
                machine,
                waiting: VecDeque::from([scenario]),
                workers: 0,
            }),
        }
    }
    lines
}

/// The line that wants another worker most: one without any before one that has some, and of those the longest.
fn most_wanting(lines: &[Line]) -> Option<usize> {
    let wanting = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.wants_worker());
    wanting
        .min_by_key(|(_, line)| (line.workers, std::cmp::Reverse(line.left())))
        .map(|(index, _)| index)
}

impl Course {
    /// Works off lines until no line wants another worker.
    fn work(&self, worker: usize) {
        for turn in 0.. {
            let mut lines = locked(&self.lines);
            let Some(index) = most_wanting(&lines) else {
                return;
            };
            lines[index].workers += 1;
            let machine = lines[index].machine.clone();
            drop(lines);
            let dir = self.dir.join(format!("l1-{worker}-{turn}"));
            self.line(&dir, &machine, || {
                locked(&self.lines)[index].waiting.pop_front()
            });
            locked(&self.lines)[index].workers -= 1;
        }
    }

    /// Runs scenarios on one machine, as long as there is a next one.
    fn line(&self, dir: &Path, machine: &Machine, mut next: impl FnMut() -> Option<Scenario>) {
        let image = match self.way.image(machine) {
            Ok(image) => image,
            Err(error) => {
                let result = Err(error);
                while let Some(scenario) = next() {
                    locked(&self.tally).count(scenario.name, Duration::ZERO, &result);
                }
                return;
            }
        };
        let mut boots = Boots::new(&image, machine, dir, self.way);
        while let Some(scenario) = next() {
            let start = Instant::now();
            match boots.run(&scenario) {
                Err(Error::Accident { accident, error }) => {
                    let error = Error::Accident { accident, error };
                    locked(&self.tally).put_off(scenario.name, start.elapsed(), &error);
                    locked(&self.again).push((machine.clone(), scenario, accident));
                }
                result => locked(&self.tally).count(scenario.name, start.elapsed(), &result),
            }
        }
        self.keep_accidents(&boots);
    }

    /// Once more and alone, with the same seed; and a last time if that is an accident again.
    fn repeat(&self, number: usize, machine: &Machine, scenario: &Scenario, accident: Accident) {
        let start = Instant::now();
        let attempt = |attempt: u32| {
            let dir = self.dir.join(format!("again-{number}-{attempt}"));
            let image = self.way.image(machine)?;
            let mut boots = Boots::new(&image, machine, &dir, self.way);
            let result = boots.run(scenario);
            self.keep_accidents(&boots);
            result
        };
        let (result, which) = match attempt(1) {
            Err(Error::Accident { .. }) => (attempt(2), "third"),
            result => (result, "second"),
        };
        let end = if result.is_ok() { "passed" } else { "failed" };
        let mut tally = locked(&self.tally);
        tally.accident(
            scenario.name,
            &format!("{accident}; {end} the {which} time"),
        );
        tally.count(scenario.name, start.elapsed(), &result);
    }

    fn keep_accidents(&self, boots: &Boots<'_>) {
        for cause in boots.accidents() {
            locked(&self.tally).accident("a boot", cause);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cards::Cards;

    const WAY: Way = Way {
        effort: Effort::Usual,
        machines: 1,
        iommu: Iommu::Intel,
        seed: 1,
        everything: true,
    };

    fn scenario(name: &'static str, machine: fn() -> Machine, limit_s: u64) -> Scenario {
        Scenario {
            name,
            machine,
            limit: Duration::from_secs(limit_s),
            run: |_| Ok(()),
        }
    }

    fn plain() -> Machine {
        Machine::with_cards(Cards::none())
    }

    fn with_card() -> Machine {
        Machine::with_cards(Cards::sriov())
    }

    fn three() -> Vec<Scenario> {
        vec![
            scenario("a", plain, 10),
            scenario("b", with_card, 25),
            scenario("c", plain, 20),
            scenario("d", plain, 1),
        ]
    }

    #[test]
    fn scenarios_on_one_machine_are_one_line_in_their_order() {
        let lines = lines(three(), WAY);
        let names = |line: &Line| -> Vec<&str> {
            line.waiting.iter().map(|scenario| scenario.name).collect()
        };
        assert_eq!(
            lines.iter().map(names).collect::<Vec<_>>(),
            [vec!["a", "c", "d"], vec!["b"]]
        );
        assert_eq!(lines[0].left(), Duration::from_secs(31));
    }

    #[test]
    fn a_worker_takes_the_longest_line_without_one_and_then_helps_where_several_wait() {
        let mut lines = lines(three(), WAY);
        assert_eq!(most_wanting(&lines), Some(0));
        lines[0].workers = 1;
        assert_eq!(most_wanting(&lines), Some(1));
        lines[1].workers = 1;
        assert_eq!(most_wanting(&lines), Some(0), "two wait besides the next");
        lines[0].waiting.pop_front();
        assert_eq!(most_wanting(&lines), None, "one is not worth a boot");
    }

    #[test]
    fn another_iommu_takes_the_place_of_the_one_in_use_and_of_no_other() {
        let amd = Way {
            iommu: Iommu::Amd,
            ..WAY
        };
        let without = scenario("a", || plain().iommu(Iommu::Absent), 1);
        assert_eq!(amd.machine(&without).iommu, Iommu::Absent);
        assert_eq!(amd.machine(&scenario("b", plain, 1)).iommu, Iommu::Amd);
    }

    #[test]
    fn a_scenarios_seed_follows_from_the_runs_and_from_its_name() {
        let other = Way { seed: 2, ..WAY };
        assert_eq!(WAY.seed_of("a"), WAY.seed_of("a"));
        assert_ne!(WAY.seed_of("a"), WAY.seed_of("b"));
        assert_ne!(WAY.seed_of("a"), other.seed_of("a"));
    }
}
