//! The `viaduct` command: parse, call, map to an exit status.
fn main() {}
