//! Which function is reset how, when all of a machine's are to be and none of them is in use.
//!
//! In this order: a reset that the function has for itself; one of its bus, if that hits nobody else; its power state, down and up;
//! one of its bus and all that is there, if all of it is ours. The power state comes after the bus, unlike in the kernel's list,
//! since it is not to be relied on: that a function loses its state on the way from D3hot to D0 is only what one bit of its
//! configuration space says (PCI PM 1.2 §5.4.1: it may), and QEMU's e1000e, for one, keeps the rings it had.

use super::left::Left;
use crate::{Assignable, kernel::Affected};

/// What a function can do for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    /// A reset.
    Reset,
    /// Only the way to D3hot and back.
    PowerCycle,
    /// Nothing.
    Nothing,
}

/// A function that is to be reset.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) name: Assignable,
    pub(super) own: Own,
    /// What a reset of its bus would hit. Not looked for where its own reset does.
    pub(super) scope: Vec<Affected>,
}

/// Functions that are reset by one reset, in numbers of the list of subjects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Job {
    /// This one, by itself.
    Alone(usize),
    /// The bus of this one, and with it the others.
    Bus(usize, Vec<usize>),
}

/// What is to be done, each of the subjects in one place.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) jobs: Vec<Job>,
    pub(super) left: Vec<(usize, Left)>,
}

impl Job {
    /// The one whose reset it is, and those that have a part in it.
    pub(super) fn functions(&self) -> (usize, &[usize]) {
        match self {
            Self::Alone(function) => (*function, &[]),
            Self::Bus(function, others) => (*function, others),
        }
    }
}

/// How each of `subjects` is reset.
pub(super) fn plan(subjects: &[Subject]) -> Plan {
    let mut plan = Plan::default();
    let mut open = vec![true; subjects.len()];
    // First those that need their bus, since they may do for others.
    let needy = |subject: &Subject| subject.own == Own::Nothing;
    for (index, subject) in subjects.iter().enumerate().filter(|(_, one)| needy(one)) {
        if !open[index] {
            continue;
        }
        open[index] = false;
        match subject.obstacle() {
            Some(left) => plan.left.push((index, left)),
            None => {
                let with: Vec<usize> = (0..subjects.len())
                    .filter(|&other| open[other] && subject.hits(&subjects[other]))
                    .collect();
                with.iter().for_each(|&other| open[other] = false);
                plan.jobs.push(Job::Bus(index, with));
            }
        }
    }
    for (index, subject) in subjects.iter().enumerate().filter(|&(at, _)| open[at]) {
        plan.jobs.push(match subject.has_its_bus_for_itself() {
            true => Job::Bus(index, Vec::new()),
            false => Job::Alone(index),
        });
    }
    plan
}

impl Subject {
    /// Why a reset of its bus is not possible.
    fn obstacle(&self) -> Option<Left> {
        let foreign = self.scope.iter().filter(|one| !one.is_ours());
        let foreign: Vec<_> = foreign.cloned().collect();
        if self.scope.is_empty() {
            Some(Left::NoWay)
        } else if foreign.is_empty() {
            None
        } else {
            Some(Left::InTheWay(foreign))
        }
    }

    fn has_its_bus_for_itself(&self) -> bool {
        self.own == Own::PowerCycle && self.scope.len() == 1 && self.obstacle().is_none()
    }

    fn hits(&self, other: &Self) -> bool {
        let mut scope = self.scope.iter();
        scope.any(|one| other.name == Assignable::Function(one.function))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affected(function: &str, driver: &str, is_held: bool) -> Affected {
        Affected {
            function: function.parse().unwrap(),
            driver: Some(driver.to_owned()),
            is_bridge: false,
            is_held,
        }
    }

    fn ours(function: &str) -> Affected {
        affected(function, "vfio-pci", true)
    }

    fn subject(name: &str, own: Own, scope: &[Affected]) -> Subject {
        Subject {
            name: Assignable::Function(name.parse().unwrap()),
            own,
            scope: scope.to_vec(),
        }
    }

    #[test]
    fn a_bus_is_reset_once_for_all_that_are_on_it() {
        let scope = [ours("05:01.0"), ours("05:02.0"), ours("05:03.0")];
        let planned = plan(&[
            subject("05:03.0", Own::Reset, &[]),
            subject("05:01.0", Own::Nothing, &scope),
            subject("05:02.0", Own::Nothing, &scope),
            subject("06:00.0", Own::Reset, &[]),
        ]);
        assert_eq!(planned.jobs, [Job::Bus(1, vec![0, 2]), Job::Alone(3)]);
        assert_eq!(planned.left, []);
    }

    #[test]
    fn a_bus_with_somebody_elses_function_is_left_alone_and_told_of() {
        let foreign = affected("05:02.0", "e1000", false);
        let driverless = Affected {
            driver: None,
            ..ours("05:03.0")
        };
        let scope = [ours("05:01.0"), foreign.clone(), driverless.clone()];
        let planned = plan(&[subject("05:01.0", Own::Nothing, &scope)]);
        assert_eq!(planned.jobs, []);
        let in_the_way = Left::InTheWay(vec![foreign, driverless]);
        assert_eq!(planned.left, [(0, in_the_way)]);
    }

    #[test]
    fn a_power_cycle_gives_way_to_a_bus_reset_that_hits_nobody_else() {
        let alone = subject("06:00.0", Own::PowerCycle, &[ours("06:00.0")]);
        let shared = subject(
            "07:00.0",
            Own::PowerCycle,
            &[ours("07:00.0"), ours("07:00.1")],
        );
        let on_the_root_bus = subject("00:07.0", Own::PowerCycle, &[]);
        assert_eq!(
            plan(&[alone, shared, on_the_root_bus]).jobs,
            [Job::Bus(0, vec![]), Job::Alone(1), Job::Alone(2)]
        );
    }

    #[test]
    fn a_neighbours_bus_reset_does_for_a_power_cycle_too() {
        let scope = [ours("08:00.0"), ours("08:00.1")];
        let planned = plan(&[
            subject("08:00.1", Own::PowerCycle, &scope),
            subject("08:00.0", Own::Nothing, &scope),
        ]);
        assert_eq!(planned.jobs, [Job::Bus(1, vec![0])]);
    }

    #[test]
    fn without_any_reset_there_is_no_way() {
        let mediated = Subject {
            name: Assignable::Mediated("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001".to_owned()),
            own: Own::Nothing,
            scope: vec![],
        };
        let planned = plan(&[subject("00:07.0", Own::Nothing, &[]), mediated]);
        assert_eq!(planned.left, [(0, Left::NoWay), (1, Left::NoWay)]);
    }
}
