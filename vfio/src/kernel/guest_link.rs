//! What KVM has to know of VFIO's files: the machine passes it on (Documentation/virt/kvm/devices/vfio.rst).

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

/// The guest's hypervisor, which is told of each file through which a device of the guest's can be reached: a group, or a device.
///
/// It keeps what it was told of open, until it is told otherwise or is dropped itself.
pub trait GuestLink: Send + Sync {
    /// Tells of a file.
    fn add(&self, file: BorrowedFd<'_>) -> io::Result<()>;
    /// Takes that back. The hypervisor lets go of the file.
    fn remove(&self, file: BorrowedFd<'_>);
}

/// A file that the hypervisor knows of for as long as this lives. To be dropped before the file is closed: the device of a file
/// that anybody holds goes on.
pub(super) struct Known {
    link: Arc<dyn GuestLink>,
    file: OwnedFd,
}

impl Known {
    pub(super) fn new(link: &Arc<dyn GuestLink>, file: impl AsFd) -> io::Result<Self> {
        let file = file.as_fd().try_clone_to_owned()?;
        link.add(file.as_fd())?;
        Ok(Self {
            link: link.clone(),
            file,
        })
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.link.remove(self.file.as_fd());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::fd::AsRawFd,
        sync::{Mutex, PoisonError},
    };

    use super::*;

    #[derive(Default)]
    struct Recorder {
        said: Mutex<Vec<(&'static str, i32)>>,
    }

    impl Recorder {
        fn note(&self, what: &'static str, file: BorrowedFd<'_>) {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push((what, file.as_raw_fd()));
        }
    }

    impl GuestLink for Recorder {
        fn add(&self, file: BorrowedFd<'_>) -> io::Result<()> {
            self.note("add", file);
            Ok(())
        }
        fn remove(&self, file: BorrowedFd<'_>) {
            self.note("remove", file);
        }
    }

    #[test]
    fn what_the_hypervisor_was_told_of_is_taken_back_while_it_is_still_open() {
        let recorder = Arc::new(Recorder::default());
        let link: Arc<dyn GuestLink> = recorder.clone();
        let file = File::open("/dev/null").unwrap();
        drop(Known::new(&link, &file).unwrap());
        let said = recorder.said.lock().unwrap();
        let [("add", added), ("remove", removed)] = said[..] else {
            panic!("{said:?}");
        };
        assert_eq!(added, removed);
    }
}
