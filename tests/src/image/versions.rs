//! Which versions the image has: the cache keeps them until somebody asks for newer ones, so a run says what it ran on.

use std::time::{Duration, SystemTime};

/// The packages of a tree, from its dpkg status file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packages(Vec<(String, String)>);

impl Packages {
    /// Reads the status file (deb822): the installed packages, in its order.
    pub(super) fn parse(status: &str) -> Self {
        let stanzas = status.split("\n\n").filter_map(|stanza| {
            let field = |name: &str| {
                let lines = stanza.lines();
                lines.into_iter().find_map(|line| line.strip_prefix(name))
            };
            let installed = field("Status: ")?.ends_with(" installed");
            let package = (
                field("Package: ")?.to_owned(),
                field("Version: ")?.to_owned(),
            );
            installed.then_some(package)
        });
        Self(stanzas.collect())
    }

    /// A line each: name and version.
    pub(super) fn list(&self) -> String {
        let lines = self.0.iter();
        lines
            .map(|(name, version)| format!("{name} {version}\n"))
            .collect()
    }

    /// The upstream part of a package's version: of `1:11.1.3+ds-1~bpo13+1` it is 11.1.3.
    pub(super) fn upstream(&self, name: &str) -> Option<&str> {
        let (_, version) = self.0.iter().find(|(package, _)| package == name)?;
        let version = version
            .split_once(':')
            .map_or(version.as_str(), |(_, rest)| rest);
        version.split(['+', '-', '~']).next()
    }
}

/// An age that asks for a look: security updates and stable kernels come more often.
const OLD_DAYS: u64 = 60;

/// How long ago the packages were installed, and what to type if that is long.
pub(super) fn age(installed: SystemTime, now: SystemTime) -> String {
    let age = now.duration_since(installed).unwrap_or(Duration::ZERO);
    match age.as_secs() / (24 * 60 * 60) {
        0 => "installed today".to_owned(),
        days @ 1..OLD_DAYS => format!("installed {days} days ago"),
        days => format!("installed {days} days ago; to update them: cargo lab image --refresh"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Package: qemu-system-x86\nStatus: install ok installed\nVersion: 1:11.1.3+ds-1~bpo13+1\n\
        Description: emulator\n Version: of nothing\n\n\
        Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
        Package: bash\nStatus: install ok installed\nVersion: 5.2.37-2+b5\n";

    #[test]
    fn installed_packages_are_listed_with_their_versions() {
        let packages = Packages::parse(STATUS);
        assert_eq!(
            packages.list(),
            "qemu-system-x86 1:11.1.3+ds-1~bpo13+1\nbash 5.2.37-2+b5\n"
        );
    }

    #[test]
    fn the_upstream_version_has_neither_epoch_nor_revision() {
        let packages = Packages::parse(STATUS);
        assert_eq!(packages.upstream("qemu-system-x86"), Some("11.1.3"));
        assert_eq!(packages.upstream("bash"), Some("5.2.37"));
        assert_eq!(packages.upstream("gone"), None);
    }

    #[test]
    fn old_packages_come_with_the_command_that_updates_them() {
        let day = Duration::from_secs(24 * 60 * 60);
        let now = SystemTime::UNIX_EPOCH + 1000 * day;
        assert_eq!(age(now, now), "installed today");
        assert_eq!(age(now - 59 * day, now), "installed 59 days ago");
        assert!(age(now - 60 * day, now).ends_with("cargo lab image --refresh"));
        // A clock that was set back.
        assert_eq!(age(now + day, now), "installed today");
    }
}
