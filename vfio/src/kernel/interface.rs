//! The two ways in which the kernel lets a process map memory for devices: which one a machine uses.

use std::{fmt, path::Path};

/// One of the kernel's interfaces to the IOMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// Groups in a container of type 1 (`/dev/vfio/vfio`, `/dev/vfio/N`): every kernel with VFIO has had it.
    Container,
    /// iommufd and the devices' own files (`/dev/iommu`, `/dev/vfio/devices/vfioN`): since Linux 6.6, where it is configured.
    Iommufd,
}

impl Interface {
    /// What this host has. The container if it has both, because more kernels do and because it maps BARs as well; none if it has
    /// neither, or not before a module is loaded.
    pub fn of_host() -> Option<Self> {
        Self::found_in(Path::new("/dev"))
    }

    fn found_in(dev: &Path) -> Option<Self> {
        [Self::Container, Self::Iommufd]
            .into_iter()
            .find(|interface| dev.join(interface.file_name()).exists())
    }

    fn file_name(self) -> &'static str {
        match self {
            Self::Container => "vfio/vfio",
            Self::Iommufd => "iommu",
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Container => "container",
            Self::Iommufd => "iommufd",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_container_is_preferred_and_iommufd_found_where_it_is_alone() {
        let dev = tempfile::tempdir().unwrap();
        assert_eq!(Interface::found_in(dev.path()), None);
        fs::write(dev.path().join("iommu"), "").unwrap();
        assert_eq!(Interface::found_in(dev.path()), Some(Interface::Iommufd));
        fs::create_dir(dev.path().join("vfio")).unwrap();
        fs::write(dev.path().join("vfio/vfio"), "").unwrap();
        assert_eq!(Interface::found_in(dev.path()), Some(Interface::Container));
    }
}
