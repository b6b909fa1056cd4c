//! Where the lab keeps things: the cache outside the checkout, and the runs' logs in the target directory.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs};

use crate::error::{Doing, Result};
use crate::space;

/// How many runs' folders are kept.
const KEPT_RUNS: usize = 10;
/// Space for a run: each L1 at work takes 40 MiB and its disks, and what a failed scenario ran on stays.
const RUN_MIB: u64 = 1024;

/// The cache of images: `$VIADUCT_LAB_CACHE`, else `viaduct-lab` in the user's cache directory.
pub(crate) fn cache() -> PathBuf {
    if let Some(path) = env::var_os("VIADUCT_LAB_CACHE") {
        return PathBuf::from(path);
    }
    let base = env::var_os("XDG_CACHE_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    base.unwrap_or_else(|| home().join(".cache"))
        .join("viaduct-lab")
}

/// The checkout this program was built from.
pub(crate) fn checkout() -> &'static Path {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir)
}

/// Cargo's target directory: this program lies in a profile's folder of it.
pub(crate) fn target() -> PathBuf {
    let program = env::current_exe().unwrap_or_default();
    program
        .ancestors()
        .nth(2)
        .map_or_else(|| checkout().join("target"), Path::to_path_buf)
}

/// The folders of runs.
pub(crate) fn runs() -> PathBuf {
    target().join("lab")
}

/// Where this run keeps its logs and what it shares with L1. Of earlier runs the latest few stay.
pub(crate) fn run(name: &str) -> Result<PathBuf> {
    let all = runs();
    let dir = all.join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).doing(|| format!("making {}", dir.display()))?;
    prune(&all);
    space::check(&dir, RUN_MIB, "starting the simulated host")?;
    Ok(dir)
}

/// Removes what only a running L1 needs from the folder of its boot: its disks, and in its share everything but the logs.
pub(crate) fn keep_logs(boot: &Path) {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let disks = entries(boot).filter(|entry| entry.path().extension().is_some_and(|e| e == "img"));
    let shared = entries(&boot.join("share")).filter(|entry| entry.file_name() != "logs");
    for path in disks.chain(shared).map(|entry| entry.path()) {
        // A file that cannot be removed only takes space.
        let _ = if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
    }
}

/// Removes the oldest runs, but none whose process is still there.
fn prune(all: &Path) {
    let entries = fs::read_dir(all).into_iter().flatten().flatten();
    let mut runs: Vec<(SystemTime, PathBuf)> = entries
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    runs.sort_unstable();
    let surplus = runs.len().saturating_sub(KEPT_RUNS);
    for (_, path) in runs.into_iter().take(surplus) {
        let pid = path.to_string_lossy().rsplit('-').next().map(str::to_owned);
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // A run that cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_boot_that_is_over_logs_and_command_lines_stay() {
        let dir = tempfile::tempdir().unwrap();
        let boot = dir.path();
        for path in ["share/bin", "share/l2", "share/logs"] {
            fs::create_dir_all(boot.join(path)).unwrap();
        }
        let files = [
            "nvme.img",
            "l1-serial-1.log",
            "l1-command",
            "share/bin/viaduct",
            "share/big",
            "share/logs/guest-0.log",
        ];
        for path in files {
            fs::write(boot.join(path), "").unwrap();
        }
        keep_logs(boot);
        let left: Vec<&str> = files
            .into_iter()
            .filter(|path| boot.join(path).exists())
            .collect();
        assert_eq!(
            left,
            ["l1-serial-1.log", "l1-command", "share/logs/guest-0.log"]
        );
        assert!(!boot.join("share/bin").exists());
    }
}
