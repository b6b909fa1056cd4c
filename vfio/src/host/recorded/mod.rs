//! For tests: machines unlike the one at hand, each a short text from which its sysfs is made in a temporary directory.
//!
//! The texts are written for this project after what such machines show. One line is one thing:
//!
//! ```text
//! # comment
//! file sys/firmware/acpi/tables/IVRS      a file, with what follows as its line, if anything does
//! link dev/root /dev/sda1                 a symbolic link
//! dir sys/class/iommu/ivhd0
//! 0000:01:00.0 8086:1521 020000           a function: address, IDs, class; indented lines below are about it
//!     driver igb
//! ```
//!
//! What may be said of a function is in `function`. What nobody says is as on most machines.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a text that is wrong fails the test that uses it"
)]

mod function;
mod space;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use self::function::Function;
use super::{Host, Roots};

/// A workstation with an AMD processor, IOMMU on: two graphics cards, a chipset whose devices share a group.
pub const AMD: &str = include_str!("amd.machine");
/// A server with two Intel processors, IOMMU on, switches with ACS: every function has its own group, SR-IOV is off.
pub const INTEL: &str = include_str!("intel.machine");
/// A laptop whose NVMe disk is behind an Intel volume management device, in a segment of its own.
pub const VMD: &str = include_str!("vmd.machine");
/// A server with one network card, all of whose 63 virtual functions are on.
pub const MANY_FUNCTIONS: &str = include_str!("many-functions.machine");
/// A virtual machine without an IOMMU.
pub const NO_IOMMU: &str = include_str!("no-iommu.machine");

/// A machine in a directory, which goes with it.
pub struct Recorded {
    dir: TempDir,
}

impl Recorded {
    /// Makes the machine that `text` describes.
    pub fn new(text: &str) -> Self {
        let machine = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(machine.path("run")).unwrap();
        let mut functions: Vec<Function> = Vec::new();
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        for line in lines.filter(|line| !line.trim_start().starts_with('#')) {
            match functions.last_mut() {
                Some(function) if line.starts_with(' ') => function.say(line.trim()),
                _ => functions.extend(machine.start(line)),
            }
        }
        for function in &functions {
            function.make(&machine, &functions);
        }
        machine
    }

    /// A line that is not about the function before it; the function, if it begins one.
    fn start(&self, line: &str) -> Option<Function> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (path, text) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "file" if text.is_empty() => self.file(path, ""),
            "file" => self.file(path, text.trim().replace("\\n", "\n") + "\n"),
            "link" => self.link(path, text.trim()),
            "dir" => fs::create_dir_all(self.path(path)).unwrap(),
            _ => return Some(Function::new(line)),
        }
        None
    }

    /// The machine as a host. What binds and unbinds is a plain directory here: nothing happens.
    pub fn host(&self) -> Host {
        Host::at(self.roots())
    }

    /// Where its file systems are.
    pub fn roots(&self) -> Roots {
        Roots {
            sys: self.path("sys"),
            dev: self.path("dev"),
            lib: self.path("lib"),
            proc: self.path("proc"),
            run: self.path("run"),
        }
    }

    /// Where `path`, below the root, is.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Writes a file.
    pub fn file(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Makes a link to `target`, word for word.
    pub fn link(&self, path: &str, target: impl AsRef<Path>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// Removes a file, or a directory with all that is in it.
    pub fn remove(&self, path: &str) {
        let path = self.path(path);
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.unwrap();
    }
}
