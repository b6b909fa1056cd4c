//! Who it is that keeps a device from this process: the kernel only says that it is busy, or its group not viable.

use devices::pci::Bdf;

use crate::{
    Assignable,
    host::{GroupError, GroupNotViable, Holder, Host},
};

/// By whom a file is in use, and what ends that. Nobody is named where that is not for this user to see.
pub(super) fn busy_by(path: &str, holders: &[Holder]) -> String {
    if holders.is_empty() {
        return format!("in use by another process\n  see which:  sudo fuser -v {path}");
    }
    let names: Vec<String> = holders.iter().map(Holder::to_string).collect();
    let pids: String = holders.iter().map(|one| format!(" {}", one.pid)).collect();
    format!(
        "in use by {}\n  shut that guest down, or end the process:  kill{pids}",
        names.join(" and ")
    )
}

/// The processes other than this one that have devices of a group.
pub(super) fn holders(group: u32) -> Vec<Holder> {
    let mut holders = Host::new().holders(group);
    holders.retain(|holder| holder.pid != std::process::id());
    holders
}

/// The drivers of the host that keep one of the groups of `functions` from a guest that gets all of them.
pub(super) fn blockers(functions: &[Assignable]) -> Option<GroupNotViable> {
    let host = Host::new();
    let taking: Vec<Bdf> = functions.iter().filter_map(Assignable::function).collect();
    let why = |&function: &Bdf| match host.viability(function, &taking) {
        Err(GroupError::NotViable(why)) => Some(why),
        _ => None,
    };
    taking.iter().find_map(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_file_is_named_with_what_ends_it() {
        let holder = |pid| Holder {
            pid,
            command: "viaduct".into(),
            guest: None,
        };
        assert_eq!(
            busy_by("/dev/vfio/8", &[holder(7), holder(9)]),
            "in use by process 7 (viaduct) and process 9 (viaduct)\n  \
             shut that guest down, or end the process:  kill 7 9"
        );
        assert!(busy_by("/dev/vfio/8", &[]).ends_with("sudo fuser -v /dev/vfio/8"));
    }

    #[test]
    fn devices_that_are_not_there_are_kept_from_nobody() {
        let function = Assignable::Function("ffff:ff:1f.7".parse().unwrap());
        assert_eq!(blockers(&[function]), None);
        assert!(holders(u32::MAX).is_empty());
    }
}
