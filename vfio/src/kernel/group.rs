//! An IOMMU group's file, `/dev/vfio/N`: the functions in it can reach each other, so one guest gets all of them.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use vfio_bindings::bindings::vfio::{VFIO_GROUP_FLAGS_VIABLE, vfio_group_status};

use super::{
    culprit::{self, busy_by},
    ioctl::{self, Request},
    permission, reset,
};
use crate::{
    Assignable,
    host::{GroupNotViable, Holder},
};

/// A group cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The function is not there, or the host has no IOMMU for it.
    #[error(
        "{function}: in no IOMMU group\n  boot with the IOMMU on:  VT-d or AMD-Vi in the firmware's set-up, and intel_iommu=on"
    )]
    None {
        /// Whose group was looked for.
        function: Assignable,
        /// Why its link in sysfs could not be read.
        source: io::Error,
    },
    /// No file: no function of the group is bound to vfio-pci.
    #[error(
        "IOMMU group {group}: /dev/vfio/{group} is not there: none of its devices is bound to vfio-pci\n  \
     bind them:  viaduct bind $(ls /sys/kernel/iommu_groups/{group}/devices)"
    )]
    Missing {
        /// The group's number.
        group: u32,
    },
    /// Another process has it open.
    #[error("IOMMU group {group}: /dev/vfio/{group} is {}", busy_by(&format!("/dev/vfio/{group}"), holders))]
    Busy {
        /// The group's number.
        group: u32,
        /// Who; none where that is not for this user to see.
        holders: Vec<Holder>,
    },
    /// This user may not open it.
    #[error(
        "IOMMU group {group}: no permission to open /dev/vfio/{group}\n  {}", permission::advice(&format!("/dev/vfio/{group}"))
    )]
    NotPermitted {
        /// The group's number.
        group: u32,
        /// EPERM (locked down, or no-IOMMU mode without CAP_SYS_RAWIO) or EACCES (the file's mode).
        source: io::Error,
    },
    /// A function of the group is bound to a driver of the host.
    #[error(
        "IOMMU group {group} is not usable: another device in it is bound to a driver of the host\n  \
         see which:  viaduct list --groups --all"
    )]
    NotViable {
        /// The group's number.
        group: u32,
    },
    /// The same, and which they are.
    #[error(transparent)]
    Blocked(#[from] GroupNotViable),
    /// Another call failed.
    #[error("IOMMU group {group}: {what} failed\n  see whether the kernel said why:  dmesg | tail")]
    Failed {
        /// The group's number.
        group: u32,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// An open group.
#[derive(Debug)]
pub(super) struct Group {
    number: u32,
    file: File,
}

/// The number of the group that `function` is in.
pub(super) fn number_of(function: &Assignable) -> Result<u32, GroupError> {
    let none = |source| GroupError::None {
        function: function.clone(),
        source,
    };
    let link = fs::read_link(function.sysfs().join("iommu_group")).map_err(none)?;
    let name = link.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.parse().ok())
        .ok_or_else(|| none(io::ErrorKind::InvalidData.into()))
}

impl Group {
    /// Opens a group, which nobody else may have open, and of which no function may be in use by the host.
    pub(super) fn open(number: u32) -> Result<Self, GroupError> {
        let path = PathBuf::from(format!("/dev/vfio/{number}"));
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(|source| open_error(number, source))?;
        let group = Self { number, file };
        if group.is_viable()? {
            Ok(group)
        } else {
            Err(GroupError::NotViable { group: number })
        }
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// The status is a mask with more bits than this one (a group that is in a container says so, too).
    fn is_viable(&self) -> Result<bool, GroupError> {
        let mut status = vfio_group_status::default();
        ioctl::with_argument(&self.file, Request::GROUP_GET_STATUS, &mut status)
            .map_err(|source| self.failed("VFIO_GROUP_GET_STATUS", source))?;
        Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
    }

    /// Joins the container.
    pub(super) fn join(&self, container: impl AsFd) -> Result<(), GroupError> {
        ioctl::set_container(&self.file, container.as_fd())
            .map_err(|source| self.failed("VFIO_GROUP_SET_CONTAINER", source))
    }

    /// Opens a function of the group by its name in sysfs.
    pub(super) fn device(&self, function: &Assignable) -> io::Result<OwnedFd> {
        let name = CString::new(function.to_string())?;
        // Which resets it.
        reset::patiently(&[libc::EAGAIN], || ioctl::get_device_fd(&self.file, &name))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> GroupError {
        GroupError::Failed {
            group: self.number,
            what,
            source,
        }
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open_error(group: u32, source: io::Error) -> GroupError {
    match source.raw_os_error() {
        Some(libc::ENOENT) => GroupError::Missing { group },
        Some(libc::EBUSY) => GroupError::Busy {
            group,
            holders: culprit::holders(group),
        },
        Some(libc::EPERM | libc::EACCES) => GroupError::NotPermitted { group, source },
        _ => GroupError::Failed {
            group,
            what: "open",
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_group_cannot_be_opened_is_told_apart() {
        let of = |errno| open_error(8, io::Error::from_raw_os_error(errno));
        assert!(matches!(of(libc::ENOENT), GroupError::Missing { group: 8 }));
        assert!(matches!(of(libc::EBUSY), GroupError::Busy { group: 8, .. }));
        for errno in [libc::EPERM, libc::EACCES] {
            assert!(matches!(of(errno), GroupError::NotPermitted { .. }));
        }
        assert!(matches!(of(libc::EMFILE), GroupError::Failed { .. }));
    }

    #[test]
    fn who_may_not_open_a_group_reads_how_to_be_let() {
        let text = open_error(8, io::Error::from_raw_os_error(libc::EACCES)).to_string();
        assert!(text.starts_with("IOMMU group 8: no permission to open /dev/vfio/8\n"));
        assert!(text.contains("sudo chown $USER /dev/vfio/8\n"), "{text}");
        assert!(text.contains("70-viaduct.rules"), "{text}");
    }

    #[test]
    fn a_function_that_is_not_there_has_no_group() {
        let function = Assignable::Function("ffff:ff:1f.7".parse().unwrap());
        assert!(matches!(number_of(&function), Err(GroupError::None { .. })));
    }
}
