//! From the text of a file to arguments.

use std::{error::Error, ffi::OsString, ops::Range};

use clap::{Arg, ArgAction, Command, error::ErrorKind};
use toml::de::{DeTable, DeValue};

use super::{TYPED_ONLY, Wrong};
use crate::cli::is_switch;

/// What a file says of one option.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting<'a> {
    /// The option, as clap knows it.
    pub(super) id: &'a str,
    /// The same as typed.
    pub(super) arguments: Vec<OsString>,
}

/// Everything that `file` says, or the first line that is wrong, and how.
pub(super) fn settings<'a>(
    file: &str,
    run: &'a Command,
) -> Result<Vec<Setting<'a>>, (usize, Wrong)> {
    let at = |span: Range<usize>, wrong| (line(file, &span), wrong);
    let table = DeTable::parse(file).map_err(|error| {
        let span = error.span().unwrap_or_default();
        at(span, Wrong::Syntax(error.message().to_owned()))
    })?;
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    // As they stand, so that the first error is the first.
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut settings = Vec::new();
    for (key, value) in entries {
        let arg = option(run, key.get_ref()).map_err(|wrong| at(key.span(), wrong))?;
        let mut arguments = Vec::new();
        for (span, text) in
            texts(arg, value.get_ref(), value.span()).map_err(|wrong| at(value.span(), wrong))?
        {
            let argument = format!("--{}={text}", key.get_ref());
            check(run, key.get_ref(), &argument).map_err(|wrong| at(span, wrong))?;
            arguments.push(argument.into());
        }
        let id = arg.get_id().as_str();
        settings.push(Setting { id, arguments });
    }
    Ok(settings)
}

/// The line on which `span` begins, counted from 1.
fn line(file: &str, span: &Range<usize>) -> usize {
    let before = file.as_bytes().iter().take(span.start);
    1 + before.filter(|byte| **byte == b'\n').count()
}

/// The option that `key` names.
fn option<'a>(run: &'a Command, key: &str) -> Result<&'a Arg, Wrong> {
    if TYPED_ONLY.contains(&key) {
        return Err(Wrong::TypedOnly(key.to_owned()));
    }
    let named = |name: &str| run.get_arguments().find(|arg| arg.get_long() == Some(name));
    named(key).ok_or_else(|| {
        let dashed = key.replace('_', "-");
        let advice = match named(&dashed) {
            Some(_) => format!("write it as it is typed:  {dashed}"),
            None => "see which there are:  viaduct run --help".to_owned(),
        };
        Wrong::Unknown {
            key: key.to_owned(),
            advice,
        }
    })
}

/// The values as they would be typed, and where each of them stands.
fn texts(
    arg: &Arg,
    value: &DeValue<'_>,
    span: Range<usize>,
) -> Result<Vec<(Range<usize>, String)>, Wrong> {
    let key = arg.get_long().unwrap_or_default().to_owned();
    if is_switch(arg) {
        return match value {
            DeValue::Boolean(true) => Ok(vec![(span, "on".to_owned())]),
            DeValue::Boolean(false) => Ok(vec![(span, "off".to_owned())]),
            _ => Err(Wrong::Switch(key)),
        };
    }
    match value {
        DeValue::Array(values) if matches!(arg.get_action(), ArgAction::Append) => {
            let one = |value: &toml::Spanned<DeValue<'_>>| {
                let text = text(value.get_ref()).ok_or_else(|| Wrong::NotText(key.clone()))?;
                Ok((value.span(), text))
            };
            values.iter().map(one).collect()
        }
        DeValue::Array(_) => Err(Wrong::NotRepeatable(key)),
        value => match text(value) {
            Some(text) => Ok(vec![(span, text)]),
            None => Err(Wrong::NotText(key)),
        },
    }
}

/// A value as it is typed.
fn text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Whether the option takes the value, which it says by itself.
fn check(run: &Command, key: &str, argument: &str) -> Result<(), Wrong> {
    match run.clone().try_get_matches_from(["run", argument]) {
        Ok(_) => Ok(()),
        // What else would have to be typed with it is looked at when everything is together.
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => Ok(()),
        Err(error) => Err(Wrong::Value {
            key: key.to_owned(),
            reason: match error.source() {
                Some(reason) => reason.to_string(),
                None => first_line(&error.to_string()),
            },
        }),
    }
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}
