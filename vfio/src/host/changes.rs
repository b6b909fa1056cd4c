//! What we do to the running kernel, as opposed to what we read of it: the few operations that change something.
//!
//! They are behind a trait so that a test can make the process "die" before or after any one of them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Everything that binding changes on a host.
pub(super) trait Changes: Send + Sync {
    /// Writes an attribute, in one write.
    fn write(&self, attribute: &Path, text: &str) -> io::Result<()>;
    /// Replaces a file as a whole: after a crash there is the old one or the new one, and once this returns the new one.
    fn replace(&self, file: &Path, contents: &[u8]) -> io::Result<()>;
    /// Loads a module and what it depends on. The error's text is what the loader said.
    fn load_module(&self, name: &str) -> io::Result<()>;
    /// Loads the modules for a device's `modalias`, those left out that the host's configuration keeps from being loaded so.
    fn load_for(&self, modalias: &str) -> io::Result<()>;
}

/// The kernel that runs.
pub(super) struct Running {
    modprobe: Option<PathBuf>,
}

impl Running {
    pub(super) fn with_modprobe() -> Self {
        Self {
            modprobe: Some("/sbin/modprobe".into()),
        }
    }

    pub(super) fn without_modprobe() -> Self {
        Self { modprobe: None }
    }
}

impl Changes for Running {
    fn write(&self, attribute: &Path, text: &str) -> io::Result<()> {
        // Neither created nor truncated: an attribute that is not there is an error, not a new file.
        let mut file = OpenOptions::new().write(true).open(attribute)?;
        file.write_all(text.as_bytes())
    }

    fn replace(&self, file: &Path, contents: &[u8]) -> io::Result<()> {
        let dir = file.parent().unwrap_or(Path::new("/"));
        let new = file.with_extension("new");
        let mut out = File::create(&new)?;
        out.write_all(contents)?;
        out.sync_all()?;
        fs::rename(&new, file)?;
        // The rename is only on disk when the directory is.
        File::open(dir)?.sync_all()
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        self.modprobe(&[name])
    }

    fn load_for(&self, modalias: &str) -> io::Result<()> {
        self.modprobe(&["--use-blacklist", "--quiet", "--", modalias])
    }
}

impl Running {
    fn modprobe(&self, arguments: &[&str]) -> io::Result<()> {
        let Some(modprobe) = &self.modprobe else {
            return Err(io::Error::other("modules are not loaded here"));
        };
        let output = Command::new(modprobe)
            .args(arguments)
            .stdin(Stdio::null())
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(said.trim().replace('\n', "; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_only_the_new_contents() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bindings.json");
        let changes = Running::without_modprobe();
        changes.replace(&file, b"a longer first version").unwrap();
        changes.replace(&file, b"second").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn writing_an_attribute_that_is_not_there_makes_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let attribute = dir.path().join("driver_override");
        let error = Running::without_modprobe()
            .write(&attribute, "x")
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!attribute.exists());
    }
}
