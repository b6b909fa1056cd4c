//! Sockets between a guest and its host by the host's kernel: vhost-vsock. Programs of the host's reach the guest by `AF_VSOCK` as well.

use std::{io, os::fd::BorrowedFd, sync::Arc};

use devices::virtio::{Engine, Ring, vsock::F_SEQPACKET};
use vhost::{VhostBackend, vhost_kern::vsock::Vsock as Kernel, vsock::VhostVsock as _};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::{Kind, VhostError, check, nobody, plain, set_line, set_ring};

static KIND: Kind = Kind {
    path: "/dev/vhost-vsock",
    module: "vhost_vsock",
    instead: "have a thread of ours carry the data, to a Unix socket:  --vsock 3,/run/guest.vsock",
    // Indirect descriptors, event indexes, version 1 (virtio 1.2 §6).
    features: 1 << 28 | 1 << 29 | 1 << 32,
    options: F_SEQPACKET,
};

/// Those of packets: to the guest, and from it.
const QUEUES: usize = 2;

/// The kernel's side of the socket device.
pub struct VhostVsock {
    kernel: Kernel<Arc<GuestMemoryMmap>>,
    memory: Arc<GuestMemoryMmap>,
    nobody: EventFd,
    features: u64,
    is_running: bool,
}

impl VhostVsock {
    /// Whether the kernel would let a guest have this number now.
    pub fn check(cid: u32) -> Result<(), VhostError> {
        claim(cid, Arc::default()).map(drop)
    }

    /// For the guest whose number is `cid`, which nobody else on this host has meanwhile, and its RAM.
    pub fn open(cid: u32, memory: &GuestMemoryMmap) -> Result<Self, VhostError> {
        let memory = Arc::new(memory.clone());
        let kernel = claim(cid, memory.clone())?;
        KIND.own(&kernel, &memory)?;
        let features = kernel.get_features();
        Ok(Self {
            features: features.map_err(|error| KIND.failed(plain(error)))?,
            kernel,
            memory,
            nobody: nobody().map_err(|error| KIND.failed(error))?,
            is_running: false,
        })
    }

    /// What the device can offer over this beyond what every device does.
    pub fn features(&self) -> u64 {
        self.features & KIND.options
    }

    fn try_start(&mut self, features: u64, rings: &[Ring<'_>]) -> io::Result<()> {
        if rings.len() != QUEUES {
            // It would start with what an earlier driver left in the other.
            return Err(io::Error::other("one of its queues is not enabled"));
        }
        KIND.agree(&self.kernel, features)?;
        for ring in rings {
            check(ring, &self.memory)?;
            set_ring(&self.kernel, ring.queue, ring, &self.nobody)?;
        }
        // Both queues or none: if this fails none is served (vhost_vsock_start in drivers/vhost/vsock.c).
        self.kernel.start().map_err(plain)
    }
}

fn claim(
    cid: u32,
    memory: Arc<GuestMemoryMmap>,
) -> Result<Kernel<Arc<GuestMemoryMmap>>, VhostError> {
    let kernel = KIND.opened(Kernel::new(memory))?;
    let claimed = kernel.set_guest_cid(cid.into()).map_err(plain);
    claimed.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => VhostError::CidInUse(cid),
        _ => KIND.failed(error),
    })?;
    Ok(kernel)
}

impl Engine for VhostVsock {
    fn start(&mut self, features: u64, rings: &[Ring<'_>]) -> io::Result<()> {
        self.try_start(features, rings)?;
        self.is_running = true;
        Ok(())
    }

    fn interrupt_by(&mut self, queue: usize, line: Option<BorrowedFd<'_>>) -> io::Result<()> {
        match self.is_running {
            true => set_line(&self.kernel, queue, line, &self.nobody),
            false => Ok(()),
        }
    }

    fn stop(&mut self) {
        if std::mem::take(&mut self.is_running)
            && let Err(error) = self.kernel.stop()
        {
            log::error!("{} does not stop: {}", KIND.path, plain(error));
        }
    }
}
