//! What can go wrong in the lab, as the person at the terminal reads it: what, why, and what to type.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::accident::Accident;

/// A failure of the lab itself or of something it was asked to check.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file, directory or socket of the lab's own could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was being done to which path.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("`{command}` failed ({status})\n{tail}")]
    Program {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// The last lines it said.
        tail: String,
    },
    /// The machine lacks something; the text says what to type.
    #[error("{what}\n  {fix}")]
    Missing {
        /// What is missing and what it is needed for.
        what: String,
        /// The command that fixes it.
        fix: String,
    },
    /// L1 did not come up, or ended while it was being talked to.
    #[error("L1 {what}\n  its serial log: {log}\n{tail}")]
    Host {
        /// What happened.
        what: String,
        /// Where the whole log is.
        log: String,
        /// The log's last lines.
        tail: String,
    },
    /// Something took longer than it was given.
    #[error("{what}: not within {} s{tail}", .limit.as_secs())]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What was seen instead.
        tail: String,
    },
    /// A scenario saw something other than it should.
    #[error("{0}")]
    Unexpected(String),
    /// A program printed the sign of a defect, whatever the scenario found. Never an accident.
    #[error("{0}")]
    Defect(String),
    /// A scenario failed beside the evidence of an accident of emulation.
    #[error("{accident}\n{error}")]
    Accident {
        /// What the emulator did.
        accident: Accident,
        /// How the scenario failed.
        error: Box<Error>,
    },
    /// Not run here, for this reason.
    #[error("SKIPPED ({0})")]
    Skipped(String),
}

impl Error {
    /// Whether it is no failure: what was asked for cannot be run here.
    pub(crate) fn is_skip(&self) -> bool {
        matches!(self, Self::Skipped(_))
    }

    /// The same as the consequence of an accident, if there was one and it explains the failure.
    pub(crate) fn beside(self, accident: Option<Accident>) -> Self {
        match (self, accident) {
            (defect @ Self::Defect(_), _) => defect,
            (accident @ Self::Accident { .. }, _) => accident,
            (error, Some(accident)) => Self::Accident {
                accident,
                error: Box::new(error),
            },
            (error, None) => error,
        }
    }
}

/// The lab's result.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Names what was being done when the system said no.
pub(crate) trait Doing<T> {
    /// `what` is read as "what: why", so it names the action and the path.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: what(),
            source,
        })
    }
}

/// The last `count` lines of a text, indented for an error message.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(count);
    lines[start..]
        .iter()
        .map(|line| format!("  | {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The last lines of a file, or a note that there is none.
pub(crate) fn tail_of(path: &Path, count: usize) -> String {
    match std::fs::read(path) {
        Ok(bytes) => tail(&String::from_utf8_lossy(&bytes), count),
        Err(error) => format!("  | (no log: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_beside_evidence_is_an_accident_and_a_defect_never_is() {
        let failed = || Error::Unexpected("no lease".into());
        let stall = Some(Accident::GuestStall);
        assert!(matches!(failed().beside(None), Error::Unexpected(_)));
        assert!(matches!(failed().beside(stall), Error::Accident { .. }));
        let panicked = Error::Defect("panicked at".into());
        assert!(matches!(panicked.beside(stall), Error::Defect(_)));
    }

    #[test]
    fn tail_keeps_only_the_last_lines() {
        assert_eq!(tail("a\nb\nc", 2), "  | b\n  | c");
        assert_eq!(tail("a", 2), "  | a");
    }
}
