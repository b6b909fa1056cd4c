//! A whole system for a guest: Debian with systemd as its init, on a disk with an ext4 file system, and the modules of the tree's
//! kernel, which has neither virtio disks nor ext4 in itself: the guest's usual initial file system mounts it (`root=/dev/vda`).
//!
//! It takes a minute to make, so it is made when somebody first asks for it.

use std::fs;
use std::path::{Path, PathBuf};

use super::debian::{self, Installation};
use super::key::Key;
use super::modules::Modules;
use super::{Tree, built, lines, succeed};
use crate::error::{Doing, Result};
use crate::progress::{note, step};

const PACKAGES: &str = include_str!("../../../resources/lab/debian.packages");
const SETUP: &str = include_str!("../../../resources/lab/debian-setup");
/// A root has the drivers that a guest has in its initial file system, and those that systemd asks for.
const MODULES: [&str; 2] = [
    include_str!("../../../resources/lab/l2.modules"),
    include_str!("../../../resources/lab/debian.modules"),
];
/// Runs the set-up within the finished tree, $1.
const HOOK: &str = "--customize-hook=chroot \"$1\" sh < \"$LAB_SETUP\"";
/// As Debian's installer makes one, with a journal and checksums: a guest that dies is to find them useful.
const DISK_OPTIONS: [&str; 6] = ["-q", "-F", "-t", "ext4", "-L", "debian"];
/// Sparse, so this is only a bound: what is installed, and half as much again for what a guest writes.
const DISK_SIZE: &str = "700M";

/// What an installation takes at its largest: the packages, what they unpack to, and the disk made of that.
const BUILD_MIB: u64 = 1024;

/// A finished system in the cache.
#[derive(Debug)]
pub(super) struct System {
    dir: PathBuf,
}

impl System {
    /// The system of the present recipe, made if it is not in the cache. The caller has the builder's lock.
    pub(super) fn ready(cache: &Path, tree: &Tree) -> Result<Self> {
        let system = Self {
            dir: Self::folder(cache, tree),
        };
        if !system.dir.exists() {
            let debian = Installation::of(PACKAGES)?;
            let what = format!("Installing a guest's {}", debian.shown());
            step(&what, || {
                built(&system.dir, BUILD_MIB, |dir| make(dir, debian, tree))
            })?;
        }
        Ok(system)
    }

    /// Its place in the cache.
    pub(super) fn folder(cache: &Path, tree: &Tree) -> PathBuf {
        let inputs = lines(PACKAGES).chain(MODULES.iter().flat_map(|list| lines(list)));
        let options = debian::OPTIONS.into_iter().chain(DISK_OPTIONS);
        let recipe = [debian::SUITE, SETUP, HOOK, DISK_SIZE, tree.key()];
        let all = inputs.chain(options).chain(recipe);
        let key = all.fold(Key::new(), |key, input| key.with(input));
        cache.join(format!("debian-{key}"))
    }

    /// Its root file system.
    pub(super) fn disk(&self) -> PathBuf {
        self.dir.join("root.img")
    }
}

fn make(dir: &Path, mut debian: Installation, tree: &Tree) -> Result<()> {
    let root = dir.join("root");
    let setup = dir.join("setup");
    fs::write(&setup, SETUP).doing(|| format!("writing {}", setup.display()))?;
    debian.command().env("LAB_SETUP", &setup).arg(HOOK);
    debian.make(&root, &dir.join("mmdebstrap.log"), |_| ())?;
    let wanted = MODULES.iter().flat_map(|list| lines(list));
    Modules::of(&tree.root())?.install(tree, wanted, &root)?;
    note("making the system's disk");
    let mut disk = tree.program("/usr/sbin/mke2fs");
    disk.env("MKE2FS_CONFIG", tree.root().join("etc/mke2fs.conf"));
    disk.args(DISK_OPTIONS).arg("-d").arg(&root);
    disk.arg(dir.join("root.img")).arg(DISK_SIZE);
    succeed(disk)?;
    // All of it is on the disk.
    fs::remove_dir_all(&root).doing(|| format!("removing {}", root.display()))
}
