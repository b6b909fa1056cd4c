//! A device's own file, `/dev/vfio/devices/vfioN` (Documentation/driver-api/vfio.rst, "VFIO Device cdev").

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
};

use vfio_bindings::bindings::vfio::{vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd};

use super::{
    culprit::{self, busy_by},
    group,
    ioctl::{self, Request},
    permission, reset,
};
use crate::{
    Assignable,
    host::{GroupNotViable, Holder},
};

/// A device cannot be used through its own file.
#[derive(Debug, thiserror::Error)]
pub enum CdevError {
    /// It has no file: it is on no driver of VFIO's, or the kernel makes no files for devices.
    #[error("{function}: has no file in /dev/vfio/devices\n  {}", missing_advice(function, *on_vfio))]
    Missing {
        /// Its name on the host.
        function: Assignable,
        /// It is on a driver of VFIO's.
        on_vfio: bool,
    },
    /// There is no IOMMU between it and the host's memory.
    #[error(
        "{function}: VFIO has it without an IOMMU (no-IOMMU mode), so a guest could reach all of the host's memory\n  \
         turn the IOMMU on, in the firmware's set-up and on the kernel's command line"
    )]
    NoIommu {
        /// Its name on the host.
        function: Assignable,
    },
    /// This user may not open it.
    #[error(
        "{function}: no permission to open {}\n  {}",
        path.display(), permission::advice(&path.to_string_lossy())
    )]
    NotPermitted {
        /// Its name on the host.
        function: Assignable,
        /// Its file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It, or a device in its group, belongs to somebody else: another process, or a driver of the host's.
    #[error(
        "{function}: it, or another device in its IOMMU group, is {}",
        busy_by(&path.to_string_lossy(), holders)
    )]
    Busy {
        /// Its name on the host.
        function: Assignable,
        /// Its file.
        path: PathBuf,
        /// Who; none where that is not for this user to see.
        holders: Vec<Holder>,
    },
    /// Drivers of the host have others of its group.
    #[error(transparent)]
    Blocked(#[from] GroupNotViable),
    /// The host does not remap interrupts.
    #[error(
        "{function}: cannot be bound to iommufd: most likely this host does not remap interrupts, so a device could forge those of \
         others\n  \
         turn it on:  VT-d or AMD-Vi in the firmware's set-up, and no intremap=off on the kernel's command line\n  \
         or trust the guest:  echo 1 > /sys/module/iommufd/parameters/allow_unsafe_interrupts"
    )]
    UnsafeInterrupts {
        /// Its name on the host.
        function: Assignable,
        /// EPERM.
        source: io::Error,
    },
    /// Its addresses cannot be translated together with those of the devices before it.
    #[error(
        "{function}: cannot be attached to the address space of the guest\n  {}",
        attach_advice(source)
    )]
    Attach {
        /// Its name on the host.
        function: Assignable,
        /// Why not.
        source: io::Error,
    },
    /// Another call failed.
    #[error("{function}: {what} failed\n  see whether the kernel said why:  dmesg | tail")]
    Failed {
        /// Its name on the host.
        function: Assignable,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn missing_advice(function: &Assignable, on_vfio: bool) -> String {
    if on_vfio {
        "this kernel was configured without VFIO_DEVICE_CDEV; it has the other interface:  \
         viaduct run --iommu-backend container …"
            .into()
    } else {
        format!("bind it to vfio-pci first:  viaduct bind {function}")
    }
}

fn attach_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        // iopt_table_enforce_dev_resv_regions() in drivers/iommu/iommufd/io_pagetable.c
        Some(libc::EADDRINUSE) => {
            "memory of the guest is where this device cannot reach: name it when the guest starts, which lays memory around it"
        }
        // Intel's driver, for devices that the firmware uses itself.
        Some(libc::EPERM) => {
            "the firmware reserves memory for it (RMRR); the kernel says so:  dmesg | grep -i rmrr"
        }
        _ => "see whether the kernel said why:  dmesg | tail",
    }
}

/// A device's file.
pub(super) struct Cdev {
    function: Assignable,
    path: PathBuf,
    file: File,
}

/// What sysfs has of a device's file.
#[derive(Debug, PartialEq, Eq)]
enum Listed {
    /// Its name below /dev/vfio/devices.
    Name(String),
    /// A device without an IOMMU.
    NoIommu,
    Nothing,
}

fn listed(names: impl Iterator<Item = String>) -> Listed {
    let mut found = Listed::Nothing;
    for name in names {
        if name.starts_with("noiommu-") {
            return Listed::NoIommu;
        }
        if name.starts_with("vfio") {
            found = Listed::Name(name);
        }
    }
    found
}

impl Cdev {
    /// Opens it. Until it is bound it cannot be used.
    pub(super) fn open(function: &Assignable) -> Result<Self, CdevError> {
        let path = path_of(function)?;
        let file = File::options().read(true).write(true).open(&path);
        let function = function.clone();
        match file {
            Ok(file) => Ok(Self {
                function,
                path,
                file,
            }),
            Err(source) => Err(open_error(function, path, source)),
        }
    }

