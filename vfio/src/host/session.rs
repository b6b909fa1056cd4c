//! Reading and writing attributes for one change of bindings, from the lock of the journal to its release.

use std::{fs::File, io, sync::Arc};

use devices::pci::Bdf;

use super::{
    Host, StepError,
    attributes::{Answer, Attributes, Request},
    sysfs,
    variants::Variants,
};

/// Who does it at present.
#[derive(Default)]
pub(super) struct Session {
    /// The lock of the journal, for whom we start.
    lock: Option<File>,
    server: Option<Box<dyn Attributes>>,
    /// What is in the kernel's list of modules, once somebody wanted to know.
    variants: Option<Arc<Variants>>,
}

impl Host {
    /// From here on whoever accesses attributes holds this lock as well.
    pub(super) fn begin_session(&self, lock: File) {
        *self.session() = Session {
            lock: Some(lock),
            ..Session::default()
        };
    }

    /// Nobody accesses attributes any more, but who does not come back from it.
    pub(super) fn end_session(&self) {
        *self.session() = Session::default();
    }

    fn session(&self) -> std::sync::MutexGuard<'_, Session> {
        // Whoever panicked in there left it as it was: a session is replaced as a whole.
        self.session
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The drivers that were made for some devices. They are read once for all devices of one change.
    pub(super) fn variants(&self) -> Arc<Variants> {
        let mut session = self.session();
        if session.lock.is_none() {
            return Arc::new(self.read_variants());
        }
        let known = &mut session.variants;
        known
            .get_or_insert_with(|| Arc::new(self.read_variants()))
            .clone()
    }

    /// Reads an attribute of `device`, or writes to it. What the kernel answered; an error where it does not.
    pub(super) fn access(
        &self,
        device: Bdf,
        what: &'static str,
        request: Request,
    ) -> Result<io::Result<String>, StepError> {
        let mut session = self.session();
        let mut server = match session.server.take() {
            Some(server) => server,
            None => self
                .changes
                .clone()
                .attributes(session.lock.as_ref())
                .map_err(|cause| StepError::NoProcess {
                    device,
                    what,
                    cause,
                })?,
        };
        match server.access(request, self.patience) {
            Answer::Came(Ok(text)) => {
                session.server = Some(server);
                Ok(Ok(text))
            }
            Answer::Came(Err(error)) => {
                // With a number the error is the kernel's; without one, there may be nobody left to ask.
                session.server = Some(server).filter(|_| error.raw_os_error().is_some());
                Ok(Err(error))
            }
            Answer::Sleeps { pid } => Err(self.sleeps(device, what, pid)),
        }
    }

    fn sleeps(&self, device: Bdf, what: &'static str, pid: u32) -> StepError {
        let group = sysfs::link_name(&self.pci_dir(device).join("iommu_group"));
        let group = group.and_then(|number| number.parse().ok());
        // The function that it sleeps in; 0 where there is none or it is not ours to know (proc_pid_wchan(5)).
        let wchan = sysfs::text(&self.roots.proc.join(pid.to_string()).join("wchan"));
        StepError::Sleeps {
            device,
            what,
            seconds: self.patience.as_secs(),
            pid,
            inside: wchan.filter(|name| !name.is_empty() && name != "0"),
            holders: group.map(|group| self.holders(group)).unwrap_or_default(),
        }
    }
}
