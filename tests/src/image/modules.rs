//! Kernel modules for an initial file system: which files a list of names and folders comes to, with dependencies, and
//! the indexes of just those.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::cpio::Cpio;
use super::{Tree, succeed};
use crate::error::{Doing, Error, Result};

/// The modules of the tree's kernel.
pub(super) struct Modules {
    /// `/usr/lib/modules/RELEASE` in the tree.
    dir: PathBuf,
    release: String,
    /// Path below `dir` to the paths it needs.
    needs: BTreeMap<String, Vec<String>>,
    built_in: String,
}

/// What modprobe (busybox's) and libkmod (of lspci) read.
const INDEXES: [&str; 9] = [
    "modules.dep",
    "modules.dep.bin",
    "modules.alias",
    "modules.alias.bin",
    "modules.symbols.bin",
    "modules.builtin",
    "modules.builtin.bin",
    "modules.builtin.alias.bin",
    "modules.softdep",
];

/// `kernel/drivers/net/igb.ko.xz` is the module `igb`; hyphens and underscores are one.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn without_xz(path: &str) -> &str {
    path.strip_suffix(".xz").unwrap_or(path)
}

fn parse_needs(text: &str) -> BTreeMap<String, Vec<String>> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(module, needs)| {
            (
                module.to_owned(),
                needs.split_whitespace().map(str::to_owned).collect(),
            )
        })
        .collect()
}

impl Modules {
    pub(super) fn of(tree: &Tree) -> Result<Self> {
        let all = tree.root().join("usr/lib/modules");
        let mut entries = fs::read_dir(&all).doing(|| format!("reading {}", all.display()))?;
        let Some(Ok(entry)) = entries.next() else {
            return Err(Error::Unexpected(format!(
                "no kernel modules in {}",
                all.display()
            )));
        };
        let dir = entry.path();
        let read = |file: &str| {
            let path = dir.join(file);
            fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))
        };
        Ok(Self {
            needs: parse_needs(&read("modules.dep")?),
            built_in: read("modules.builtin")?,
            release: entry.file_name().to_string_lossy().into_owned(),
            dir,
        })
    }

    /// The release of the kernel that they belong to.
    pub(super) fn release(&self) -> &str {
        &self.release
    }

    /// The files that `wanted` comes to. A module that is built into the kernel is none.
    fn closure<'a>(&self, wanted: impl Iterator<Item = &'a str>) -> Result<BTreeSet<&str>> {
        let mut files = BTreeSet::new();
        for want in wanted {
            let before = files.len();
            for (path, needs) in self.needs.iter().filter(|(path, _)| is_wanted(path, want)) {
                files.insert(path.as_str());
                files.extend(needs.iter().map(String::as_str));
            }
            let known = files.len() > before
                || self.needs.keys().any(|path| is_wanted(path, want))
                || self.built_in.lines().any(|path| is_wanted(path, want));
            if !known {
                let what = format!("the kernel {} has no module `{want}`", self.release);
                let fix = "correct its name in resources/lab/*.modules".into();
                return Err(Error::Missing { what, fix });
            }
        }
        Ok(files)
    }

    /// Puts the modules and their indexes into an archive, unpacked: decompressing under emulation is slow.
    pub(super) fn put<'a>(
        &self,
        tree: &Tree,
        wanted: impl Iterator<Item = &'a str>,
        scratch: &Path,
        cpio: &mut Cpio,
    ) -> Result<()> {
        let base = format!("lib/modules/{}", self.release);
        let dir = scratch.join(&base);
        let files = self.closure(wanted)?;
        self.unpack(tree, &files, &dir)?;
        for path in files.iter().map(|file| without_xz(file)) {
            put_file(scratch, &format!("{base}/{path}"), cpio)?;
        }
        put_indexes(tree, scratch, &self.release, cpio)?;
        fs::remove_dir_all(scratch).doing(|| format!("removing {}", scratch.display()))
    }

    /// Puts the modules, unpacked, and their indexes into the root folder of a system.
    pub(super) fn install<'a>(
        &self,
        tree: &Tree,
        wanted: impl Iterator<Item = &'a str>,
        root: &Path,
    ) -> Result<()> {
        let dir = root.join("usr/lib/modules").join(&self.release);
        self.unpack(tree, &self.closure(wanted)?, &dir)?;
        let mut depmod = tree.program_as("/usr/bin/kmod", "depmod");
        depmod.arg("-b").arg(root).arg(&self.release);
        succeed(depmod)
    }

    /// Copies the files and unpacks what is packed, with one xz for all.
    fn unpack(&self, tree: &Tree, files: &BTreeSet<&str>, dir: &Path) -> Result<()> {
        let mut xz = tree.program("/usr/bin/xz");
        xz.args(["-d", "-T2"]);
        for file in files.iter().copied().chain([
            "modules.builtin",
            "modules.builtin.modinfo",
            "modules.order",
        ]) {
            let copy = dir.join(file);
            let folder = copy.parent().unwrap_or(dir);
            fs::create_dir_all(folder).doing(|| format!("making {}", folder.display()))?;
            fs::copy(self.dir.join(file), &copy).doing(|| format!("copying {}", copy.display()))?;
            if file.ends_with(".xz") {
                xz.arg(copy);
            }
        }
        succeed(xz)
    }
}

