//! Reset of all functions that a machine has, while none of them is in use.

use std::{collections::BTreeMap, sync::Arc, thread};

use super::{
    own_method,
    plan::{Job, Own, Subject, plan},
    reset_alone,
};
use crate::{Assignable, assigned::AssignedFunction};

/// Resets what opening `functions` did not. They are all that a machine has, and none of them is in use.
pub fn reset_opened(functions: &[Arc<AssignedFunction>]) {
    // The others the kernel has reset, and a second time would cost another 100 ms each.
    reset(functions, |job| matches!(job, Job::Bus(..)));
}

/// Resets the devices of `functions`. They are all that a machine has, and each has been stopped (`Function::reset`).
pub fn reset_devices(functions: &[Arc<AssignedFunction>]) {
    reset(functions, |_| true);
}

fn reset(functions: &[Arc<AssignedFunction>], wanted: impl Fn(&Job) -> bool) {
    let subjects: Vec<_> = functions.iter().map(|one| subject(one)).collect();
    let plan = plan(&subjects);
    for (index, left) in &plan.left {
        let why = |name: &Assignable| left.told(name).to_string();
        functions[*index].state().not_reset(why);
    }
    let mut buses: BTreeMap<_, Vec<Job>> = BTreeMap::new();
    for job in plan.jobs.into_iter().filter(wanted) {
        let (leader, _) = job.functions();
        let jobs = buses.entry(bus(&subjects[leader].name));
        jobs.or_default().push(job);
    }
    // A bus takes a second, and one waits for none of the others.
    thread::scope(|scope| {
        for jobs in buses.values() {
            let work = || {
                jobs.iter()
                    .for_each(|job| carry_out(job, functions, &subjects))
            };
            let thread = thread::Builder::new().name("reset".to_owned());
            if thread.spawn_scoped(scope, work).is_err() {
                work();
            }
        }
    });
}

/// What is known of a function before it is reset.
fn subject(function: &AssignedFunction) -> Subject {
    let (host, name) = (function.host(), function.name().clone());
    let own = match host.can_reset() {
        false => Own::Nothing,
        true if own_method(host) == "pm" => Own::PowerCycle,
        true => Own::Reset,
    };
    let scope = match own {
        // What it needs it has.
        Own::Reset => Ok(Vec::new()),
        Own::PowerCycle | Own::Nothing => host.hot_reset_scope(),
    };
    let scope = scope.unwrap_or_else(|error| {
        log::debug!("{name}: what else is on its bus cannot be found out: {error}");
        Vec::new()
    });
    Subject { name, own, scope }
}

/// What has to be reset one after the other.
fn bus(name: &Assignable) -> Option<(u32, u8)> {
    name.function().map(|bdf| (bdf.segment, bdf.bus))
}

fn carry_out(job: &Job, functions: &[Arc<AssignedFunction>], subjects: &[Subject]) {
    let (leader, others) = job.functions();
    if let Job::Alone(_) = job {
        let function = &functions[leader];
        return reset_alone(function.host(), &mut function.state());
    }
    let method = match subjects[leader].scope.len() {
        1 => "bus",
        _ => "hot",
    };
    let reset = functions[leader].host().hot_reset();
    for &index in [leader].iter().chain(others) {
        let (function, own) = (&functions[index], subjects[index].own);
        match (&reset, own) {
            // What it can do for itself, it still can.
            (Err(_), Own::Reset | Own::PowerCycle) => {
                reset_alone(function.host(), &mut function.state());
            }
            _ => function.state().reset_ended(method, &reset),
        }
    }
}
