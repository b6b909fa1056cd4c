//! Where the lab keeps things: the cache outside the checkout, and the runs' logs in the target directory.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs};

use crate::error::{Doing, Result};

/// How many runs' folders are kept.
const KEPT_RUNS: usize = 20;

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

/// Where this run keeps its logs and what it shares with L1. Of earlier runs the latest few stay.
pub(crate) fn run(name: &str) -> Result<PathBuf> {
    let all = target().join("lab");
    let dir = all.join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).doing(|| format!("making {}", dir.display()))?;
    prune(&all);
    Ok(dir)
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
