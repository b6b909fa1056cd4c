//! The lab's other host kernel: of the source that Debian builds its own from, with what no distribution switches on, iommufd
//! above all. Made in a Debian tree of its own, so that the runner needs nothing for it; of that only the kernel is kept.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::debian::{self, Installation};
use super::key::Key;
use super::{built, lines, lock};
use crate::error::{Doing, Result};
use crate::progress::{note, step};

const CONFIG: &str = include_str!("../../../resources/lab/kernel.config");
const BUILD: &str = include_str!("../../../resources/lab/kernel-build");
const PACKAGES: &str = include_str!("../../../resources/lab/kernel.packages");
/// Runs the build within the finished tree, $1; LAB_DIR is where the lab has its input and wants the output.
const HOOK: &str = "--customize-hook=mkdir \"$1/lab\" && cp \"$LAB_DIR/config\" \"$LAB_DIR/build\" \"$1/lab\" && \
     chroot \"$1\" sh /lab/build >&2 && cp \"$1\"/lab/out/* \"$LAB_DIR\"";

/// What a build takes at its largest: its tools, the source, and the objects.
const BUILD_MIB: u64 = 3584;

/// A finished kernel in the cache.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    dir: PathBuf,
    key: String,
}

impl Kernel {
    fn of_recipe(cache: &Path) -> Self {
        let inputs = lines(CONFIG).chain(lines(PACKAGES));
        let key = Key::new().with(debian::SUITE).with(BUILD).with(HOOK);
        let key = inputs.fold(key, |key, line| key.with(line)).to_string();
        let dir = cache.join(format!("kernel-{key}"));
        Self { dir, key }
    }

    /// Whether the kernel of the present recipe is in the cache.
    pub(super) fn is_built(cache: &Path) -> bool {
        Self::of_recipe(cache).dir.exists()
    }

    /// The kernel of the present recipe, built if it is not in the cache.
    pub(super) fn ready(cache: &Path) -> Result<Self> {
        let kernel = Self::of_recipe(cache);
        // Its own lock: who wants the stock kernel need not wait for minutes.
        let _one_builder = lock(cache, "kernel-lock")?;
        if !kernel.dir.exists() {
            let debian = Installation::of(PACKAGES)?;
            let shown = debian.shown();
            let what = format!("Building a host kernel with iommufd (minutes), in {shown}");
            step(&what, || {
                built(&kernel.dir, BUILD_MIB, |dir| build(dir, debian))
            })?;
        }
        Ok(kernel)
    }

    /// The name of this kernel, for what is made for it.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// The kernel, as a bzImage.
    pub(super) fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// What `uname -r` says of it.
    pub(super) fn release(&self) -> Result<String> {
        let text = self.file("release")?;
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// One of the files that its build left: `modules.builtin` and `modules.builtin.modinfo` say which modules are in it.
    pub(super) fn file(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.dir.join(name);
        fs::read(&path).doing(|| format!("reading {}", path.display()))
    }
}

fn build(dir: &Path, mut debian: Installation) -> Result<()> {
    write(&dir.join("config"), CONFIG.as_bytes())?;
    write(&dir.join("build"), BUILD.as_bytes())?;
    let command = debian.command();
    // Source and objects come to 2.5 GB, which a /tmp in memory may not have.
    command.env("LAB_DIR", dir).env("TMPDIR", dir);
    command.args(["--format=null", HOOK]);
    let mut seen = BTreeSet::new();
    let say = |line: &str| {
        if let Some(folder) = compiling(line)
            && seen.insert(folder.to_owned())
        {
            note(&format!("compiling {folder}/"));
        }
    };
    debian.make(Path::new("-"), &dir.join("build.log"), say)
}

/// The first folder of a file that the kernel's build says it compiles: `  CC      drivers/vfio/group.o`
fn compiling(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    let path = words.next().zip(words.next());
    let (folder, _) = path.filter(|(what, _)| *what == "CC")?.1.split_once('/')?;
    (!folder.is_empty()).then_some(folder)
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).doing(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_by_the_folder_of_what_is_compiled() {
        assert_eq!(compiling("  CC      drivers/vfio/group.o"), Some("drivers"));
        assert_eq!(compiling("  AR      drivers/built-in.a"), None);
        assert_eq!(compiling("  CC      /lab/source/tools/x.o"), None);
        assert_eq!(compiling(""), None);
    }
}
