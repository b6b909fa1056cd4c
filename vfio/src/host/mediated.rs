//! Mediated devices: what a driver of the host's makes of a device of its own, to be given to guests
//! (Documentation/driver-api/vfio-mediated-device.rst).
//!
//! There is nothing to bind: the driver that makes one keeps it, and hands it to whoever opens it.

use std::path::PathBuf;

use super::{Holder, Host, sysfs};

/// A mediated device cannot be assigned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MediatedError {
    /// Another process has it.
    #[error(
        "{uuid}: in use by {}\n  shut that guest down, or end the process:  kill {}",
        holder,
        holder.pid
    )]
    InUse {
        /// Which device.
        uuid: String,
        /// Who.
        holder: Holder,
    },
    /// It is for another bus.
    #[error(
        "{uuid}: is a device for {api}, and a guest here has only a PCI bus\n  \
         see which types are for vfio-pci:  grep . /sys/class/mdev_bus/*/mdev_supported_types/*/device_api"
    )]
    NotPci {
        /// Which device.
        uuid: String,
        /// What its type says.
        api: String,
    },
}

impl Host {
    /// Whether a mediated device can be given to a guest.
    pub fn check_mediated(&self, uuid: &str) -> Result<(), MediatedError> {
        let dir = self.mediated_dir().join(uuid);
        let api = sysfs::text(&dir.join("mdev_type/device_api"));
        if let Some(api) = api.filter(|api| api != "vfio-pci") {
            let uuid = uuid.to_owned();
            return Err(MediatedError::NotPci { uuid, api });
        }
        let group = sysfs::link_name(&dir.join("iommu_group")).and_then(|name| name.parse().ok());
        let holders = group.map(|group| self.holders(group)).unwrap_or_default();
        match holders
            .into_iter()
            .find(|one| one.pid != std::process::id())
        {
            Some(holder) => Err(MediatedError::InUse {
                uuid: uuid.to_owned(),
                holder,
            }),
            None => Ok(()),
        }
    }

    /// The mediated devices there are.
    pub(super) fn mediated(&self) -> Vec<String> {
        sysfs::names(&self.mediated_dir())
    }

    /// The attribute that makes a device called what is written to it, of the first type that has one left.
    pub(super) fn mediated_maker(&self) -> Option<PathBuf> {
        let parents = self.roots.sys.join("class/mdev_bus");
        let types = sysfs::names(&parents).into_iter().flat_map(|parent| {
            let types = parents.join(parent).join("mdev_supported_types");
            sysfs::names(&types)
                .into_iter()
                .map(move |name| types.join(name))
        });
        let mut left =
            types.filter(|dir| sysfs::number(&dir.join("available_instances")) != Some(0));
        let dir = left.next()?.join("create");
        // As the person sees it, wherever sysfs is for us.
        let below = dir.strip_prefix(&self.roots.sys).ok()?;
        Some(PathBuf::from("/sys").join(below))
    }

    fn mediated_dir(&self) -> PathBuf {
        self.roots.sys.join("bus/mdev/devices")
    }
}

/// `name` as the kernel writes a UUID, if it is one.
pub(super) fn uuid(name: &str) -> Option<String> {
    let lengths: Vec<usize> = name.split('-').map(str::len).collect();
    let hex = name.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
    (lengths == [8, 4, 4, 4, 12] && hex).then(|| name.to_ascii_lowercase())
}
