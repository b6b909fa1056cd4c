//! The image of the simulated host: a Debian tree, the disk made of it, and the kernels and initial file systems of L1 and
//! L2. Kept in the cache under a name that is a hash of what went into it, so it is rebuilt exactly when that changes.

mod cpio;
mod initramfs;
mod key;
mod mirror;
mod modules;
mod tree;
mod vmlinux;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result};
use crate::paths;
use crate::progress::{note, step};

pub(crate) use tree::Tree;

/// A finished image.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    tree: Tree,
    dir: PathBuf,
}

impl Image {
    /// The image for the present recipe, built if it is not in the cache.
    pub(crate) fn ready() -> Result<Self> {
        let cache = paths::cache();
        fs::create_dir_all(&cache).doing(|| format!("making the cache {}", cache.display()))?;
        let _one_builder = lock(&cache)?;
        let tree = Tree::ready(&cache)?;
        let dir = cache.join(format!("image-{}", initramfs::key(&tree)));
        let image = Self { tree, dir };
        if !image.dir.exists() {
            let what = "Making the initial file systems of L1 and L2";
            step(what, || {
                built(&image.dir, |dir| initramfs::build(&image.tree, dir))
            })?;
        }
        Ok(image)
    }

    /// The tree, and with it QEMU and the root disk.
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// L1's initial file system.
    pub(crate) fn l1_initrd(&self) -> PathBuf {
        self.dir.join("l1-initrd")
    }

    /// The folder with the guest's `vmlinuz` and `initrd`; L1 sees it as /lab/l2.
    pub(crate) fn l2(&self) -> PathBuf {
        self.dir.join("l2")
    }

    /// The kernel, of L1 and L2 alike.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.l2().join("vmlinuz")
    }
}

/// Two labs started at once must not build the same image.
fn lock(cache: &Path) -> Result<File> {
    let path = cache.join("lock");
    let file = File::create(&path).doing(|| format!("opening {}", path.display()))?;
    if file.try_lock().is_err() {
        note("waiting for another lab that is building the image");
        file.lock()
            .doing(|| format!("locking {}", path.display()))?;
    }
    Ok(file)
}

/// Builds beside the final place and renames, so that what is there is whole. What an interrupted build left is removed
/// first; the lock says that it is nobody's.
fn built(dir: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let unfinished = dir.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).doing(|| format!("removing {}", unfinished.display()))?;
    }
    fs::create_dir_all(&unfinished).doing(|| format!("making {}", unfinished.display()))?;
    build(&unfinished)?;
    fs::rename(&unfinished, dir).doing(|| format!("renaming to {}", dir.display()))
}

/// The lines of a list in `resources/`, without comments.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}
