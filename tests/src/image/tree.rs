//! The Debian tree that everything is taken from: QEMU for the runner, L1's root disk, L2's kernel and tools. Made by
//! mmdebstrap; its programs run on the runner through the tree's own dynamic loader, so that neither a chroot nor the
//! runner's libraries are needed for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use super::debian::{self, Installation};
use super::key::Key;
use super::versions::Packages;
use super::{built, lines, remove, succeed};
use crate::error::{Doing, Result};
use crate::progress::{note, step};

const PACKAGES: &str = include_str!("../../../resources/lab/packages");
/// Those of them, and of what they need, that the release itself has too old.
const BACKPORTED: &str = "qemu-* seabios ipxe-qemu";
/// What every L1 loads, decompressed: xz is slow in emulation.
const UNPACK_MODULES: &str = "--customize-hook=chroot \"$1\" sh -ec 'cd /usr/lib/modules/*/kernel; \
     find arch/x86/kvm virt drivers/vfio drivers/crypto/ccp drivers/net/ethernet/intel/igb* \
     -name \"*.xz\" | xargs xz -d; depmod \"$(ls /usr/lib/modules)\"'";
/// How the root disk is made of the tree. Sparse, so its size is only a bound.
const DISK_OPTIONS: [&str; 10] = [
    "-q",
    "-F",
    "-t",
    "ext4",
    "-O",
    "^has_journal,^metadata_csum",
    "-m",
    "0",
    "-L",
    "lab-root",
];
const DISK_SIZE: &str = "1500M";

/// What an installation takes at its largest: the packages, what they unpack to, and the disk made of that.
const BUILD_MIB: u64 = 1536;

/// A finished tree in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    dir: PathBuf,
    key: String,
    packages: Packages,
}

impl Tree {
    /// The tree for the present list of packages, made if it is not in the cache.
    pub(super) fn ready(cache: &Path) -> Result<Self> {
        if let Some(tree) = Self::cached(cache)? {
            return Ok(tree);
        }
        install(&Self::folder(cache))?;
        Self::open(Self::folder(cache))
    }

    /// The tree for the present list of packages, if it is in the cache. How old its packages are does not matter: nothing but
    /// `renew` updates them, so that a run needs no network.
    pub(super) fn cached(cache: &Path) -> Result<Option<Self>> {
        let dir = Self::folder(cache);
        dir.exists().then(|| Self::open(dir)).transpose()
    }

    fn folder(cache: &Path) -> PathBuf {
        let key = debian::OPTIONS
            .iter()
            .chain([&UNPACK_MODULES, &BACKPORTED])
            .chain(&DISK_OPTIONS)
            .fold(Key::new(), |key, option| key.with(option));
        let key = lines(PACKAGES).fold(key.with(debian::SUITE).with(DISK_SIZE), |key, name| {
            key.with(name)
        });
        cache.join(format!("tree-{key}"))
    }

    fn open(dir: PathBuf) -> Result<Self> {
        let path = status(&dir);
        let text = fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))?;
        let packages = Packages::parse(&text);
        let recipe = dir.file_name().unwrap_or_default();
        let key = Key::new().with(recipe.as_encoded_bytes());
        Ok(Self {
            key: key.with(packages.list()).to_string(),
            dir,
            packages,
        })
    }

    /// Installs the tree again and puts it in the place of this one, which no process may be using.
    pub(super) fn renew(self) -> Result<()> {
        let [new, old] = ["new", "old"].map(|name| self.dir.with_extension(name));
        for left in [&new, &old].into_iter().filter(|left| left.exists()) {
            remove(left)?;
        }
        install(&new)?;
        let moved = fs::rename(&self.dir, &old).and_then(|()| fs::rename(&new, &self.dir));
        moved.doing(|| format!("replacing {}", self.dir.display()))?;
        remove(&old)
    }

    /// The name of this tree, of its recipe and its packages, for the keys of what is made from it.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// What is installed in it.
    pub(super) fn packages(&self) -> &Packages {
        &self.packages
    }

    /// When it was installed.
    pub(super) fn installed(&self) -> Result<SystemTime> {
        let path = status(&self.dir);
        let time = fs::metadata(&path).and_then(|metadata| metadata.modified());
        time.doing(|| format!("asking for the age of {}", path.display()))
    }

    /// The tree's root folder.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The tree as a disk with an ext4 file system.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join("root.img")
    }

    /// A program of the tree, to be run on the runner.
    pub(crate) fn program(&self, path: &str) -> Command {
        self.program_as(path, path.rsplit('/').next().unwrap_or(path))
    }

    /// The same under another name, for programs that go by it.
    pub(crate) fn program_as(&self, path: &str, name: &str) -> Command {
        program(&self.root(), path, name)
    }
}

/// What dpkg knows of a tree's packages.
fn status(tree: &Path) -> PathBuf {
    tree.join("root/var/lib/dpkg/status")
}

fn install(dir: &Path) -> Result<()> {
    let debian = Installation::of(PACKAGES)?;
    let what = format!("Installing {}", debian.shown());
    step(&what, || built(dir, BUILD_MIB, |dir| make(dir, debian)))
}

fn program(root: &Path, path: &str, name: &str) -> Command {
    let mut command = Command::new(root.join("lib64/ld-linux-x86-64.so.2"));
    command.arg("--argv0").arg(name);
    command
        .arg("--library-path")
        .arg(root.join("usr/lib/x86_64-linux-gnu"));
    command.arg(root.join(path.trim_start_matches('/')));
    command
}

fn make(dir: &Path, mut debian: Installation) -> Result<()> {
    let root = dir.join("root");
    debian.command().arg(UNPACK_MODULES);
    debian.backport(BACKPORTED);
    debian.make(&root, &dir.join("mmdebstrap.log"), |_| ())?;
    note("making the root disk");
    let mut disk = program(&root, "/usr/sbin/mke2fs", "mke2fs");
    disk.env("MKE2FS_CONFIG", root.join("etc/mke2fs.conf"));
    disk.args(DISK_OPTIONS)
        .arg("-d")
        .arg(&root)
        .arg(dir.join("root.img"))
        .arg(DISK_SIZE);
    succeed(disk)
}
