//! Kernel modules for an initial file system: which files a list of names and folders comes to, with dependencies, and
//! the indexes of just those.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::cpio::Cpio;
use super::{Tree, succeed};
use crate::error::{Doing, Error, Result};

/// The modules of a kernel.
pub(super) struct Modules {
    /// `lib/modules/RELEASE` in the kernel's tree.
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
    /// The modules in this root folder, which has those of one kernel.
    pub(super) fn of(root: &Path) -> Result<Self> {
        let all = root.join("lib/modules");
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

    /// Their folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the kernel has this module, or one in this folder, be it built in.
    pub(super) fn has(&self, want: &str) -> bool {
        self.needs.keys().any(|path| is_wanted(path, want))
            || self.built_in.lines().any(|path| is_wanted(path, want))
    }

    /// The files that `wanted` comes to. A module that is built into the kernel is none.
    fn closure<'a>(&self, wanted: impl Iterator<Item = &'a str>) -> Result<BTreeSet<&str>> {
        let mut files = BTreeSet::new();
        for want in wanted {
            for (path, needs) in self.needs.iter().filter(|(path, _)| is_wanted(path, want)) {
                files.insert(path.as_str());
                files.extend(needs.iter().map(String::as_str));
            }
            if !self.has(want) {
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
        index(tree, root, &self.release)
    }

    /// Unpacks modules where they are, and makes the indexes anew.
    pub(super) fn unpack_there<'a>(
        &self,
        tree: &Tree,
        wanted: impl Iterator<Item = &'a str>,
    ) -> Result<()> {
        let files = self.closure(wanted)?;
        unpack(tree, files.iter().map(|file| self.dir.join(file)))?;
        let root = self.dir.ancestors().nth(3).unwrap_or(&self.dir);
        index(tree, root, &self.release)
    }

    /// Copies the files and unpacks what is packed.
    fn unpack(&self, tree: &Tree, files: &BTreeSet<&str>, dir: &Path) -> Result<()> {
        let mut copies = Vec::new();
        for file in files.iter().copied().chain([
            "modules.builtin",
            "modules.builtin.modinfo",
            "modules.order",
        ]) {
            let copy = dir.join(file);
            let folder = copy.parent().unwrap_or(dir);
            fs::create_dir_all(folder).doing(|| format!("making {}", folder.display()))?;
            fs::copy(self.dir.join(file), &copy).doing(|| format!("copying {}", copy.display()))?;
            copies.push(copy);
        }
        unpack(tree, copies.into_iter())
    }
}

/// Unpacks the packed ones of these files, with one xz for all.
fn unpack(tree: &Tree, files: impl Iterator<Item = PathBuf>) -> Result<()> {
    let packed = files.filter(|file| file.extension().is_some_and(|name| name == "xz"));
    let packed = packed.collect::<Vec<_>>();
    if packed.is_empty() {
        return Ok(());
    }
    let mut xz = tree.program("/usr/bin/xz");
    xz.args(["-d", "-T2"]).args(packed);
    succeed(xz)
}

/// Makes the indexes of the modules below `root`.
pub(super) fn index(tree: &Tree, root: &Path, release: &str) -> Result<()> {
    let mut depmod = tree.program_as("/usr/bin/kmod", "depmod");
    depmod.arg("-b").arg(root).arg(release);
    succeed(depmod)
}

/// Puts the indexes of the modules that are in `scratch`, or in the kernel itself, into an archive.
pub(super) fn put_indexes(
    tree: &Tree,
    scratch: &Path,
    release: &str,
    cpio: &mut Cpio,
) -> Result<()> {
    index(tree, scratch, release)?;
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

    #[test]
    fn a_kernel_has_its_modules_and_what_is_built_in_and_no_other() {
        let modules = modules();
        let asked = ["vf", "usb/", "8250_pci", "nonesuch", "nonesuch/"];
        let known = asked.map(|want| modules.has(want));
        assert_eq!(known, [true, true, true, false, false]);
    }
}
