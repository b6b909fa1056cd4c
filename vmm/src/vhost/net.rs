//! Packets that the kernel carries between a guest's queues and a tap: vhost-net.
//!
//! It reads and writes the guest's queues by itself, wakes when their driver rings and signals their vectors' eventfds. It is told of the
//! guest's RAM and nothing else of this process. What is in a queue it looks up in that; where the queue itself is it believes us, so
//! that is checked here.

use std::{
    io,
    os::fd::{BorrowedFd, FromRawFd, IntoRawFd},
    sync::Arc,
};

use devices::virtio::{Engine, Ring, net::Wire};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData, net::VhostNet as _,
    vhost_kern::net::Net as Kernel,
};
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::tap::Queue;

const DEVICE: &str = "/dev/vhost-net";
/// What the device offers and not the tap but the kernel's vhost has to know of: packets in several requests (virtio 1.2 §5.1.3),
/// indirect descriptors, event indexes, version 1 (§6).
const NEEDED: u64 = 1 << 15 | 1 << 28 | 1 << 29 | 1 << 32;

/// The kernel does not carry packets.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// Its device cannot be opened.
    #[error(
        "{DEVICE} cannot be opened\n  {advice}, or have a thread of ours carry packets:  vhost=off"
    )]
    Open {
        /// What the kernel said.
        source: io::Error,
        /// What to do about it.
        advice: &'static str,
    },
    /// It is too old.
    #[error("{DEVICE} lacks features {0:#x}\n  have a thread of ours carry packets:  vhost=off")]
    Features(u64),
    /// It fails.
    #[error("{DEVICE} cannot be set up\n  have a thread of ours carry packets:  vhost=off")]
    SetUp(#[source] io::Error),
}

/// The kernel's side of one network device.
pub struct VhostNet {
    pairs: Vec<Pair>,
    memory: Arc<GuestMemoryMmap>,
    /// What is signalled for a queue without a vector: nobody hears it.
    nobody: EventFd,
}

/// One pair of queues: an instance of the kernel's, and the tap's queue behind it.
struct Pair {
    kernel: Kernel<Arc<GuestMemoryMmap>>,
    tap: Arc<Queue>,
    /// Whether the kernel has its receiving and its sending queue.
    serves: [bool; 2],
}

impl VhostNet {
    /// For the queues of one tap, and the guest's RAM.
    pub fn open(queues: &[Arc<Queue>], memory: &GuestMemoryMmap) -> Result<Self, VhostError> {
        let memory = Arc::new(memory.clone());
        let nobody = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VhostError::SetUp)?;
        let pairs = queues.iter().map(|tap| Pair::open(tap, &memory));
        Ok(Self {
            pairs: pairs.collect::<Result<_, _>>()?,
            memory,
            nobody,
        })
    }

    fn try_start(&mut self, features: u64, rings: &[Ring<'_>]) -> io::Result<()> {
        for ring in rings {
            check(ring, &self.memory)?;
        }
        for (number, pair) in self.pairs.iter_mut().enumerate() {
            let own = rings.iter().filter(|ring| ring.queue / 2 == number);
            // The kernel wants a queue of the tap's that is in use; its driver has to ask for all but the first.
            pair.tap.attach(true)?;
            pair.start(features, own, &self.nobody)?;
            if number > 0 {
                pair.tap.attach(false)?;
            }
        }
        Ok(())
    }
}

