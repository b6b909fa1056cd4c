//! For tests: a recorded machine, as doctor sees it.

use std::{fs, path::PathBuf};

use vfio::host::{Host, recorded};

use super::files::Files;

pub(super) struct Recorded(recorded::Recorded);

impl Recorded {
    /// A machine of which nothing is known.
    pub(super) fn new() -> Self {
        Self::of("")
    }

    /// One of the recorded machines.
    pub(super) fn of(text: &str) -> Self {
        Self(recorded::Recorded::new(text))
    }

    pub(super) fn files(&self) -> Files {
        Files::recorded(&self.path(""))
    }

    pub(super) fn host(&self) -> Host {
        self.0.host()
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.path(path)
    }

    pub(super) fn file(&self, path: &str, text: impl AsRef<[u8]>) {
        self.0.file(path, text);
    }

    pub(super) fn folder(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }
}
