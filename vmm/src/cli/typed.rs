//! What was typed, with what a file says in addition: one command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches, builder::ValueParser,
    error::Error as UsageError,
};

use super::{Cli, Command, ConfigFileError, config_file};

/// What was typed cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// It is no command line, or asks for help only.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// It names a file that is none of arguments.
    #[error(transparent)]
    File(#[from] ConfigFileError),
}

/// The command that `typed` says, the program's name first.
pub fn parse(typed: Vec<OsString>) -> Result<Cli, ParseError> {
    let command = command();
    let lenient = command
        .clone()
        .mut_subcommand("run", |run| run.mut_args(|arg| arg.required(false)));
    let mut all = typed.clone();
    // An error here is one of the whole as well, which says it better.
    if let Ok(matches) = lenient.clone().try_get_matches_from(&typed)
        && let Some(given) = matches.subcommand_matches("run")
        && let Some(path) = given.get_one::<PathBuf>("config")
        && let Some(run) = lenient.find_subcommand("run")
    {
        let arguments = config_file::arguments(path, run, given)?;
        // Behind the word `run`, in front of which there are switches only.
        let word = typed.iter().position(|word| word == "run").unwrap_or(0);
        all.splice(word + 1..word + 1, arguments);
    }
    let matches = command.clone().try_get_matches_from(all)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let Command::Run(args) = &mut cli.command {
        args.file = as_file(&command, &matches);
    }
    Ok(cli)
}

fn as_file(command: &clap::Command, matches: &ArgMatches) -> String {
    let run = command.find_subcommand("run");
    let both = run.zip(matches.subcommand_matches("run"));
    both.map_or(String::new(), |(run, given)| config_file::text(run, given))
}

/// The command line. The switches of `run` can also be written `=on` and `=off`, to say no to what a file says yes to.
pub(super) fn command() -> clap::Command {
    Cli::command().mut_subcommand("run", |run| {
        run.mut_args(|arg| match arg.get_action() {
            ArgAction::SetTrue => switch(arg),
            _ => arg,
        })
    })
}

fn switch(arg: Arg) -> Arg {
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .value_name("on|off")
        .default_missing_value("on")
        .default_value("off")
        .hide_default_value(true)
        .value_parser(ValueParser::new(on_or_off))
}

/// Whether `arg` of [`command`] is a switch: what may stand alone.
pub(super) fn is_switch(arg: &Arg) -> bool {
    arg.get_num_args()
        .is_some_and(|range| range.min_values() == 0)
}

fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off"),
    }
}