impl Pair {
    fn open(tap: &Arc<Queue>, memory: &Arc<GuestMemoryMmap>) -> Result<Self, VhostError> {
        let set_up = |error| VhostError::SetUp(plain(error));
        let kernel = Kernel::new(memory.clone()).map_err(|error| {
            let source = plain(error);
            let advice = match source.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => {
                    "add yourself to the group that may:  ls -l /dev/vhost-net"
                }
                _ => "load it:  modprobe vhost_net",
            };
            VhostError::Open { source, advice }
        })?;
        kernel.set_owner().map_err(set_up)?;
        let lacking = NEEDED & !kernel.get_features().map_err(set_up)?;
        if lacking != 0 {
            return Err(VhostError::Features(lacking));
        }
        let regions: Vec<_> = memory
            .iter()
            .map(region)
            .collect::<Result<_, _>>()
            .map_err(VhostError::SetUp)?;
        kernel.set_mem_table(&regions).map_err(set_up)?;
        Ok(Self {
            kernel,
            tap: tap.clone(),
            serves: [false; 2],
        })
    }

    fn start<'a>(
        &mut self,
        features: u64,
        rings: impl Iterator<Item = &'a Ring<'a>>,
        nobody: &EventFd,
    ) -> io::Result<()> {
        self.kernel.set_features(features & NEEDED).map_err(plain)?;
        for ring in rings {
            let queue = ring.queue % 2;
            let places = VringConfigData {
                queue_max_size: ring.max,
                queue_size: ring.size,
                desc_table_addr: ring.descriptors,
                avail_ring_addr: ring.available,
                used_ring_addr: ring.used,
                ..VringConfigData::default()
            };
            let kernel = &self.kernel;
            kernel.set_vring_num(queue, ring.size).map_err(plain)?;
            kernel.set_vring_base(queue, 0).map_err(plain)?;
            kernel.set_vring_addr(queue, &places).map_err(plain)?;
            kernel.set_vring_kick(queue, ring.bell).map_err(plain)?;
            self.interrupt_by(queue, ring.line, nobody)?;
            self.serves[queue] = true;
            self.kernel
                .set_backend(queue, Some(self.tap.file()))
                .map_err(plain)?;
        }
        Ok(())
    }

    fn interrupt_by(
        &self,
        queue: usize,
        line: Option<BorrowedFd<'_>>,
        nobody: &EventFd,
    ) -> io::Result<()> {
        let own = line.map(eventfd).transpose()?;
        let line = own.as_ref().unwrap_or(nobody);
        self.kernel.set_vring_call(queue, line).map_err(plain)
    }

    /// The kernel lets go of a queue before the call returns (vhost_net_set_backend in drivers/vhost/net.c flushes it).
    fn stop(&mut self) {
        for (queue, serves) in self.serves.iter_mut().enumerate() {
            if std::mem::take(serves)
                && let Err(error) = self.kernel.set_backend(queue, None)
            {
                log::error!("{DEVICE} does not stop: {}", plain(error));
            }
        }
    }
}

impl Engine for VhostNet {
    fn start(&mut self, features: u64, rings: &[Ring<'_>]) -> io::Result<()> {
        let started = self.try_start(features, rings);
        if started.is_err() {
            self.stop();
        }
        started
    }

    fn interrupt_by(&mut self, queue: usize, line: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let pair = self.pairs.get(queue / 2);
        match pair.filter(|pair| pair.serves[queue % 2]) {
            Some(pair) => pair.interrupt_by(queue % 2, line, &self.nobody),
            None => Ok(()),
        }
    }

    fn stop(&mut self) {
        self.pairs.iter_mut().for_each(Pair::stop);
    }
}

/// Each part of a ring is in one piece in this process: the kernel goes on from its start, whatever is there.
fn check(ring: &Ring<'_>, memory: &GuestMemoryMmap) -> io::Result<()> {
    let size = usize::from(ring.size);
    let parts = [
        (ring.descriptors, 16 * size),
        (ring.available, 6 + 2 * size),
        (ring.used, 6 + 8 * size),
    ];
    for (at, len) in parts {
        let slice = memory.get_slice(GuestAddress(at), len);
        slice.map_err(|error| io::Error::other(format!("queue {}: {error}", ring.queue)))?;
    }
    Ok(())
}

/// Where a range of RAM is, for the guest and in this process.
fn region(region: &impl GuestMemoryRegion) -> io::Result<VhostUserMemoryRegionInfo> {
    let start = region.get_host_address(MemoryRegionAddress(0));
    let start = start.map_err(io::Error::other)?;
    Ok(VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: start as u64,
        ..VhostUserMemoryRegionInfo::default()
    })
}

/// What the kernel said, without the crate's words around it.
fn plain(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::VhostOpen(error)
        | vhost::Error::IoctlError(error)
        | vhost::Error::IOError(error) => error,
        other => io::Error::other(other),
    }
}

/// The same eventfd as the type that the crate wants.
fn eventfd(line: BorrowedFd<'_>) -> io::Result<EventFd> {
    let own = line.try_clone_to_owned()?.into_raw_fd();
    // SAFETY: the descriptor was made a line above and given up there: it is open and nobody else's.
    Ok(unsafe { EventFd::from_raw_fd(own) })
}
