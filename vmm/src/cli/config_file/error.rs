//! Why a file cannot take the place of arguments, with its name, the line and the key.

use std::{io, path::PathBuf};

/// The file of `--config` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// It cannot be read.
    #[error("--config {}\n  name a file that can be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It says what cannot be.
    #[error("{}:{line}: {wrong}", path.display())]
    Wrong {
        /// Which.
        path: PathBuf,
        /// Where, counted from 1.
        line: usize,
        /// What.
        wrong: Wrong,
    },
}

/// What is wrong on a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// No TOML.
    #[error("{0}\n  write KEY = VALUE, and text in quotes:  memory = \"4G\"")]
    Syntax(String),
    /// No option has that name.
    #[error("'{key}' is not an option of run\n  {advice}")]
    Unknown {
        /// The name.
        key: String,
        /// What to do.
        advice: String,
    },
    /// An option that is about the file.
    #[error("'{0}' is for the command line only\n  take this line out")]
    TypedOnly(String),
    /// Neither on nor off.
    #[error("{0} is either on or off\n  write:  {0} = true")]
    Switch(String),
    /// A value of another kind.
    #[error("{0} takes what is written after --{0}, in quotes\n  write:  {0} = \"…\"")]
    NotText(String),
    /// Several values for an option that takes one.
    #[error("{0} takes one value\n  write:  {0} = \"…\"")]
    NotRepeatable(String),
    /// A value that the option does not take.
    #[error("{key}: {reason}")]
    Value {
        /// The option.
        key: String,
        /// Why not.
        reason: String,
    },
}
