//! Debian's kernels besides the tree's own, as the archive has them at present: what users of other releases run. Each is fetched
//! once, without the system around it, and only the kernel and its modules are kept.

use std::fs;
use std::path::{Path, PathBuf};

use super::debian::{self, Installation};
use super::key::Key;
use super::modules::{self, Modules};
use super::{Tree, built, lock, remove};
use crate::cards::DebianKernel;
use crate::error::{Doing, Error, Result};
use crate::progress::step;

/// The package that depends on a suite's present kernel.
const PACKAGE: &str = "linux-image-amd64";
/// Packages are unpacked and not configured, and of what they need only the kernel and its modules come: from /boot of older
/// releases, from beside the modules of newer ones.
const OPTIONS: [&str; 6] = [
    "--variant=extract",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--dpkgopt=path-exclude=/*",
    "--dpkgopt=path-include=/boot/vmlinuz-*",
    "--dpkgopt=path-include=/lib/modules/*",
    "--dpkgopt=path-include=/usr/lib/modules/*",
];
/// What every L1 loads is unpacked: xz is slow in emulation.
const UNPACKED: [&str; 5] = [
    "arch/x86/kvm/",
    "virt/",
    "drivers/vfio/",
    "drivers/net/ethernet/intel/igb/",
    "drivers/net/ethernet/intel/igbvf/",
];
const FOLDER: &str = "packaged-";

/// What an installation takes at its largest: the packages, and what they unpack to.
const BUILD_MIB: u64 = 1024;

/// Where a kernel comes from.
struct Origin {
    name: &'static str,
    suite: &'static str,
    /// What is taken from the suite's backports, as apt_preferences(5) names it.
    backported: Option<&'static str>,
}

impl DebianKernel {
    fn origin(self) -> Origin {
        match self {
            Self::Bookworm => Origin {
                name: "bookworm",
                suite: "bookworm",
                backported: None,
            },
            Self::Backports => Origin {
                name: "backports",
                suite: debian::SUITE,
                backported: Some("linux-*"),
            },
        }
    }
}

/// A finished kernel in the cache.
#[derive(Debug, Clone)]
pub(super) struct Packaged {
    dir: PathBuf,
    release: String,
}

impl Packaged {
    /// This kernel, fetched if it is not in the cache. Its version does not matter: only a refresh updates it, as the tree.
    pub(super) fn ready(cache: &Path, tree: &Tree, kernel: DebianKernel) -> Result<Self> {
        let origin = kernel.origin();
        let inputs = [origin.suite, origin.backported.unwrap_or_default(), PACKAGE];
        let inputs = inputs.iter().chain(&OPTIONS).chain(&UNPACKED);
        let key = inputs.fold(Key::new(), |key, input| key.with(input));
        let dir = cache.join(format!("{FOLDER}{}-{key}", origin.name));
        // Its own lock: who wants the stock kernel need not wait for it.
        let _one_builder = lock(cache, "kernel-lock")?;
        if !dir.exists() {
            let mut debian = Installation::with(origin.suite, &OPTIONS, PACKAGE)?;
            if let Some(packages) = origin.backported {
                debian.backport(packages);
            }
            let what = format!("Fetching the kernel of Debian {}", origin.name);
            step(&what, || {
                built(&dir, BUILD_MIB, |dir| make(dir, debian, tree))
            })?;
        }
        let release = Modules::of(&dir)?.release().to_owned();
        Ok(Self { dir, release })
    }

    /// The folders of all of them that are in the cache.
    pub(super) fn folders(cache: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(cache).into_iter().flatten().flatten();
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(FOLDER)
        };
        entries.map(|entry| entry.path()).filter(is_ours).collect()
    }

    /// The kernel, as a bzImage.
    pub(super) fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// What `uname -r` says of it.
    pub(super) fn release(&self) -> &str {
        &self.release
    }

    /// Its modules.
    pub(super) fn modules(&self) -> Result<Modules> {
        Modules::of(&self.dir)
    }
}

/// Fetches the packages and keeps of them `vmlinuz` and `lib/modules`, with the indexes that depmod makes when they are configured.
fn make(dir: &Path, debian: Installation, tree: &Tree) -> Result<()> {
    let root = dir.join("root");
    debian.make(&root, &dir.join("mmdebstrap.log"), |_| ())?;
    let lib = dir.join("lib");
    fs::create_dir(&lib).doing(|| format!("making {}", lib.display()))?;
    let all = first_of(["lib/modules", "usr/lib/modules"].map(|path| root.join(path)))?;
    rename(&all, &lib.join("modules"))?;
    let mut releases = fs::read_dir(lib.join("modules")).into_iter().flatten();
    let release = releases.next().and_then(std::result::Result::ok);
    let release = release.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let images = [
        root.join(format!("boot/vmlinuz-{release}")),
        lib.join(format!("modules/{release}/vmlinuz")),
    ];
    rename(&first_of(images)?, &dir.join("vmlinuz"))?;
    remove(&root)?;
    modules::index(tree, dir, &release)?;
    let modules = Modules::of(dir)?;
    let known = UNPACKED.into_iter().filter(|want| modules.has(want));
    modules.unpack_there(tree, known)
}

fn first_of(paths: [PathBuf; 2]) -> Result<PathBuf> {
    let what = format!("neither of {paths:?}");
    let mut there = paths.into_iter().filter(|path| path.exists());
    there
        .next()
        .ok_or_else(|| Error::Unexpected(format!("the kernel's packages have {what}")))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).doing(|| format!("renaming to {}", to.display()))
}
