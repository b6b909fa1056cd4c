//! `run --config FILE.toml`: the arguments of `run` in a file (TOML 1.0), under the names that they have on the command line.
//!
//! There is one description of the options, clap's. A file is turned into the arguments that a person could have typed in its place,
//! and each of them is looked at by itself first, since only here is it known which line it stands on.

mod error;
mod settings;
#[cfg(test)]
mod tests;
mod text;

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    path::Path,
};

use clap::{ArgMatches, Command, parser::ValueSource};

pub use self::error::{ConfigFileError, Wrong};
use self::settings::settings;
pub(super) use self::text::text;

/// What a file cannot say: that there is a file, and that nothing is to be done with what it says.
const TYPED_ONLY: [&str; 2] = ["config", "dry-run"];

/// The arguments that the file at `path` stands for, without those of options that were typed, which count instead. `run` describes
/// the options, none of which may be required.
pub(super) fn arguments(
    path: &Path,
    run: &Command,
    typed: &ArgMatches,
) -> Result<Vec<OsString>, ConfigFileError> {
    let file = read(path).map_err(|source| ConfigFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    let settings = settings(&file, run).map_err(|(line, wrong)| ConfigFileError::Wrong {
        path: path.to_owned(),
        line,
        wrong,
    })?;
    let mut arguments = Vec::new();
    for setting in settings {
        if !is_typed(typed, setting.id) {
            arguments.extend(setting.arguments);
        }
    }
    Ok(arguments)
}

/// A file of its kind and size, so that nothing else is waited for or taken into memory.
fn read(path: &Path) -> io::Result<String> {
    /// Some ten thousand options.
    const MOST: u64 = 1 << 20;
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = String::new();
    file.take(MOST + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MOST {
        true => Err(io::Error::other("it has more than a MiB")),
        false => Ok(text),
    }
}

fn is_typed(matches: &ArgMatches, id: &str) -> bool {
    matches.value_source(id) == Some(ValueSource::CommandLine)
}
