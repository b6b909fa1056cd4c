//! The image of the simulated host: a Debian tree, the disk made of it, and the kernels and initial file systems of L1 and
//! L2. Kept in the cache under a name that is a hash of what went into it, so it is rebuilt exactly when that changes.

mod cpio;
mod debian;
mod initramfs;
mod kernel;
mod key;
mod mirror;
mod modules;
mod packaged;
mod runner;
mod system;
mod tree;
mod versions;
mod vmlinux;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use crate::cards::{DebianKernel, HostKernel};
use crate::engine::Engine;
use crate::error::{Doing, Error, Result, tail};
use crate::progress::{note, step};
use crate::{paths, space};

use kernel::Kernel;
use modules::Modules;
use packaged::Packaged;
use system::System;
pub(crate) use tree::Tree;

/// A finished image.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    tree: Tree,
    dir: PathBuf,
    /// The host's kernel, unless it is the tree's.
    host: Option<Other>,
    /// The guests', unless it is the tree's.
    guest: Option<Packaged>,
    /// Locked while the image is in use, so that another process does not replace its tree.
    _in_use: Arc<File>,
}

/// A kernel for the host that is not the tree's.
#[derive(Debug, Clone)]
enum Other {
    Built(Kernel),
    Packaged(Packaged),
}

impl Image {
    /// Whether this kernel for the host is there without minutes of building it.
    pub(crate) fn has_kernel(host: HostKernel) -> bool {
        host != HostKernel::Iommufd || Kernel::is_built(&paths::cache())
    }

    /// The image for the present recipe, with these kernels for the host and for guests, which have the tree's otherwise. What is
    /// not in the cache is built.
    pub(crate) fn ready(host: HostKernel, guest: Option<DebianKernel>) -> Result<Self> {
        let cache = paths::cache();
        fs::create_dir_all(&cache).doing(|| format!("making the cache {}", cache.display()))?;
        let mut image = Self::stock(&cache)?;
        let stock = image.l1_initrd();
        image.host = match (host, host.debian()) {
            (_, Some(kernel)) => Some(Other::Packaged(image.packaged(&cache, kernel)?)),
            (HostKernel::Iommufd, None) => Some(Other::Built(Kernel::ready(&cache)?)),
            _ => None,
        };
        image.guest = guest
            .map(|kernel| image.packaged(&cache, kernel))
            .transpose()?;
        let _one_builder = lock(&cache, "lock")?;
        let (initrd, folder) = (image.l1_initrd(), image.guest_folder());
        match &image.host {
            Some(Other::Built(kernel)) if !initrd.exists() => {
                initramfs::build_for(kernel, &image.tree, &stock, &initrd)?;
            }
            Some(Other::Packaged(kernel)) if !initrd.exists() => {
                initramfs::build_host(kernel, &image.tree, &initrd)?;
            }
            _ => {}
        }
        match &image.guest {
            Some(kernel) if !folder.exists() => {
                initramfs::build_guest(kernel, &image.tree, &folder)?;
            }
            _ => {}
        }
        Ok(image)
    }

    fn packaged(&self, cache: &Path, kernel: DebianKernel) -> Result<Packaged> {
        Packaged::ready(cache, &self.tree, kernel)
    }

    fn stock(cache: &Path) -> Result<Self> {
        // Before the lock: a refresh has this one exclusively, and waits for no lock.
        let in_use = Arc::new(in_use(cache)?);
        let shared = in_use.lock_shared();
        shared.doing(|| format!("locking the cache {}", cache.display()))?;
        let _one_builder = lock(cache, "lock")?;
        let tree = Tree::ready(cache)?;
        let dir = Self::folder(cache, &tree);
        let image = Self {
            tree,
            dir,
            host: None,
            guest: None,
            _in_use: in_use,
        };
        if !image.dir.exists() {
            let what = "Making the initial file systems of L1 and L2";
            step(what, || {
                built(&image.dir, initramfs::BUILD_MIB, |dir| {
                    initramfs::build(&image.tree, dir)
                })
            })?;
        }
        Ok(image)
    }

    fn folder(cache: &Path, tree: &Tree) -> PathBuf {
        cache.join(format!("image-{}", initramfs::key(tree)))
    }

    /// Installs the tree again, with the packages that the archive has now. What is made from a tree is named after its packages,
    /// so what was made from the earlier one is removed with it. Kernels that were fetched are removed, and fetched again when one
    /// is wanted.
    pub(crate) fn refresh() -> Result<()> {
        let cache = paths::cache();
        fs::create_dir_all(&cache).doing(|| format!("making the cache {}", cache.display()))?;
        let alone = in_use(&cache)?;
        if alone.try_lock().is_err() {
            return Err(Error::Missing {
                what: format!("another lab uses the images in {}", cache.display()),
                fix: "refresh them when it has ended".into(),
            });
        }
        let _one_builder = lock(&cache, "lock")?;
        let Some(earlier) = Tree::cached(&cache)? else {
            return Ok(());
        };
        let made_from_it = [
            Self::folder(&cache, &earlier),
            System::folder(&cache, &earlier),
        ];
        earlier.renew()?;
        let fetched = Packaged::folders(&cache);
        let stale = made_from_it.iter().chain(&fetched);
        let stale = stale.filter(|folder| folder.exists());
        stale.map(PathBuf::as_path).try_for_each(remove)
    }

