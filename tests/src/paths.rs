//! Where the lab keeps things: the cache outside the checkout, and the runs' logs in the target directory.

use std::env;
use std::path::{Path, PathBuf};

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

/// Where this run keeps its logs and what it shares with L1.
pub(crate) fn run(name: &str) -> PathBuf {
    target()
        .join("lab")
        .join(format!("{name}-{}", std::process::id()))
}