/// Puts the indexes of the modules that are in `scratch`, or in the kernel itself, into an archive.
pub(super) fn put_indexes(
    tree: &Tree,
    scratch: &Path,
    release: &str,
    cpio: &mut Cpio,
) -> Result<()> {
    let mut depmod = tree.program_as("/usr/bin/kmod", "depmod");
    depmod.arg("-b").arg(scratch).arg(release);
    succeed(depmod)?;
    INDEXES.iter().try_for_each(|index| {
        let path = format!("lib/modules/{release}/{index}");
        put_file(scratch, &path, cpio)
    })
}

fn put_file(scratch: &Path, path: &str, cpio: &mut Cpio) -> Result<()> {
    let from = scratch.join(path);
    let content = fs::read(&from).doing(|| format!("reading {}", from.display()))?;
    cpio.file(path, 0o644, &content);
    Ok(())
}

fn is_wanted(path: &str, want: &str) -> bool {
    if want.ends_with('/') {
        path.strip_prefix("kernel/")
            .is_some_and(|path| path.starts_with(want))
    } else {
        name(path) == want.replace('-', "_")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Modules {
        let needs = "kernel/net/vf.ko.xz: kernel/lib/dca.ko.xz\nkernel/lib/dca.ko.xz:\nkernel/usb/xhci-pci.ko.xz:\n";
        Modules {
            dir: PathBuf::new(),
            release: "6.0".into(),
            needs: parse_needs(needs),
            built_in: "kernel/tty/8250_pci.ko\n".into(),
        }
    }

    #[test]
    fn dependencies_come_with_a_module() {
        let modules = modules();
        let files = modules.closure(["vf"].into_iter()).unwrap();
        assert_eq!(
            files,
            BTreeSet::from(["kernel/lib/dca.ko.xz", "kernel/net/vf.ko.xz"])
        );
    }

    #[test]
    fn a_folder_names_all_in_it_and_hyphens_are_underscores() {
        let modules = modules();
        assert_eq!(modules.closure(["usb/"].into_iter()).unwrap().len(), 1);
        assert_eq!(modules.closure(["xhci_pci"].into_iter()).unwrap().len(), 1);
    }

    #[test]
    fn a_built_in_module_is_no_file_and_an_unknown_one_an_error() {
        let modules = modules();
        assert!(
            modules
                .closure(["8250_pci"].into_iter())
                .unwrap()
                .is_empty()
        );
        assert!(modules.closure(["nonesuch"].into_iter()).is_err());
    }
}