    /// Says what a run runs on, in two lines, and keeps that with the version of every package in the run's folder.
    pub(crate) fn announce(&self, run: &Path) -> Result<()> {
        let qemu = self.tree.packages().upstream("qemu-system-x86");
        let (host, guest) = (self.host_release()?, self.guest_release()?);
        let age = versions::age(self.tree.installed()?, SystemTime::now());
        let lines = [
            format!(
                "QEMU {}, L1 kernel {host}, guest kernel {guest}; packages {age}",
                qemu.unwrap_or("(unknown)")
            ),
            format!("L1 runs on {}", Engine::of_runner()),
        ];
        for line in &lines {
            eprintln!("lab: {line}");
        }
        let path = run.join("versions");
        let text = format!("{}\n{}", lines.join("\n"), self.tree.packages().list());
        fs::write(&path, text).doing(|| format!("writing {}", path.display()))
    }

    /// The tree, and with it QEMU and the root disk.
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// L1's kernel.
    pub(crate) fn l1_kernel(&self) -> PathBuf {
        match &self.host {
            None => self.l2().join("vmlinuz"),
            Some(Other::Built(kernel)) => kernel.image(),
            Some(Other::Packaged(kernel)) => kernel.image(),
        }
    }

    /// The folder of L1's modules, where they are neither on the root disk nor in the kernel.
    pub(crate) fn l1_modules(&self) -> Result<Option<PathBuf>> {
        let Some(Other::Packaged(kernel)) = &self.host else {
            return Ok(None);
        };
        Ok(Some(kernel.modules()?.dir().to_owned()))
    }

    /// What `uname -r` says in L1.
    pub(crate) fn host_release(&self) -> Result<String> {
        match &self.host {
            None => self.stock_release(),
            Some(Other::Built(kernel)) => kernel.release(),
            Some(Other::Packaged(kernel)) => Ok(kernel.release().to_owned()),
        }
    }

    /// What `uname -r` says in a guest.
    pub(crate) fn guest_release(&self) -> Result<String> {
        match &self.guest {
            None => self.stock_release(),
            Some(kernel) => Ok(kernel.release().to_owned()),
        }
    }

    fn stock_release(&self) -> Result<String> {
        let modules = Modules::of(&self.tree.root())?;
        Ok(modules.release().to_owned())
    }

    /// L1's initial file system.
    pub(crate) fn l1_initrd(&self) -> PathBuf {
        let file = match &self.host {
            None => "l1-initrd".to_owned(),
            Some(Other::Built(kernel)) => format!("l1-initrd-{}", kernel.key()),
            Some(Other::Packaged(kernel)) => format!("l1-initrd-{}", kernel.release()),
        };
        self.dir.join(file)
    }

    /// Has a whole Debian's root disk in the folder of the guest's, as `debian.img`. It is for reading: whoever runs it has a copy.
    pub(crate) fn with_debian(&self) -> Result<()> {
        let cache = paths::cache();
        let _one_builder = lock(&cache, "lock")?;
        let disk = System::ready(&cache, &self.tree)?.disk();
        let link = self.l2().join("debian.img");
        // Beside and renamed: another recipe's is in the way, and an L1 may be reading it.
        let new = link.with_extension("new");
        let _ = fs::remove_file(&new);
        fs::hard_link(&disk, &new).doing(|| format!("linking {}", new.display()))?;
        fs::rename(&new, &link).doing(|| format!("renaming to {}", link.display()))
    }

    /// The folder that L1 sees as /lab/l2, with `vmlinuz` and `initrd` of the stock guest.
    pub(crate) fn l2(&self) -> PathBuf {
        self.dir.join("l2")
    }

    /// The folder in it with those of this image's guests. A kernel that is not the stock one has a folder with its release in the
    /// name: after a refresh it is another.
    pub(crate) fn guest_folder(&self) -> PathBuf {
        self.l2().join(self.guest_subfolder())
    }

    /// The folder with the guests' `vmlinuz` and `initrd`, as L1 sees it.
    pub(crate) fn guest_folder_in_l1(&self) -> PathBuf {
        Path::new("/lab/l2").join(self.guest_subfolder())
    }

    fn guest_subfolder(&self) -> String {
        let folder = |kernel: &Packaged| format!("kernel-{}", kernel.release());
        self.guest.as_ref().map_or_else(String::new, folder)
    }
}

/// The file that every process with an image has a shared lock of.
fn in_use(cache: &Path) -> Result<File> {
    let path = cache.join("in-use");
    File::create(&path).doing(|| format!("opening {}", path.display()))
}

/// Two labs started at once must not build the same thing. Whoever holds the file is the builder.
fn lock(cache: &Path, name: &str) -> Result<File> {
    let path = cache.join(name);
    let file = File::create(&path).doing(|| format!("opening {}", path.display()))?;
    if file.try_lock().is_err() {
        note("waiting for another lab that is building the image");
        file.lock()
            .doing(|| format!("locking {}", path.display()))?;
    }
    Ok(file)
}

/// Builds beside the final place and renames, so that what is there is whole. What an interrupted build left is removed
/// first; the lock says that it is nobody's. `needed_mib` is what the build takes at its largest.
fn built(dir: &Path, needed_mib: u64, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let unfinished = dir.with_extension("unfinished");
    if unfinished.exists() {
        remove(&unfinished)?;
    }
    let cache = dir.parent().unwrap_or(dir);
    space::check(
        cache,
        needed_mib,
        "building the image of the simulated host",
    )?;
    fs::create_dir_all(&unfinished).doing(|| format!("making {}", unfinished.display()))?;
    build(&unfinished)?;
    fs::rename(&unfinished, dir).doing(|| format!("renaming to {}", dir.display()))
}

fn remove(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).doing(|| format!("removing {}", dir.display()))
}

/// Runs a program to its end; its words are only shown if it fails.
fn succeed(mut command: Command) -> Result<()> {
    let shown = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .doing(|| shown.clone())?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let tail = tail(&String::from_utf8_lossy(&said), 15);
    Err(Error::Program {
        command: shown,
        status: output.status.to_string(),
        tail,
    })
}

/// The lines of a list in `resources/`, without comments.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}
