//! Whether a device can be taken: its driver, its group, who has it, and what the host would miss.

use vfio::host::{Danger, GroupError, GroupNotViable, Holder, Known, Member, is_vfio, short};

use super::{
    super::{
        report::{Check, Fix},
        system::User,
    },
    Device, GroupFile,
};

impl Device {
    pub(super) fn taking(&self, user: &User) -> Vec<Check> {
        let mut checks = vec![self.driver(user), self.group(), self.use_by_guests()];
        checks.extend(self.use_by_host());
        checks.extend(self.permission(user));
        checks
    }

    fn is_on_vfio(&self) -> bool {
        self.facts.device.driver.as_deref().is_some_and(is_vfio)
    }

    fn driver(&self, user: &User) -> Check {
        let name = "driver";
        let driver = self.facts.device.driver.as_deref();
        let said = driver.unwrap_or("none");
        if self.is_on_vfio() {
            return Check::good(name, format!("{said}: ready to be given away"));
        }
        if user.is_root {
            let what =
                format!("{said}; run takes it from there, and gives it back when the guest ends");
            return Check::good(name, what);
        }
        Check::failure(
            name,
            format!("{said}, and only root can take it from there"),
        )
        .fix(Fix::root(
            "bind it to vfio-pci",
            format!("viaduct bind {}", self.name()),
        ))
    }

    fn group(&self) -> Check {
        let name = "IOMMU group";
        match &self.viable {
            Err(GroupError::NotViable(not)) => self.shared(name, not),
            Err(error) => {
                let text = error.to_string();
                let text = text.lines().next().unwrap_or_default();
                let what = text.strip_prefix(&format!("{}: ", self.facts.device.bdf));
                Check::failure(name, what.unwrap_or(text))
            }
            Ok(()) => {
                let number = self.group.as_ref().map_or(0, |group| group.number);
                let others = self.group.iter().flat_map(|group| &group.members);
                let others: Vec<String> = others
                    .filter(|one| one.bdf != Some(self.facts.device.bdf))
                    .map(who)
                    .collect();
                if others.is_empty() {
                    return Check::good(name, format!("{number}, alone"));
                }
                Check::good(
                    name,
                    format!(
                        "{number}, with {}; none of them is in the way",
                        others.join(", ")
                    ),
                )
            }
        }
    }

    fn shared(&self, name: &'static str, not: &GroupNotViable) -> Check {
        let blockers: Vec<String> = not.blockers.iter().map(who).collect();
        let mut check = Check::failure(
            name,
            format!("{}, shared with {}", not.group, blockers.join(", ")),
        )
        .why("the IOMMU cannot tell them apart, so they go to one guest together or not at all");
        let is_function = |one: &&Member| one.bdf.is_some() && !one.is_bridge;
        let (functions, by_hand): (Vec<&Member>, Vec<&Member>) =
            not.blockers.iter().partition(is_function);
        for one in by_hand {
            let path = format!(
                "/sys/kernel/iommu_groups/{}/devices/{}/driver/unbind",
                not.group, one.name
            );
            check = check.fix(Fix::root(
                format!("detach {}", one.name),
                format!("echo {} > {path}", one.name),
            ));
        }
        let functions: Vec<String> = functions
            .into_iter()
            .filter_map(|one| one.bdf)
            .map(short)
            .collect();
        if functions.is_empty() {
            return check;
        }
        let functions = functions.join(" ");
        let named: Vec<String> = self.named.iter().copied().map(short).collect();
        check
            .fix(Fix::root(
                "detach from its driver what is in the way",
                format!("viaduct bind {functions}"),
            ))
            .fix(Fix::root(
                "or give one guest all of them, and see whether that would do",
                format!("viaduct doctor {} {functions}", named.join(" ")),
            ))
    }

    fn use_by_guests(&self) -> Check {
        let name = "in use";
        match &self.holders {
            Known::Unknown => Check::unknown(name, "only root sees everybody's files").fix(
                Fix::root("ask as root", format!("viaduct doctor {}", self.name())),
            ),
            Known::Known(holders) if holders.is_empty() => Check::good(name, "by no guest"),
            Known::Known(holders) => Check::failure(name, format!("by {}", list(holders)))
                .fix(end("shut that guest down, or end it", holders)),
        }
    }

    /// What run and bind refuse without --force; not of what is on vfio-pci, which the host does not use any more.
    fn use_by_host(&self) -> Vec<Check> {
        let name = "the host's";
        if self.is_on_vfio() {
            return Vec::new();
        }
        if self.dangers.is_empty() {
            return vec![Check::good(
                name,
                "console, default route, disks, swap: none of them is on it",
            )];
        }
        let anyway = Fix::root(
            "if it is to be taken all the same",
            format!("viaduct bind --force {}", self.name()),
        );
        let check = |danger: &Danger| {
            let check = Check::failure(name, danger.to_string());
            check.fixes(self.instead(danger)).fix(anyway.clone())
        };
        self.dangers.iter().map(check).collect()
    }

    /// What frees the host of its need.
    fn instead(&self, danger: &Danger) -> Option<Fix> {
        match danger {
            Danger::VirtualFunctions(_) => {
                let users: Vec<&Holder> = self.function_holders().collect();
                if users.is_empty() {
                    let command = format!("viaduct sriov {} --vfs 0", self.name());
                    return Some(Fix::root("remove them", command));
                }
                Some(end("end the guests that have some of them first", users))
            }
            Danger::Mounted { at, .. } => Some(Fix::root("unmount it", format!("umount {at}"))),
            Danger::Swap { disk } => Some(Fix::root(
                "stop swapping to it",
                format!("swapoff /dev/{disk}"),
            )),
            _ => None,
        }
    }

    fn permission(&self, user: &User) -> Option<Check> {
        let GroupFile { path, owner, users } = self.group_file.as_ref()?;
        let (name, who) = ("permission", &user.name);
        if user.may_use(*owner) {
            return Some(Check::good(name, format!("{who} may use {path}")));
        }
        let check = Check::failure(name, format!("{who} may not use {path}"));
        Some(match users {
            Some(users) => check
                .why(format!("it is for the group {users}"))
                .fix(Fix::root(
                    format!(
                        "join that group, then log in again (or, in this shell: newgrp {users})"
                    ),
                    format!("usermod -aG {users} {who}"),
                )),
            None => check.fix(Fix::root(
                "give it to them, until the device is bound anew",
                format!("chown {who} {path}"),
            )),
        })
    }
}

fn who(member: &Member) -> String {
    let name = member.bdf.map_or_else(|| member.name.clone(), short);
    match &member.driver {
        Some(driver) => format!("{name} on {driver}"),
        None => format!("{name} on no driver"),
    }
}

pub(super) fn list<'a>(holders: impl IntoIterator<Item = &'a Holder>) -> String {
    let said: Vec<String> = holders.into_iter().map(ToString::to_string).collect();
    said.join(" and ")
}

/// What ends the guests, in good order.
fn end<'a>(how: &str, holders: impl IntoIterator<Item = &'a Holder>) -> Fix {
    let pids = holders.into_iter().map(|holder| format!(" {}", holder.pid));
    Fix::root(how, format!("kill{}", pids.collect::<String>()))
}
