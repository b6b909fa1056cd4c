//! The Debian tree that everything is taken from: QEMU for the runner, L1's root disk, L2's kernel and tools. Made by
//! mmdebstrap; its programs run on the runner through the tree's own dynamic loader, so that neither a chroot nor the
//! runner's libraries are needed for them.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::debian::{self, Installation};
use super::key::Key;
use super::{built, lines, succeed};
use crate::error::Result;
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

/// A finished tree in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    dir: PathBuf,
    key: String,
}

impl Tree {
    /// The tree for the present list of packages, made if it is not in the cache.
    pub(super) fn ready(cache: &Path) -> Result<Self> {
        let key = debian::OPTIONS
            .iter()
            .chain([&UNPACK_MODULES, &BACKPORTED])
            .chain(&DISK_OPTIONS)
            .fold(Key::new(), |key, option| key.with(option));
        let key = lines(PACKAGES).fold(key.with(debian::SUITE).with(DISK_SIZE), |key, name| {
            key.with(name)
        });
        let tree = Self {
            dir: cache.join(format!("tree-{key}")),
            key: key.to_string(),
        };
        if !tree.dir.exists() {
            let debian = Installation::of(PACKAGES)?;
            let what = format!("Installing {}", debian.shown());
            step(&what, || built(&tree.dir, |dir| make(dir, debian)))?;
        }
        Ok(tree)
    }

    /// The name of this tree, for the keys of what is made from it.
    pub(super) fn key(&self) -> &str {
        &self.key
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
