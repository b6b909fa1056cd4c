//! Free space on disk: checked before something large is made, so that it is not a program's failure half-way that tells of it.

use std::path::Path;

use crate::error::{Doing, Error, Result};
use crate::paths;

/// Fails unless the file system of the folder has room for what is to be made there.
pub(crate) fn check(folder: &Path, needed_mib: u64, purpose: &str) -> Result<()> {
    let doing = || format!("asking for the free space of {}", folder.display());
    let answer = rustix::fs::statvfs(folder).map_err(std::io::Error::from);
    let system = answer.doing(doing)?;
    // Blocks that are not for root alone.
    let free_mib = (system.f_bavail * system.f_frsize) >> 20;
    enough(folder, free_mib, needed_mib, purpose)
}

fn enough(folder: &Path, free_mib: u64, needed_mib: u64, purpose: &str) -> Result<()> {
    if free_mib >= needed_mib {
        return Ok(());
    }
    let runs = paths::runs();
    let cache = paths::cache();
    Err(Error::Missing {
        what: format!(
            "{purpose}: {needed_mib} MiB are needed in {}, {free_mib} MiB are free",
            folder.display()
        ),
        fix: format!(
            "remove logs of earlier runs:  rm -r {}\n  or images of earlier recipes, which are rebuilt if needed:  rm -r {}/*-*\n  \
             or keep the images on another disk:  VIADUCT_LAB_CACHE=FOLDER cargo lab …",
            runs.display(),
            cache.display()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_space_is_an_error_that_says_how_much_is_missing_and_what_to_remove() {
        let error = enough(Path::new("/cache"), 700, 1500, "building the image").unwrap_err();
        let text = error.to_string();
        let parts = [
            "building the image: 1500 MiB are needed in /cache, 700 MiB are free",
            "target",
            "VIADUCT_LAB_CACHE=FOLDER",
        ];
        for part in parts {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(enough(Path::new("/cache"), 1500, 1500, "").is_ok());
    }

    #[test]
    fn a_folder_has_some_space_and_never_all() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check(dir.path(), 0, "").is_ok());
        assert!(check(dir.path(), u64::MAX, "").is_err());
        assert!(check(Path::new("/nonexistent"), 0, "").is_err());
    }
}
