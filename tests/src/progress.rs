//! What the lab says while it works: one line a step on stderr, with the time it took.

use std::time::Instant;

use crate::error::Result;

/// Says what is being done, does it, and says how long it took.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {what}");
    let start = Instant::now();
    let result = work();
    let verb = if result.is_ok() { "done" } else { "failed" };
    eprintln!("    {verb} in {:.1} s", start.elapsed().as_secs_f32());
    result
}

/// A remark within a step.
pub(crate) fn note(what: &str) {
    eprintln!("    {what}");
}
