//! Who has a tap open: the kernel says of each descriptor which interface it is a queue of (tun_chr_show_fdinfo in drivers/net/tun.c).

use std::{fmt, fs, path::Path};

/// The process that has a tap, as far as this user may know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder(Option<(u32, String)>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some((pid, name)) => write!(f, "process {pid} ({name})"),
            None => write!(f, "another process"),
        }
    }
}

impl Holder {
    pub(super) fn of(tap: &str) -> Self {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut processes = processes.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            has(&entry.path(), tap).then(|| (pid, name.trim().to_owned()))
        });
        Self(processes.next())
    }
}

fn has(process: &Path, tap: &str) -> bool {
    let files = fs::read_dir(process.join("fdinfo"));
    let mut files = files.into_iter().flatten().flatten();
    files.any(|file| fs::read_to_string(file.path()).is_ok_and(|text| names(&text, tap)))
}

/// Whether what the kernel says of a descriptor names this tap.
fn names(fdinfo: &str, tap: &str) -> bool {
    let mut lines = fdinfo.lines();
    lines.any(|line| line.strip_prefix("iff:").is_some_and(|of| of.trim() == tap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_told_by_the_interface_that_the_kernel_names() {
        let fdinfo = "pos:\t0\nflags:\t0104002\nmnt_id:\t9\nino:\t3\niff:\ttap1\n";
        assert!(names(fdinfo, "tap1"));
        assert!(!names(fdinfo, "tap"));
        assert!(!names("pos:\t0\n", "tap1"));
    }
}
