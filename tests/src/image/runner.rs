//! The machine that the lab runs on, as far as installing a Debian on it goes: which distribution it is, and the tools and the
//! keyring that an installation needs.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::succeed;
use crate::error::{Error, Result};
use crate::progress::step;
use crate::sys;

/// Debian's archive keyring. The package of this name has it on Debian, Ubuntu and others that derive from them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What os-release(5) says of the distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct System {
    id: String,
    /// For people.
    pub(super) name: String,
    /// The release's, such as trixie.
    pub(super) codename: String,
}

impl System {
    /// This machine's.
    pub(super) fn read() -> Self {
        Self::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    pub(super) fn parse(os_release: &str) -> Self {
        let field = |name: &str| {
            let value = os_release
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value
                .unwrap_or_default()
                .trim_matches(['"', '\''])
                .to_owned()
        };
        Self {
            id: field("ID"),
            name: field("PRETTY_NAME"),
            codename: field("VERSION_CODENAME"),
        }
    }

    pub(super) fn is_debian(&self) -> bool {
        self.id == "debian"
    }

    /// The keyring that mmdebstrap has to be told of: apt trusts Debian's archive by itself on Debian only.
    pub(super) fn keyring(&self) -> Option<&'static str> {
        (!self.is_debian()).then_some(KEYRING)
    }

    /// Installs the packages that an installation needs on the runner, or says what to type.
    pub(super) fn prepare(&self) -> Result<()> {
        if !sys::is_root() {
            return Err(Error::Missing {
                what: "making the host image needs root (it installs a Debian tree)".into(),
                fix: "make it once as root, with this user's cache:  sudo --preserve-env=HOME,PATH cargo lab image"
                    .into(),
            });
        }
        let keyring = self.keyring();
        let missing = missing(
            on_path("mmdebstrap"),
            keyring.is_none_or(|path| Path::new(path).exists()),
        );
        if missing.is_empty() {
            return Ok(());
        }
        let names = missing.join(" ");
        if !on_path("apt-get") {
            return Err(Error::Missing {
                what: format!("not installed: {names}; and there is no apt-get to install it with"),
                fix:
                    "install it with this system's package manager, or use Debian bookworm or later"
                        .into(),
            });
        }
        step(&format!("Installing {names} on this machine"), || {
            apt_get(&["update"])?;
            let install = ["install", "-y", "--no-install-recommends"];
            apt_get(&[&install, missing.as_slice()].concat())
        })
    }
}

/// The packages to install. mmdebstrap only recommends the keyring, so both come together where mmdebstrap does.
fn missing(has_mmdebstrap: bool, has_keyring: bool) -> Vec<&'static str> {
    match (has_mmdebstrap, has_keyring) {
        (true, true) => vec![],
        (true, false) => vec!["debian-archive-keyring"],
        (false, _) => vec!["mmdebstrap", "debian-archive-keyring"],
    }
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .arg("-q")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    succeed(command)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const BOOKWORM: &str = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\n\
        VERSION_ID=\"12\"\nVERSION=\"12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n";
    pub(in super::super) const UBUNTU: &str = "PRETTY_NAME=\"Ubuntu 24.04.1 LTS\"\nNAME=\"Ubuntu\"\nVERSION_ID=\"24.04\"\n\
        VERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\nUBUNTU_CODENAME=noble\n";

    #[test]
    fn a_distribution_is_told_by_its_id_not_by_what_it_is_like() {
        let (debian, ubuntu) = (System::parse(BOOKWORM), System::parse(UBUNTU));
        assert!(debian.is_debian() && !ubuntu.is_debian());
        assert_eq!(
            (debian.codename.as_str(), ubuntu.codename.as_str()),
            ("bookworm", "noble")
        );
        assert_eq!(ubuntu.name, "Ubuntu 24.04.1 LTS");
        assert!(!System::parse("").is_debian());
    }

    #[test]
    fn mmdebstrap_is_told_of_debians_keyring_wherever_apt_does_not_trust_it() {
        assert_eq!(System::parse(BOOKWORM).keyring(), None);
        assert_eq!(System::parse(UBUNTU).keyring(), Some(KEYRING));
    }

    #[test]
    fn an_ubuntu_with_mmdebstrap_still_gets_debians_keyring() {
        assert_eq!(missing(true, false), ["debian-archive-keyring"]);
        assert_eq!(
            missing(false, false),
            ["mmdebstrap", "debian-archive-keyring"]
        );
        assert!(missing(true, true).is_empty());
    }
}
