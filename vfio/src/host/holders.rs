//! Who has a group open: found through the open files of every process.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt, fs, io,
    path::PathBuf,
};

use super::{Host, facts::Known, sysfs};

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
        let mut pids = self.pids();
        pids.retain(|&pid| self.has_open(pid, &files));
        pids.into_iter().map(|pid| self.holder(pid)).collect()
    }

    /// Who has each of the groups open, by one look at the processes. Unknown where nobody was found who does, but not every
    /// process may be looked at.
    pub(super) fn holders_of_all(&self, groups: &[u32]) -> BTreeMap<u32, Known<Vec<Holder>>> {
        let files = groups.iter().flat_map(|&group| {
            let files = self.vfio_files(group).into_iter();
            files
                .filter(|file| file.exists())
                .map(move |file| (file, group))
        });
        let files: HashMap<PathBuf, u32> = files.collect();
        let (mut found, mut all_seen) = (BTreeMap::<u32, Vec<Holder>>::new(), true);
        // Without any open file there is no need to look through every process.
        let pids = if files.is_empty() {
            Vec::new()
        } else {
            self.pids()
        };
        for pid in pids {
            let Ok(open) = self.open_files(pid) else {
                all_seen = false;
                continue;
            };
            let held: HashSet<u32> = open.filter_map(|file| files.get(&file).copied()).collect();
            for group in held {
                found.entry(group).or_default().push(self.holder(pid));
            }
        }
        let told = |group: &u32| match found.remove(group) {
            None if !all_seen && files.values().any(|open| open == group) => Known::Unknown,
            holders => Known::Known(holders.unwrap_or_default()),
        };
        groups
            .iter()
            .copied()
            .zip(groups.iter().map(told))
            .collect()
    }

    fn pids(&self) -> Vec<u32> {
        let names = sysfs::names(&self.roots.proc);
        let mut pids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        pids.sort_unstable();
        pids
    }

    /// What the process has open; an error where it may not be looked at. Of one that has ended it is nothing.
    fn open_files(&self, pid: u32) -> io::Result<impl Iterator<Item = PathBuf> + use<>> {
        let dir = self.roots.proc.join(pid.to_string()).join("fd");
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            entries => entries.into_iter().flatten().flatten(),
        };
        Ok(entries.filter_map(|entry| fs::read_link(entry.path()).ok()))
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
        self.open_files(pid)
            .is_ok_and(|mut open| open.any(|file| files.contains(&file)))
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
