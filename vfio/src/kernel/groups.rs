//! The container with a machine's groups in it: the first of the kernel's two interfaces.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
};

use super::{
    GuestLink, Interface,
    container::Container,
    culprit,
    device::DeviceError,
    group::{self, Group, GroupError},
    guest_link::Known,
    iommu::{AddressSpace, IommuError, OpenDevice, lock},
    iova::IovaRange,
};
use crate::Assignable;

/// Groups in a container.
pub(super) struct Groups {
    link: Arc<dyn GuestLink>,
    // Kept until the end, even when the last of its devices is gone: the container drops its mappings with its last group.
    members: Mutex<Vec<(Known, Group)>>,
    container: Container,
    usable: Vec<IovaRange>,
}

impl Groups {
    /// Opens the groups of `functions` (at least one) and puts them into a container. Devices are opened when they are asked for.
    pub(super) fn open(
        functions: &[Assignable],
        link: &Arc<dyn GuestLink>,
    ) -> Result<Self, IommuError> {
        let container = Container::open()?;
        let mut groups: Vec<Group> = Vec::new();
        for function in functions {
            let number = group::number_of(function)?;
            if groups.iter().all(|group| group.number() != number) {
                groups.push(join(&container, number).map_err(|error| blamed(error, functions))?);
            }
        }
        container.set_iommu()?;
        let usable = container.usable()?;
        // Only now: that the container has its IOMMU is what KVM learns of coherency from.
        let known = groups.into_iter().map(|group| tell(link, group));
        Ok(Self {
            link: link.clone(),
            members: Mutex::new(known.collect::<Result<_, _>>()?),
            container,
            usable,
        })
    }
}

fn join(container: &Container, number: u32) -> Result<Group, IommuError> {
    let group = Group::open(number)?;
    group.join(container)?;
    Ok(group)
}

/// A group that is not viable, with the name of who stands in the way.
fn blamed(error: IommuError, functions: &[Assignable]) -> IommuError {
    match error {
        IommuError::Group(GroupError::NotViable { .. }) => {
            culprit::blockers(functions).map_or(error, |why| GroupError::Blocked(why).into())
        }
        other => other,
    }
}

fn tell(link: &Arc<dyn GuestLink>, group: Group) -> Result<(Known, Group), IommuError> {
    let known = Known::new(link, group.as_fd()).map_err(IommuError::Link)?;
    Ok((known, group))
}

impl AddressSpace for Groups {
    fn interface(&self) -> Interface {
        Interface::Container
    }

    fn usable(&self) -> Result<Vec<IovaRange>, IommuError> {
        Ok(self.usable.clone())
    }

    fn map(&self, iova: u64, address: u64, len: u64, writable: bool) -> io::Result<()> {
        self.container.map(iova, address, len, writable)
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        self.container.unmap(iova, len)
    }

    fn device(&self, function: &Assignable) -> Result<OpenDevice, IommuError> {
        let number = group::number_of(function)?;
        let mut members = lock(&self.members);
        if members.iter().all(|(_, group)| group.number() != number) {
            let group = join(&self.container, number)?;
            members.push(tell(&self.link, group)?);
        }
        let mut groups = members.iter().map(|(_, group)| group);
        let fd = match groups.find(|group| group.number() == number) {
            Some(group) => group.device(function),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let fd = fd.map_err(|source| DeviceError::Open {
            function: function.clone(),
            source,
        })?;
        Ok(OpenDevice {
            known: None,
            file: File::from(fd),
        })
    }

    fn groups(&self) -> io::Result<Vec<(u32, OwnedFd)>> {
        let members = lock(&self.members);
        let files = members.iter().map(|(_, group)| {
            let file = group.as_fd().try_clone_to_owned()?;
            Ok((group.number(), file))
        });
        files.collect()
    }
}
