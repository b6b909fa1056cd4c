//! For tests: a machine recorded as files in a folder.

use std::{fs, path::PathBuf};

use super::files::Files;

pub(super) struct Recorded {
    dir: tempfile::TempDir,
}

impl Recorded {
    /// A machine of which nothing is known.
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    pub(super) fn files(&self) -> Files {
        Files::recorded(self.dir.path())
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(super) fn file(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn folder(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }
}
