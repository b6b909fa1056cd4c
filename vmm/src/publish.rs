//! Files that others find whole or not at all: they are written beside their place, and then put there.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Whether a file can be put to `path`. Leaves nothing there.
pub(crate) fn check(path: &Path) -> io::Result<()> {
    let new = unpublished(path);
    fs::write(&new, [])?;
    fs::remove_file(&new)
}

/// Puts what `write` writes to `path`, which only the owner can read if `is_private`. If that fails nothing is left of it.
pub(crate) fn publish<E: From<io::Error>>(
    path: &Path,
    is_private: bool,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let new = unpublished(path);
    let mode = if is_private { 0o600 } else { 0o666 };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    let mut file = options.open(&new)?;
    let written = write(&mut file).and_then(|()| Ok(fs::rename(&new, path)?));
    if written.is_err() {
        // The other error says more.
        let _ = fs::remove_file(&new);
    }
    written
}

/// Where a file is until it is whole.
fn unpublished(path: &Path) -> PathBuf {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    new.into()
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_file_is_there_whole_or_as_it_was_and_others_cannot_read_a_private_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        check(&path).unwrap();
        assert!(!path.exists());
        publish(&path, true, |file| file.write_all(b"one")).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let failed = publish(&path, true, |file| {
            file.write_all(b"tw")?;
            Err(io::Error::other("no more"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(dir.path().read_dir().unwrap().count(), 1, "nothing is left");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_found_before() {
        let dir = tempfile::tempdir().unwrap();
        check(&dir.path().join("none/file")).unwrap_err();
    }
}
