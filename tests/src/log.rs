//! The full record of a scenario: every command in L1 with what it said, every line of its guests, each with the time since
//! the scenario began.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::error::{Doing, Result};

/// A log that several writers share.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    file: Arc<Mutex<File>>,
    path: PathBuf,
    start: Instant,
}

impl Log {
    /// A new one, in place of any before it.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).doing(|| format!("making {}", path.display()))?;
        Ok(Self {
            file: Arc::new(Mutex::new(file)),
            path: path.to_owned(),
            start: Instant::now(),
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds text, each line with who said it and when.
    pub(crate) fn add(&self, who: &str, text: &str) {
        let time = self.start.elapsed().as_secs_f32();
        let lines: String = text
            .lines()
            .map(|line| format!("[{time:7.2}] {who}| {line}\n"))
            .collect();
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk must not fail a scenario whose assertions hold.
        let _ = file.write_all(lines.as_bytes());
    }
}
