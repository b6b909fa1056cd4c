//! What needs no L1: formatting, lints, and the unit tests of all crates. Also builds `viaduct` for the lab.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, IsTerminal};
use std::mem;
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
    let read = read_results(
        &String::from_utf8_lossy(&output.stdout),
        &String::from_utf8_lossy(&output.stderr),
    );
    for (test, reason) in &read.skips {
        println!("SKIPPED {test} ({reason})");
    }
    let Tally { passed, failed, .. } = read.tally;
    tally.add(read.tally);
    for line in &read.strays {
        tally.failed += 1;
        println!(
            "FAILED  unit tests: a skip outside of any test's output, print it with println!\n{line}"
        );
    }
    if failed > 0 {
        println!("FAILED  unit tests\n{}", read.failures);
    } else if !output.status.success() {
        tally.count("unit tests", start.elapsed(), &Err(failure(shown, &output)));
    } else {
        println!(
            "PASSED  unit tests: {passed} ({:.1} s)",
            start.elapsed().as_secs_f32()
        );
    }
    tally
}

/// The start of the line by which a test says that it cannot run here: `SKIPPED (reason)`.
const SKIP: &str = "SKIPPED (";

/// The results of all unit tests.
#[derive(Debug, Default)]
struct Results {
    tally: Tally,
    /// The tests that cannot run here, each with its reason.
    skips: Vec<(String, String)>,
    /// Skips that belong to no test.
    strays: Vec<String>,
    /// The output of the failed tests.
    failures: String,
}

/// The parts of one test program's output, in their order.
enum Part {
    Progress,
    Successes,
    Failures,
}

/// Reads the output of libtest with `--show-output`.
///
/// A test that cannot run here prints `SKIPPED (reason)` and returns. It passes for libtest and
/// counts as skipped here. libtest captures the output of each test and prints it in a section of
/// its own after the last test, so tests that run side by side do not mix. A line that was written
/// past the capture has no test to count for: it is a fault of the test.
fn read_results(stdout: &str, stderr: &str) -> Results {
    let mut results = Results::default();
    let (mut part, mut section) = (Part::Progress, "");
    // The tests of this program that are skipped. Another program may have tests of the same names.
    let mut skipped = BTreeMap::new();
    for line in stdout.lines() {
        if let Some(sum) = line.strip_prefix("test result: ") {
            let mut sum = sum_line(sum);
            sum.passed -= skipped.len();
            sum.skipped += skipped.len();
            results.tally.add(sum);
            results.skips.extend(mem::take(&mut skipped));
            (part, section) = (Part::Progress, "");
            continue;
        }
        match line {
            "successes:" => part = Part::Successes,
            "failures:" => part = Part::Failures,
            _ => {}
        }
        match part {
            Part::Progress => {
                if let Some((test, reason)) = ignored(line) {
                    results.skips.push((test.to_owned(), reason.to_owned()));
                } else if line.contains(SKIP) {
                    results.strays.push(line.to_owned());
                }
            }
            Part::Successes => {
                if let Some(test) = heading(line) {
                    section = test;
                } else if let Some(reason) = line.strip_prefix(SKIP) {
                    let reason = reason.strip_suffix(')').unwrap_or(reason).to_owned();
                    skipped.entry(section.to_owned()).or_insert(reason);
                }
            }
            Part::Failures => {
                results.failures += line;
                results.failures.push('\n');
            }
        }
    }
    let strays = stderr.lines().filter(|line| line.starts_with(SKIP));
    results.strays.extend(strays.map(str::to_owned));
    results
}

/// The name in `---- NAME stdout ----`, which opens the output of one test.
fn heading(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// The name and the reason in `test NAME ... ignored` or `test NAME ... ignored, REASON`.
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (test, result) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    Some((test, result.strip_prefix(", ").unwrap_or("ignored")))
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

    /// One program's output: a test that prints nothing of interest, one that is skipped and says
    /// so twice, one that fails.
    const PROGRAM: &str = "running 4 tests\n\
        test quiet ... ok\n\
        test kvm::runs ... ok\n\
        test kvm::fails ... FAILED\n\
        test slow ... ignored, takes an hour\n\
        \n\
        successes:\n\
        \n\
        ---- kvm::runs stdout ----\n\
        a word before\n\
        SKIPPED (/dev/kvm: Permission denied (os error 13))\n\
        SKIPPED (another reason)\n\
        \n\
        ---- quiet stdout ----\n\
        this one is not SKIPPED (it only says so)\n\
        \n\
        \n\
        successes:\n    kvm::runs\n    quiet\n\
        \n\
        failures:\n\
        \n\
        ---- kvm::fails stdout ----\n\
        SKIPPED (and fails all the same)\n\
        thread 'kvm::fails' panicked at src/kvm.rs:1:1\n\
        \n\
        \n\
        failures:\n    kvm::fails\n\
        \n\
        test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";

    fn skip(test: &str, reason: &str) -> (String, String) {
        (test.to_owned(), reason.to_owned())
    }

    #[test]
    fn a_test_that_says_it_is_skipped_counts_as_skipped_once_and_not_as_passed() {
        let read = read_results(PROGRAM, "");
        assert_eq!(read.tally, Tally::of(1, 1, 2));
        let skips = [
            skip("slow", "takes an hour"),
            skip("kvm::runs", "/dev/kvm: Permission denied (os error 13)"),
        ];
        assert_eq!(read.skips, skips);
        assert_eq!(read.strays, <[String; 0]>::default());
    }

    #[test]
    fn the_programs_of_all_crates_are_added_also_where_their_tests_have_the_same_names() {
        let read = read_results(&PROGRAM.repeat(3), "");
        assert_eq!(read.tally, Tally::of(3, 3, 6));
        assert_eq!(read.skips.len(), 6);
    }

    #[test]
    fn what_failed_tests_print_is_shown_and_nothing_else() {
        let failures = read_results(PROGRAM, "").failures;
        assert!(failures.contains("thread 'kvm::fails' panicked at src/kvm.rs:1:1"));
        assert!(!failures.contains("quiet"), "{failures}");
    }

    #[test]
    fn a_skip_past_the_capture_is_found_on_either_stream() {
        let alone = format!("test kvm::runs ... SKIPPED (no /dev/kvm)\nok\n{PROGRAM}");
        let stderr = "   Compiling vmm v0.1.0\nSKIPPED (no huge pages): ram::tests::all\n";
        let read = read_results(&alone, stderr);
        let strays = [
            "test kvm::runs ... SKIPPED (no /dev/kvm)",
            "SKIPPED (no huge pages): ram::tests::all",
        ];
        assert_eq!(read.strays, strays);
        assert_eq!(read.skips.len(), 2);
    }
}
