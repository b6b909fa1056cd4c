//! `cargo lab`: the simulated host, its scenarios and the whole test run.
fn main() {}
