//! From arguments back to a file that says the same.

use std::fmt::Write;

use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::Value;

use super::{TYPED_ONLY, is_typed};
use crate::cli::is_switch;

/// The file that stands for what `matches` has of `run`'s options, typed or from a file. What is left to its default is left out.
///
/// TOML is UTF-8: an option with a path that is not has to be typed, and is left to a comment.
pub(in crate::cli) fn text(run: &Command, matches: &ArgMatches) -> String {
    let mut file = String::new();
    for arg in run.get_arguments() {
        let (Some(key), id) = (arg.get_long(), arg.get_id().as_str()) else {
            continue;
        };
        if TYPED_ONLY.contains(&key) || !is_typed(matches, id) {
            continue;
        }
        let mut texts = matches.get_raw(id).into_iter().flatten();
        if !is_switch(arg) && texts.any(|text| text.to_str().is_none()) {
            let _ = writeln!(file, "# --{key} has to be typed: it is not UTF-8");
            continue;
        }
        let value = value(arg, matches, id);
        // Writing to a String does not fail.
        let _ = writeln!(file, "{key} = {value}");
    }
    file
}

fn value(arg: &Arg, matches: &ArgMatches, id: &str) -> Value {
    if is_switch(arg) {
        return Value::Boolean(matches.get_flag(id));
    }
    let texts = matches.get_raw(id).into_iter().flatten();
    let mut values = texts.map(|text| one(text.to_string_lossy().into_owned()));
    match arg.get_action() {
        ArgAction::Append => Value::Array(values.collect()),
        _ => values.next_back().unwrap_or(Value::String(String::new())),
    }
}

/// A number where it is written as TOML writes it, text otherwise.
fn one(text: String) -> Value {
    match text.parse::<i64>() {
        Ok(number) if number.to_string() == text => Value::Integer(number),
        _ => Value::String(text),
    }
}
