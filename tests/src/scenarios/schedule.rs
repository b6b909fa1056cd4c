//! What runs when: scenarios that want the same machine in one batch, batches side by side, the longest first; and in a run of
//! everything those that failed once more at the end, alone.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Scenario;
use super::boots::Boots;
use crate::cards::{HostKernel, Machine};
use crate::effort::Effort;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::progress::note;
use crate::report::Tally;

/// The scenarios that want one machine.
struct Batch {
    machine: Machine,
    scenarios: Vec<Scenario>,
}

impl Batch {
    /// What they may take at most, one after the other.
    fn limit(&self) -> Duration {
        self.scenarios.iter().map(|scenario| scenario.limit).sum()
    }
}

/// How scenarios are run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    /// How much each does.
    pub(crate) effort: Effort,
    /// How many L1s there are at the same time.
    pub(crate) machines: usize,
    /// Whether it is everything that is run, and nobody asked for a scenario by its name.
    pub(crate) everything: bool,
}

impl Way {
    /// An L1 keeps one processor busy and sometimes two. More than two of them want memory that a small runner does not have.
    pub(crate) fn usual_machines() -> usize {
        thread::available_parallelism().map_or(1, |cores| cores.get().min(2))
    }

    /// A run of everything is to fit into CI's 40 minutes on a fresh machine of two cores; whoever names scenarios wants them.
    fn image(self, kernel: HostKernel) -> Result<Image> {
        if self.everything && !Image::has_kernel(kernel) {
            return Err(Error::Skipped("the host's other kernel is not built yet, which takes minutes: cargo lab image --kernel iommufd".into()));
        }
        Image::ready(kernel)
    }
}

/// A run of scenarios: what is still to do, and what came of the rest.
struct Course {
    way: Way,
    dir: PathBuf,
    /// The longest last. Each has a folder of its own, by its number.
    waiting: Mutex<Vec<(usize, Batch)>>,
    tally: Mutex<Tally>,
    again: Mutex<Vec<(Machine, Scenario)>>,
}

/// Runs them all; logs are kept in `dir`.
pub(super) fn run(scenarios: Vec<Scenario>, way: Way, dir: &Path) -> Tally {
    let mut batches = batches(scenarios);
    batches.sort_by_key(Batch::limit);
    let course = Course {
        way,
        dir: dir.to_owned(),
        waiting: Mutex::new(batches.into_iter().enumerate().collect()),
        tally: Mutex::default(),
        again: Mutex::default(),
    };
    thread::scope(|scope| {
        for _ in 0..way.machines.max(1) {
            scope.spawn(|| course.work());
        }
    });
    for (number, (machine, scenario)) in locked(&course.again).drain(..).enumerate() {
        course.repeat(number, &machine, &scenario);
    }
    *locked(&course.tally)
}

fn batches(scenarios: Vec<Scenario>) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for scenario in scenarios {
        let machine = (scenario.machine)();
        match batches.iter_mut().find(|batch| batch.machine == machine) {
            Some(batch) => batch.scenarios.push(scenario),
            None => batches.push(Batch {
                machine,
                scenarios: vec![scenario],
            }),
        }
    }
    batches
}

/// More than twice what fails by accident at most, in as many scenarios as there are; they take a few minutes.
const MOST_AGAIN: usize = 16;

impl Course {
    /// Takes batches until there is none left.
    fn work(&self) {
        loop {
            let next = locked(&self.waiting).pop();
            let Some((number, batch)) = next else { return };
            self.batch(&self.dir.join(format!("batch-{number}")), batch);
        }
    }

    fn batch(&self, dir: &Path, batch: Batch) {
        let image = match self.way.image(batch.machine.kernel) {
            Ok(image) => image,
            Err(error) => return self.none_of(&batch, error),
        };
        let mut boots = Boots::new(&image, &batch.machine, dir, self.way.effort);
        for scenario in batch.scenarios {
            let start = Instant::now();
            let result = boots.run(&scenario);
            let took = start.elapsed();
            match result {
                Err(error) if self.has_another_chance(&error) => {
                    locked(&self.tally).put_off(scenario.name, took, &error);
                    locked(&self.again).push((batch.machine.clone(), scenario));
                }
                result => locked(&self.tally).count(scenario.name, took, &result),
            }
        }
    }

    fn none_of(&self, batch: &Batch, error: Error) {
        let result = Err(error);
        for scenario in &batch.scenarios {
            locked(&self.tally).count(scenario.name, Duration::ZERO, &result);
        }
    }

    /// In emulation, on a machine that two of them share, an L1 can be too slow for the drivers in it, or lose an interrupt of its
    /// timer. What fails for such a reason passes alone. What fails because of Viaduct does not, or may not: a panic is one too many,
    /// a long run is there to find what is rare, and where many fail it is no accident.
    fn has_another_chance(&self, error: &Error) -> bool {
        let text = error.to_string();
        let is_defect = ["panicked at", "defect of viaduct"]
            .iter()
            .any(|sign| text.contains(sign));
        self.way.everything
            && self.way.effort == Effort::Usual
            && !error.is_skip()
            && !is_defect
            && locked(&self.again).len() < MOST_AGAIN
    }

    /// Alone, and once more where the same accident happens alone: it does to some in a hundred.
    fn repeat(&self, number: usize, machine: &Machine, scenario: &Scenario) {
        let start = Instant::now();
        let run = |try_number: usize| {
            let dir = self.dir.join(format!("again-{number}-{try_number}"));
            let image = self.way.image(machine.kernel)?;
            Boots::new(&image, machine, &dir, self.way.effort).run(scenario)
        };
        let result = match run(0) {
            Err(error) if !error.is_skip() => {
                note(&format!("{} failed alone as well: {error}", scenario.name));
                run(1)
            }
            result => result,
        };
        locked(&self.tally).count(scenario.name, start.elapsed(), &result);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cards::Cards;

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

    #[test]
    fn scenarios_on_one_machine_are_one_batch_in_their_order() {
        let batches = batches(vec![
            scenario("a", plain, 10),
            scenario("b", with_card, 25),
            scenario("c", plain, 20),
        ]);
        let names = |batch: &Batch| -> Vec<&str> {
            batch
                .scenarios
                .iter()
                .map(|scenario| scenario.name)
                .collect()
        };
        assert_eq!(
            batches.iter().map(names).collect::<Vec<_>>(),
            [vec!["a", "c"], vec!["b"]]
        );
        assert_eq!(batches[0].limit(), Duration::from_secs(30));
    }

    #[test]
    fn only_a_run_of_everything_gives_a_second_chance_and_never_to_a_skip() {
        let course = |everything| Course {
            way: Way {
                effort: Effort::Usual,
                machines: 1,
                everything,
            },
            dir: PathBuf::new(),
            waiting: Mutex::default(),
            tally: Mutex::default(),
            again: Mutex::default(),
        };
        let failed = Error::Unexpected("not so".into());
        assert!(course(true).has_another_chance(&failed));
        assert!(!course(false).has_another_chance(&failed));
        assert!(!course(true).has_another_chance(&Error::Skipped("no card".into())));
        let panicked = Error::Unexpected("thread 'vcpu0' panicked at vcpu.rs:1".into());
        assert!(!course(true).has_another_chance(&panicked));
        let many = course(true);
        let again = (0..MOST_AGAIN).map(|_| (plain(), scenario("a", plain, 1)));
        locked(&many.again).extend(again);
        assert!(!many.has_another_chance(&failed));
        let mut thorough = course(true);
        thorough.way.effort = Effort::Thorough;
        assert!(!thorough.has_another_chance(&failed));
    }
}
