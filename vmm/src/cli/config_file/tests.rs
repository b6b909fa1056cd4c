use std::{ffi::OsString, fs, path::PathBuf};

use clap::ArgAction;
use tempfile::TempDir;

use super::*;
use crate::cli::{
    Cli, Command as Subcommand, ParseError, is_switch, parse, run::RunArgs, typed::command,
};

/// What is typed, the file being `FILE` in it.
fn typed(words: &str, file: &str) -> Result<Cli, ParseError> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("guest.toml");
    fs::write(&path, file).unwrap();
    let words = words.replace("FILE", path.to_str().unwrap());
    parse(words.split_whitespace().map(OsString::from).collect())
}

fn run(words: &str, file: &str) -> RunArgs {
    match typed(words, file).unwrap().command {
        Subcommand::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

/// What is said of a file, without the folder that it is in.
fn wrong(file: &str) -> String {
    match typed("viaduct run --config FILE", file) {
        Err(ParseError::File(error)) => {
            let text = error.to_string();
            text.rsplit_once("/guest.toml")
                .map_or(text.clone(), |(_, rest)| rest.to_owned())
        }
        other => panic!("{other:?}"),
    }
}

const FILE: &str = r#"
kernel = "vmlinuz"
cmdline = 'console=ttyS0 root="/dev/vda"'
cpus = 4
memory = "1G,prefault=off"
disk = [
    "a.img",        # the system
    "b.img,readonly",
]
no-reboot = true
"#;

#[test]
fn a_file_says_what_could_have_been_typed() {
    let args = run("viaduct run --config FILE", FILE);
    assert_eq!(args.kernel, PathBuf::from("vmlinuz"));
    assert_eq!(args.cmdline, "console=ttyS0 root=\"/dev/vda\"");
    assert_eq!(args.memory.size_bytes, 1 << 30);
    assert_eq!(args.disk.len(), 2);
    assert!(args.disk[1].is_readonly && args.no_reboot && !args.rng);
}

#[test]
fn what_is_typed_counts_and_the_rest_is_the_files() {
    let words = "viaduct -v run --memory 512M --config FILE --disk c.img --no-reboot=off --rng";
    let args = run(words, FILE);
    assert_eq!(args.memory.size_bytes, 512 << 20);
    assert_eq!(args.disk.len(), 1);
    assert!(!args.no_reboot && args.rng);
    assert_eq!(args.kernel, PathBuf::from("vmlinuz"));
}

#[test]
fn the_file_of_a_command_line_is_the_same_command_line() {
    let first = run("viaduct run --config FILE --rng --name 7 --dry-run", FILE);
    let again = run("viaduct run --config FILE --dry-run", &first.file);
    assert_eq!(first.file, again.file);
    assert_eq!(
        first.file,
        "kernel = \"vmlinuz\"\ncmdline = 'console=ttyS0 root=\"/dev/vda\"'\ncpus = 4\nmemory = \"1G,prefault=off\"\n\
         disk = [\"a.img\", \"b.img,readonly\"]\nrng = true\nno-reboot = true\nname = 7\n"
    );
    assert_eq!(format!("{:?}", first.disk), format!("{:?}", again.disk));
}

#[test]
fn every_option_of_run_can_be_in_a_file() {
    let command = command();
    let run = command.find_subcommand("run").unwrap();
    let mut seen = 0;
    for arg in run.get_arguments() {
        let key = arg.get_long().unwrap();
        if TYPED_ONLY.contains(&key) {
            continue;
        }
        let value = match arg.get_action() {
            _ if is_switch(arg) => "true",
            ArgAction::Append => "[]",
            ArgAction::Set => "{}",
            action => panic!("{key}: a file cannot say {action:?}"),
        };
        let found = settings(&format!("{key} = {value}"), run);
        match value {
            // The options that take text know their own, and that a table is none.
            "{}" => assert_eq!(found, Err((1, Wrong::NotText(key.to_owned())))),
            _ => assert_eq!(found.unwrap()[0].id, arg.get_id().as_str()),
        }
        seen += 1;
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn an_error_names_the_file_the_line_and_the_key() {
    let memory = wrong("\n\nkernel = \"a\"\nmemory = \"lots\"\n");
    assert!(
        memory.starts_with(":4: memory: 'lots' is not a size"),
        "{memory}"
    );
    let disk = wrong("disk = [\n  \"a\",\n  \"b,what\",\n]\n");
    assert!(
        disk.starts_with(":3: disk: 'what' is not an option of --disk"),
        "{disk}"
    );
    let syntax = wrong("kernel = \"a\"\nmemory = 4G\n");
    assert!(
        syntax.starts_with(":2: ") && syntax.contains("in quotes"),
        "{syntax}"
    );
    assert!(wrong("a = 1\n").starts_with(":1: 'a' is not an option of run"));
    assert!(wrong("no_reboot = true").contains("no-reboot"));
    assert!(wrong("rng = \"yes\"").contains("rng = true"));
    assert!(wrong("kernel = [\"a\"]").contains("takes one value"));
    assert!(wrong("kernel = true").contains("in quotes"));
    assert!(wrong("config = \"b\"").contains("command line only"));
    assert!(wrong("cpus = 0").starts_with(":1: cpus: "));
    let absent = parse(
        ["viaduct", "run", "--config", "/nonesuch"]
            .map(OsString::from)
            .to_vec(),
    );
    let Err(ParseError::File(absent @ ConfigFileError::Read { .. })) = absent else {
        panic!("{absent:?}");
    };
    assert!(absent.to_string().starts_with("--config /nonesuch\n"));
}

#[test]
fn what_neither_says_is_asked_for() {
    assert!(matches!(
        typed("viaduct run --config FILE", "cpus = 2"),
        Err(ParseError::Usage(_))
    ));
}

#[test]
fn the_sample_is_a_file_that_can_be_run() {
    let sample = include_str!("../../../../resources/guest.toml");
    let args = run("viaduct run --config FILE", sample);
    assert_eq!((args.cpus.pin.len(), args.vfio.len()), (4, 1));
    assert!(args.rng && !args.no_reboot);
}

#[test]
fn no_damage_to_a_file_is_more_than_an_error() {
    let command = command();
    let run = command.find_subcommand("run").unwrap();
    let mut refused = 0;
    for at in 0..FILE.len() {
        for change in ["", "\"", "=", "[", "{", "\n", "\u{0}", "é", "."] {
            let damaged = format!("{}{change}{}", &FILE[..at], &FILE[at + 1..]);
            match settings(&damaged, run) {
                Ok(_) => {}
                Err((line, _)) => {
                    assert!(line <= damaged.matches('\n').count() + 1);
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > FILE.len(), "{refused}");
}
