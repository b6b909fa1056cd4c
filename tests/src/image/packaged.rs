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

/// Fetches the packages and keeps their kernel and modules, with the indexes that depmod makes when they are configured.
fn make(dir: &Path, debian: Installation, tree: &Tree) -> Result<()> {
    let root = dir.join("root");
    debian.make(&root, &dir.join("mmdebstrap.log"), |_| ())?;
    let release = keep(&root, dir)?;
    remove(&root)?;
    modules::index(tree, dir, &release)?;
    let modules = Modules::of(dir)?;
    let known = UNPACKED.into_iter().filter(|want| modules.has(want));
    modules.unpack_there(tree, known)
}

/// Moves the kernel and its modules from where their packages have them to `vmlinuz` and `lib/modules` in a folder. Returns the
/// kernel's release.
fn keep(root: &Path, dir: &Path) -> Result<String> {
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
    Ok(release)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(files: &[&str]) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for file in files.iter().map(|file| root.join(file)) {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let release = keep(&root, dir.path())?;
        assert!(dir.path().join("vmlinuz").exists());
        let modules = format!("lib/modules/{release}/kernel/net/vf.ko");
        assert!(dir.path().join(modules).exists());
        Ok(release)
    }

    #[test]
    fn a_kernel_is_found_where_packages_of_either_age_have_it() {
        let old = ["boot/vmlinuz-6.1", "lib/modules/6.1/kernel/net/vf.ko"];
        assert_eq!(kept(&old).unwrap(), "6.1");
        let modules = "usr/lib/modules";
        let new = ["vmlinuz", "kernel/net/vf.ko"].map(|file| format!("{modules}/7.3/{file}"));
        assert_eq!(kept(&[&new[0], &new[1]]).unwrap(), "7.3");
    }

    #[test]
    fn packages_without_a_kernel_or_without_modules_are_an_error() {
        assert!(kept(&["lib/modules/6.1/kernel/net/vf.ko"]).is_err());
        assert!(kept(&["boot/vmlinuz-6.1"]).is_err());
    }

    #[test]
    fn a_refresh_finds_the_fetched_kernels_and_nothing_else_of_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        for name in ["packaged-bookworm-1", "tree-1", "image-1"] {
            fs::create_dir(cache.path().join(name)).unwrap();
        }
        let fetched = [cache.path().join("packaged-bookworm-1")];
        assert_eq!(Packaged::folders(cache.path()), fetched);
    }
}
