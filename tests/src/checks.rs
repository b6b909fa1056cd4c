//! What needs no L1: formatting, lints, and the unit tests of all crates. Also builds `viaduct` for the lab.

use std::env;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use crate::error::{Doing, Error, Result, tail};
use crate::paths;
use crate::progress::step;
use crate::report::Tally;

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(arguments)
        .current_dir(paths::checkout())
        .stdin(Stdio::null());
    // What cargo sets for the lab itself would make every build script look changed.
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            command.env_remove(name);
        }
    }
    command
}

/// Builds the `viaduct` that L1 gets. A person sees cargo's own progress: a first build takes minutes.
pub(crate) fn build_viaduct() -> Result<()> {
    let arguments = ["build", "--release", "--package", "vmm"];
    step("Building viaduct (release)", || {
        if !io::stderr().is_terminal() {
            return passes(&arguments);
        }
        let shown = format!("cargo {}", arguments.join(" "));
        let status = cargo(&arguments).status().doing(|| shown.clone())?;
        let said = || Error::Program {
            command: shown,
            status: status.to_string(),
            tail: String::new(),
        };
        if status.success() {
            Ok(())
        } else {
            Err(said())
        }
    })
}

/// Builds the program that the guest of the lab drives hardware with, and says where it is.
pub(crate) fn build_guest_program() -> Result<PathBuf> {
    passes(&["build", "--release", "--package", "lab-guest"])?;
    Ok(paths::target().join("release/lab-guest"))
}

fn passes(arguments: &[&str]) -> Result<()> {
    let shown = format!("cargo {}", arguments.join(" "));
    let output = cargo(arguments).output().doing(|| shown.clone())?;
    if output.status.success() {
        return Ok(());
    }
    Err(failure(shown, &output))
}

fn failure(command: String, output: &Output) -> Error {
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    let tail = tail(&String::from_utf8_lossy(&said), 60);
    Error::Program {
        command,
        status: output.status.to_string(),
        tail,
    }
}

const FMT: &str = "fmt";
const CLIPPY: &str = "clippy";
const UNIT_TESTS: &str = "unit tests";

/// Those whose name contains the filter.
pub(crate) fn names(filter: &str) -> Vec<&'static str> {
    let mut names = vec![FMT, CLIPPY, UNIT_TESTS];
    names.retain(|name| name.contains(filter));
    names
}

/// Runs those whose name contains the filter.
pub(crate) fn run(filter: &str) -> Tally {
    let chosen = names(filter);
    let mut tally = Tally::default();
    let single: [(&str, &[&str]); 2] = [
        (FMT, &["fmt", "--all", "--check"]),
        (
            CLIPPY,
            &[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        ),
    ];
    for (name, arguments) in single {
        if chosen.contains(&name) {
            let start = Instant::now();
            let result = passes(arguments);
            tally.count(name, start.elapsed(), &result);
        }
    }
    if chosen.contains(&UNIT_TESTS) {
        tally.add(unit_tests());
    }
    tally
}

fn unit_tests() -> Tally {
    let start = Instant::now();
    let arguments = [
        "test",
        "--workspace",
        "--no-fail-fast",
        "--",
        "--show-output",
    ];
    let shown = format!("cargo {}", arguments.join(" "));
    let mut tally = Tally::default();
    let output = match cargo(&arguments).output().doing(|| shown.clone()) {
        Ok(output) => output,
        Err(error) => {
            tally.count("unit tests", start.elapsed(), &Err(error));
            return tally;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let (read, skips) = read_results(&text);
    for skip in skips {
        println!("SKIPPED {skip}");
    }
    if !output.status.success() && read.failed == 0 {
        tally.count("unit tests", start.elapsed(), &Err(failure(shown, &output)));
    } else if read.failed > 0 {
        println!("FAILED  unit tests\n{}", tail(&text, 80));
    } else {
        println!(
            "PASSED  unit tests: {} ({:.1} s)",
            read.passed,
            start.elapsed().as_secs_f32()
        );
    }
    tally.add(read);
    tally
}

/// Reads what libtest prints. A test that says "SKIPPED (reason)" passes for libtest, and is a skip here.
fn read_results(text: &str) -> (Tally, Vec<String>) {
    let mut tally = Tally::default();
    let (mut skips, mut name) = (Vec::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("test result: ") {
            tally.add(sum_line(rest));
        } else if let Some(rest) = line.strip_prefix("---- ") {
            name = rest.split(' ').next().unwrap_or_default().to_owned();
        } else if let Some(reason) = line.strip_prefix("SKIPPED ") {
            skips.push(format!("{name} {reason}"));
        }
    }
    let spoken = skips.len().min(tally.passed);
    tally.passed -= spoken;
    tally.skipped += spoken;
    (tally, skips)
}

/// `ok. 3 passed; 0 failed; 1 ignored; ...`
fn sum_line(line: &str) -> Tally {
    let number = |what: &str| {
        let mut words = line.split([' ', ';']).filter(|word| !word.is_empty());
        let mut before = words.next().unwrap_or_default();
        for word in words {
            if word == what {
                return before.parse().unwrap_or(0);
            }
            before = word;
        }
        0
    };
    Tally::of(number("passed"), number("failed"), number("ignored"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_crates_are_added_and_spoken_skips_counted() {
        let text = "test a ... ok\n---- a stdout ----\nSKIPPED (no /dev/kvm)\n\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
            test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let (tally, skips) = read_results(text);
        assert_eq!(tally, Tally::of(4, 1, 2));
        assert_eq!(skips, ["a (no /dev/kvm)"]);
    }
}
