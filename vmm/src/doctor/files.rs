//! The files that a machine says of itself: below `/`, or below a folder that a machine is recorded in.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// A machine's files. Paths are relative to its root.
#[derive(Debug, Clone)]
pub(super) struct Files {
    root: PathBuf,
}

impl Files {
    /// Of this machine.
    pub(super) fn of_this_machine() -> Self {
        Self { root: "/".into() }
    }

    /// Of a machine recorded in a folder.
    #[cfg(test)]
    pub(super) fn recorded(root: &Path) -> Self {
        let root = root.to_owned();
        Self { root }
    }

    /// Whether it is this machine that is looked at: then it can be asked as well.
    pub(super) fn are_this_machines(&self) -> bool {
        self.root == Path::new("/")
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// The contents, trimmed. `None` if there is no such file, or it is not ours to read.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let bytes = self.bytes(path)?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    pub(super) fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.root.join(path)).ok()
    }

    /// What is in a directory, sorted; nothing if there is none.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names
    }

    /// A yes or no of the kernel's: module parameters say Y and N, or 1 and 0.
    pub(super) fn flag(&self, path: &str) -> Option<bool> {
        match self.text(path)?.as_str() {
            "Y" | "y" | "1" => Some(true),
            "N" | "n" | "0" => Some(false),
            _ => None,
        }
    }

    /// Whether a file can be opened to read and write it.
    pub(super) fn opens(&self, path: &str) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let path = self.root.join(path);
        options.read(true).write(true).open(path).map(drop)
    }

    /// A file's owner, group and mode.
    pub(super) fn owner(&self, path: &str) -> Option<(u32, u32, u32)> {
        let metadata = fs::metadata(self.root.join(path)).ok()?;
        Some((metadata.uid(), metadata.gid(), metadata.mode()))
    }
}