    /// Makes it a device of `iommufd`'s. It has one owner: neither it nor another device of its group may have another.
    pub(super) fn bind(&self, iommufd: BorrowedFd<'_>) -> Result<(), CdevError> {
        let mut bind = vfio_device_bind_iommufd {
            iommufd: iommufd.as_raw_fd(),
            ..Default::default()
        };
        // Which resets it.
        reset::patiently(&[libc::EAGAIN], || {
            ioctl::with_argument(&self.file, Request::DEVICE_BIND_IOMMUFD, &mut bind)
        })
        .map(drop)
        .map_err(|source| self.bind_error(source))
    }

    fn bind_error(&self, source: io::Error) -> CdevError {
        let function = self.function.clone();
        match source.raw_os_error() {
            // vfio_df_open() says EINVAL of a device that is open already, vfio_device_block_group() and
            // iommu_device_claim_dma_owner() EBUSY of one whose group has another owner.
            Some(libc::EBUSY | libc::EINVAL) => self.busy(function),
            // iommufd_device_bind() in drivers/iommu/iommufd/device.c
            Some(libc::EPERM) => CdevError::UnsafeInterrupts { function, source },
            _ => CdevError::Failed {
                function,
                what: "VFIO_DEVICE_BIND_IOMMUFD",
                source,
            },
        }
    }

    fn busy(&self, function: Assignable) -> CdevError {
        match culprit::blockers(std::slice::from_ref(&function)) {
            Some(why) => why.into(),
            None => CdevError::Busy {
                holders: group::number_of(&function)
                    .map(culprit::holders)
                    .unwrap_or_default(),
                path: self.path.clone(),
                function,
            },
        }
    }

    /// Attaches it to an address space of the iommufd that it is bound to.
    pub(super) fn attach(&self, ioas: u32) -> Result<(), CdevError> {
        let mut attach = vfio_device_attach_iommufd_pt {
            pt_id: ioas,
            ..Default::default()
        };
        ioctl::with_argument(&self.file, Request::DEVICE_ATTACH_IOMMUFD_PT, &mut attach)
            .map(drop)
            .map_err(|source| CdevError::Attach {
                function: self.function.clone(),
                source,
            })
    }

    pub(super) fn into_file(self) -> File {
        self.file
    }
}

impl AsFd for Cdev {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where the file of `function` is.
fn path_of(function: &Assignable) -> Result<PathBuf, CdevError> {
    let dir = function.sysfs();
    let entries = fs::read_dir(dir.join("vfio-dev")).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    match listed(names) {
        Listed::Name(name) => Ok(Path::new("/dev/vfio/devices").join(name)),
        Listed::NoIommu => Err(CdevError::NoIommu {
            function: function.clone(),
        }),
        Listed::Nothing => {
            let driver = fs::read_link(dir.join("driver")).unwrap_or_default();
            let driver = driver.file_name().and_then(|name| name.to_str());
            let vfio_pci = driver.is_some_and(|name| name.replace('_', "-").ends_with("vfio-pci"));
            Err(CdevError::Missing {
                function: function.clone(),
                // A mediated device is on the driver that made it, or is not there.
                on_vfio: vfio_pci || function.function().is_none(),
            })
        }
    }
}

fn open_error(function: Assignable, path: PathBuf, source: io::Error) -> CdevError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => CdevError::NotPermitted {
            function,
            path,
            source,
        },
        _ => CdevError::Failed {
            function,
            what: "opening its file in /dev/vfio/devices",
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cdev() -> Cdev {
        Cdev {
            function: Assignable::Function("0000:03:10.3".parse().unwrap()),
            path: "/dev/vfio/devices/vfio0".into(),
            file: File::open("/dev/null").unwrap(),
        }
    }

    #[test]
    fn the_file_of_a_device_is_found_among_what_sysfs_lists() {
        let of = |names: &[&str]| listed(names.iter().map(|name| (*name).to_owned()));
        assert_eq!(of(&["power", "vfio12"]), Listed::Name("vfio12".into()));
        assert_eq!(of(&["noiommu-vfio0"]), Listed::NoIommu);
        assert_eq!(of(&[]), Listed::Nothing);
    }

    #[test]
    fn why_a_device_cannot_be_bound_is_told_apart_and_says_what_to_do() {
        let of = |errno| {
            let error = cdev().bind_error(io::Error::from_raw_os_error(errno));
            error.to_string()
        };
        for errno in [libc::EBUSY, libc::EINVAL] {
            assert!(of(errno).ends_with("sudo fuser -v /dev/vfio/devices/vfio0"));
        }
        assert!(of(libc::EPERM).ends_with("iommufd/parameters/allow_unsafe_interrupts"));
        assert!(of(libc::ENODEV).contains("VFIO_DEVICE_BIND_IOMMUFD failed"));
    }

    #[test]
    fn a_device_that_is_not_there_has_no_file() {
        let function = Assignable::Function("ffff:ff:1f.7".parse().unwrap());
        let error = path_of(&function).unwrap_err();
        assert!(error.to_string().ends_with("viaduct bind ffff:ff:1f.7"));
    }
}
