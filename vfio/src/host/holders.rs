//! Who has a group open: found through the open files of every process.

use std::{collections::HashSet, fmt, fs, path::PathBuf};

use super::{Host, sysfs};

/// A process that has devices of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its command's name.
    pub command: String,
    /// Which guest it runs, where it is a viaduct and said so.
    pub guest: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}", self.pid, self.command)?;
        if let Some(guest) = &self.guest {
            write!(f, ", guest '{guest}'")?;
        }
        write!(f, ")")
    }
}

impl Host {
    /// Who has the group, or a device in it, open. Needs the right to look at other people's processes: without it only one's
    /// own are seen.
    pub fn holders(&self, group: u32) -> Vec<Holder> {
        let mut files = self.vfio_files(group);
        // They are there only while a device of the group is on vfio-pci; without them, no need to look through every process.
        files.retain(|file| file.exists());
        if files.is_empty() {
            return Vec::new();
        }
        let mut pids: Vec<u32> = sysfs::names(&self.roots.proc)
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        pids.sort_unstable();
        pids.retain(|&pid| self.has_open(pid, &files));
        pids.into_iter().map(|pid| self.holder(pid)).collect()
    }

    /// The files that stand for the group: its own, and the character device of each member (kernels with iommufd).
    fn vfio_files(&self, group: u32) -> HashSet<PathBuf> {
        let vfio = self.roots.dev.join("vfio");
        let members = self.group(group).members;
        let devices = self
            .roots
            .sys
            .join(format!("kernel/iommu_groups/{group}/devices"));
        members
            .iter()
            .flat_map(|member| sysfs::names(&devices.join(&member.name).join("vfio-dev")))
            .map(|name| vfio.join("devices").join(name))
            .chain([vfio.join(group.to_string())])
            .collect()
    }

    fn has_open(&self, pid: u32, files: &HashSet<PathBuf>) -> bool {
        let dir = self.roots.proc.join(pid.to_string()).join("fd");
        sysfs::names(&dir)
            .iter()
            .any(|fd| fs::read_link(dir.join(fd)).is_ok_and(|path| files.contains(&path)))
    }

    pub(super) fn holder(&self, pid: u32) -> Holder {
        let command = sysfs::text(&self.roots.proc.join(pid.to_string()).join("comm"));
        Holder {
            pid,
            command: command.unwrap_or_else(|| "already gone".into()),
            guest: self.guest_of(pid),
        }
    }
}
