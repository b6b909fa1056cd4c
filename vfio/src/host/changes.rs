//! What we do to the running kernel, as opposed to what we read of it: the few operations that change something.
//!
//! They are behind a trait so that a test can make the process "die" before or after any one of them.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use super::attributes::{Attributes, Recorded, Server};

/// Everything that binding changes on a host.
pub(super) trait Changes: Send + Sync {
    /// Who reads and writes the attributes; who holds `lock` until done, where it is given.
    fn attributes(self: Arc<Self>, lock: Option<&File>) -> io::Result<Box<dyn Attributes>>;
    /// Replaces a file as a whole: after a crash there is the old one or the new one, and once this returns the new one.
    fn replace(&self, file: &Path, contents: &[u8]) -> io::Result<()>;
    /// Loads a module and what it depends on. The error's text is what the loader said.
    fn load_module(&self, name: &str) -> io::Result<()>;
    /// Loads the modules for a device's `modalias`, those left out that the host's configuration keeps from being loaded so.
    fn load_for(&self, modalias: &str) -> io::Result<()>;
}

/// The kernel that runs, or one that was recorded as directories, for which no process is started.
pub(super) struct Running {
    modprobe: Option<PathBuf>,
    /// How long a module may take.
    patience: Duration,
}

impl Running {
    pub(super) fn live() -> Self {
        Self {
            modprobe: Some("/sbin/modprobe".into()),
            // Firmware may take a minute to come; after two the kernel itself calls a process hung (hung_task_timeout_secs).
            patience: Duration::from_secs(120),
        }
    }

    pub(super) fn recorded() -> Self {
        Self {
            modprobe: None,
            patience: Duration::ZERO,
        }
    }
}

impl Changes for Running {
    fn attributes(self: Arc<Self>, lock: Option<&File>) -> io::Result<Box<dyn Attributes>> {
        if self.modprobe.is_none() {
            return Ok(Box::new(Recorded));
        }
        Ok(Box::new(Server::start(lock)?))
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
        let child = Command::new(modprobe)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let pid = child.id();
        let (ended, output) = mpsc::channel();
        // A thread that waits keeps no process from ending, as one would that is in the kernel for the module's sake.
        thread::spawn(move || ended.send(child.wait_with_output()));
        let output = output.recv_timeout(self.patience).map_err(|_| {
            io::Error::other(format!(
                "loading it has not ended after {} s: see where it is in the kernel:  cat /proc/{pid}/stack",
                self.patience.as_secs()
            ))
        })??;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(said.trim().replace('\n', "; ")))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A loader whose modules are scripts, and that is waited for so long.
    fn shell(patience: Duration) -> Running {
        Running {
            modprobe: Some("/bin/sh".into()),
            patience,
        }
    }

    fn module(script: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(script.as_bytes()).unwrap();
        file
    }

    #[test]
    fn a_module_whose_loading_does_not_end_is_not_waited_for() {
        let start = Instant::now();
        let module = module("exec sleep 20");
        let loaded = shell(Duration::from_millis(50)).load_module(module.path().to_str().unwrap());
        let error = loaded.unwrap_err().to_string();
        assert!(error.contains("has not ended"), "{error}");
        assert!(error.contains("cat /proc/"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn what_the_loader_says_is_the_error() {
        let changes = shell(Duration::from_secs(60));
        let missing = module("echo no such module >&2; exit 1");
        let error = changes.load_module(missing.path().to_str().unwrap());
        assert_eq!(error.unwrap_err().to_string(), "no such module");
        changes
            .load_module(module("exit").path().to_str().unwrap())
            .unwrap();
    }

    #[test]
    fn a_replaced_file_has_only_the_new_contents() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bindings.json");
        let changes = Running::recorded();
        changes.replace(&file, b"a longer first version").unwrap();
        changes.replace(&file, b"second").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
