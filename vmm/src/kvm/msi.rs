//! Message-signalled vectors over KVM's irqfds.
//!
//! A vector is an eventfd and a GSI. While it is routed the eventfd is an irqfd: its signal becomes the guest's interrupt inside
//! the kernel. While it is masked the irqfd is detached and the eventfd keeps what it is told; attaching it again delivers that,
//! once, because KVM looks at the eventfd when it attaches (kvm_irqfd_assign in virt/kvm/eventfd.c).
//!
//! All that a guest unmasks with one write is one update of KVM's table. A Linux guest makes it one for each vector all the same: what
//! it writes when it enables MSI-X is a placeholder, and the message is known only when that vector is requested, just before it is
//! unmasked (x86_vector_activate in arch/x86/kernel/apic/vector.c). To set routes ahead of that would set ones that never serve.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use devices::interrupt::{MsiMessage, MsiSource, MsiVectors};
use vmm_sys_util::eventfd::EventFd;

use super::{eventfd::borrowed, routes::Routes};

/// Hands out vectors of one VM.
pub struct MsiController(pub Arc<Routes>);

impl MsiSource for MsiController {
    fn vectors(&self, count: usize) -> io::Result<Box<dyn MsiVectors>> {
        Ok(Box::new(Vectors::new(self.0.clone(), count)))
    }
}

struct Vectors {
    routes: Arc<Routes>,
    vectors: Box<[OnceLock<Vector>]>,
    making: Mutex<()>,
}

struct Vector {
    eventfd: EventFd,
    gsi: u32,
    /// Whether the eventfd is an irqfd now. Held while that changes, so that two vCPUs cannot attach it twice.
    attached: Mutex<bool>,
}

impl Vectors {
    fn new(routes: Arc<Routes>, count: usize) -> Self {
        Self {
            routes,
            vectors: (0..count).map(|_| OnceLock::new()).collect(),
            making: Mutex::default(),
        }
    }

    fn get(&self, vector: usize) -> io::Result<&Vector> {
        let cell = self.vectors.get(vector).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("vector {vector} of {}", self.vectors.len()),
            )
        })?;
        let _one_maker = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if cell.get().is_none() {
            let eventfd = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
            let gsi = self.routes.allocate()?;
            let _ = cell.set(Vector {
                eventfd,
                gsi,
                attached: Mutex::new(false),
            });
        }
        cell.get()
            .ok_or_else(|| io::Error::other("a vector that was just made is gone"))
    }
}

impl Vector {
    fn attach(&self, routes: &Routes) -> io::Result<()> {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if !*attached {
            routes
                .vm
                .register_irqfd(&self.eventfd, self.gsi)
                .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
            *attached = true;
            // What was latched is on its way to the guest, and KVM leaves it in the eventfd: it would look pending, and come again,
            // when the vector is next masked. A signal from now on is consumed as it comes, so what is read here is old.
            let _ = self.eventfd.read();
        }
        Ok(())
    }

    fn detach(&self, routes: &Routes) -> io::Result<()> {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if *attached {
            routes
                .vm
                .unregister_irqfd(&self.eventfd, self.gsi)
                .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
            *attached = false;
        }
        Ok(())
    }

    fn is_attached(&self) -> bool {
        *self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MsiVectors for Vectors {
    fn eventfd(&self, vector: usize) -> io::Result<BorrowedFd<'_>> {
        Ok(borrowed(&self.get(vector)?.eventfd))
    }

    fn route(&self, changes: &[(usize, Option<MsiMessage>)]) -> io::Result<()> {
        // Off before the route changes, on after it: never an interrupt over a stale route. The route of a masked vector stays in
        // the table, where it costs nothing, so that mask and unmask are one ioctl each. One vector's failure is not another's: all
        // are tried, and the first error is told.
        let mut failed = None;
        let mut note = |error: io::Error| {
            failed.get_or_insert(error);
        };
        for &(vector, message) in changes {
            if message.is_none()
                && let Some(vector) = self.vectors.get(vector).and_then(OnceLock::get)
            {
                vector.detach(&self.routes).unwrap_or_else(&mut note);
            }
        }
        let mut routed = Vec::new();
        for &(vector, message) in changes {
            let Some(message) = message else { continue };
            match self.get(vector) {
                Ok(vector) => routed.push((vector, message)),
                Err(error) => note(error),
            }
        }
        let messages = routed
            .iter()
            .map(|(vector, message)| (vector.gsi, *message));
        self.routes.set(messages)?;
        for (vector, _) in &routed {
            vector.attach(&self.routes).unwrap_or_else(&mut note);
        }
        failed.map_or(Ok(()), Err)
    }

    fn is_latched(&self, vector: usize) -> bool {
        let Some(vector) = self.vectors.get(vector).and_then(OnceLock::get) else {
            return false;
        };
        let mut poll = libc::pollfd {
            fd: vector.eventfd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd, on this stack frame, and a timeout of zero.
        let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
        ready == 1
    }

    fn clear_latched(&self) {
        for vector in self
            .vectors
            .iter()
            .filter_map(OnceLock::get)
            .filter(|v| !v.is_attached())
        {
            // The eventfd is non-blocking: EAGAIN says that nothing was latched.
            let _ = vector.eventfd.read();
        }
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        let made: Vec<_> = self.vectors.iter().filter_map(OnceLock::get).collect();
        for vector in &made {
            if let Err(error) = vector.detach(&self.routes) {
                log::error!("GSI {} stays attached: {error}", vector.gsi);
            }
        }
        self.routes
            .release(&made.iter().map(|vector| vector.gsi).collect::<Vec<_>>());
    }
}

#[cfg(test)]
mod tests;
