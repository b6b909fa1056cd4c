//! Which system it is: the kernel, its command line, the distribution, and who asks.

use super::files::Files;

/// CAP_IPC_LOCK of linux/capability.h: locks memory without a limit (capabilities(7)).
const CAP_IPC_LOCK: u32 = 14;
/// CAP_SYS_RESOURCE: raises limits.
const CAP_SYS_RESOURCE: u32 = 24;

/// The kernel and the distribution around it.
#[derive(Debug, Clone, Default)]
pub(super) struct System {
    /// As uname(1) says with -r.
    pub(super) release: String,
    /// The words that the kernel was started with.
    pub(super) words: Vec<String>,
    /// The distribution, and those that it is made like (os-release(5): ID, then ID_LIKE).
    pub(super) family: Vec<String>,
    /// Whether the machine started by EFI and runs systemd, which can go to the firmware's set-up then.
    pub(super) boots_into_setup: bool,
}

/// Who asks.
#[derive(Debug, Clone, Default)]
pub(super) struct User {
    /// Their name.
    pub(super) name: String,
    /// Whether they are root.
    pub(super) is_root: bool,
    uid: u32,
    groups: Vec<u32>,
    capabilities: u64,
}

impl System {
    pub(super) fn read(files: &Files) -> Self {
        let os = files.text("etc/os-release").unwrap_or_default();
        let of = |key: &str| {
            let value = os.lines().find_map(|line| line.strip_prefix(key));
            value.unwrap_or_default().trim_matches('"').to_owned()
        };
        let family = [of("ID="), of("ID_LIKE=")].join(" ");
        let words = files.text("proc/cmdline").unwrap_or_default();
        let split = |text: String| text.split_whitespace().map(str::to_owned).collect();
        Self {
            release: files.text("proc/sys/kernel/osrelease").unwrap_or_default(),
            words: split(words),
            family: split(family),
            boots_into_setup: files.exists("sys/firmware/efi")
                && files.exists("run/systemd/system"),
        }
    }

    /// Whether the kernel was started with this word.
    pub(super) fn has_word(&self, word: &str) -> bool {
        self.words.iter().any(|one| one == word)
    }

    /// Whether it is this distribution, or one made like it.
    pub(super) fn is(&self, distribution: &str) -> bool {
        self.family.iter().any(|one| one == distribution)
    }
}

impl User {
    pub(super) fn read(files: &Files) -> Self {
        let status = files.text("proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace()
                .nth(1)
                .or(line.split_whitespace().next())
        };
        // Real and effective, saved, of the file system: the effective one is what counts.
        let uid = field("Uid:").unwrap_or_default();
        let capabilities = field("CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let groups = [line("Gid:"), line("Groups:")].into_iter().flatten();
        let groups = groups
            .flat_map(str::split_whitespace)
            .filter_map(|number| number.parse().ok());
        let users = files.text("etc/passwd").unwrap_or_default();
        Self {
            name: name_of(&users, uid).unwrap_or_else(|| "$USER".into()),
            is_root: uid == "0",
            uid: uid.parse().unwrap_or(u32::MAX),
            groups: groups.collect(),
            capabilities: capabilities.unwrap_or(0),
        }
    }

    /// Whether their locked memory has no limit, or they may raise it.
    pub(super) fn locks_without_limit(&self) -> bool {
        self.has(CAP_IPC_LOCK) || self.has(CAP_SYS_RESOURCE)
    }

    /// Whether they may read and write a file with this owner, group and mode (inode(7)); root may.
    pub(super) fn may_use(&self, (uid, gid, mode): (u32, u32, u32)) -> bool {
        let class = if self.uid == uid {
            mode >> 6
        } else if self.groups.contains(&gid) {
            mode >> 3
        } else {
            mode
        };
        self.is_root || class & 0o6 == 0o6
    }

    /// Whether they may raise limits.
    pub(super) fn raises_limits(&self) -> bool {
        self.has(CAP_SYS_RESOURCE)
    }

    fn has(&self, capability: u32) -> bool {
        self.capabilities >> capability & 1 == 1
    }
}

#[cfg(test)]
impl User {
    /// A user without any rights.
    pub(super) fn ada() -> Self {
        Self {
            name: "ada".into(),
            uid: 1000,
            groups: vec![1000, 104],
            ..Self::default()
        }
    }

    /// Root, with all rights.
    pub(super) fn root() -> Self {
        Self {
            name: "root".into(),
            is_root: true,
            capabilities: u64::MAX,
            ..Self::default()
        }
    }
}

/// The name of a user or a group, by its number: the third field of passwd(5) and of group(5).
pub(super) fn name_of(table: &str, number: &str) -> Option<String> {
    let mut lines = table
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.get(2) == Some(&number))?;
    Some(found.first()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::recorded::Recorded;
    use super::*;

    #[test]
    fn a_distribution_is_also_those_that_it_is_made_like() {
        let machine = Recorded::new();
        machine.file(
            "etc/os-release",
            "NAME=\"Pop\"\nVERSION_ID=\"22.04\"\nID=pop\nID_LIKE=\"ubuntu debian\"\n",
        );
        machine.file("proc/cmdline", "quiet intel_iommu=on\n");
        let system = System::read(&machine.files());
        assert!(system.is("pop") && system.is("debian") && !system.is("22.04"));
        assert!(system.has_word("intel_iommu=on") && !system.has_word("intel_iommu"));
    }

    #[test]
    fn a_file_is_for_its_owner_its_group_or_everyone() {
        let ada = User::ada();
        for (owner, may) in [
            ((1000, 0, 0o600), true),
            ((1000, 104, 0o060), false),
            ((0, 104, 0o660), true),
            ((0, 0, 0o660), false),
            ((0, 0, 0o666), true),
        ] {
            assert_eq!(ada.may_use(owner), may, "{owner:?}");
        }
        assert!(User::root().may_use((1000, 0, 0)));
    }

    #[test]
    fn a_user_is_who_the_process_acts_as() {
        let machine = Recorded::new();
        machine.file(
            "etc/passwd",
            "root:x:0:0::/:\nada:x:1000:1000::/home/ada:\n",
        );
        machine.file(
            "proc/self/status",
            "Name:\tviaduct\nUid:\t0\t1000\t0\t1000\nCapEff:\t0000000000004000\n",
        );
        let user = User::read(&machine.files());
        assert_eq!((&*user.name, user.is_root), ("ada", false));
        assert!(user.locks_without_limit() && !user.raises_limits());
    }
}
