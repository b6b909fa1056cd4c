//! Packets that the kernel carries between a guest's queues and a tap: vhost-net.

use std::{io, os::fd::BorrowedFd, sync::Arc};

use devices::virtio::{Engine, Ring, net::Wire};
use vhost::{net::VhostNet as _, vhost_kern::net::Net as Kernel};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::{Kind, VhostError, check, nobody, plain, set_line, set_ring};
use crate::net::Queue;

static KIND: Kind = Kind {
    path: "/dev/vhost-net",
    module: "vhost_net",
    instead: "have a thread of ours carry packets:  vhost=off",
    // What the device offers and not the tap: packets in several requests (virtio 1.2 §5.1.3), indirect descriptors, event indexes,
    // version 1 (§6).
    features: 1 << 15 | 1 << 28 | 1 << 29 | 1 << 32,
    options: 0,
};

/// The kernel's side of one network device.
pub struct VhostNet {
    pairs: Vec<Pair>,
    memory: Arc<GuestMemoryMmap>,
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
    /// Whether the kernel would.
    pub fn check() -> Result<(), VhostError> {
        KIND.opened(Kernel::new(Arc::<GuestMemoryMmap>::default()))
            .map(drop)
    }

    /// For the queues of one tap, and the guest's RAM.
    pub fn open(queues: &[Arc<Queue>], memory: &GuestMemoryMmap) -> Result<Self, VhostError> {
        let memory = Arc::new(memory.clone());
        let pairs = queues.iter().map(|tap| Pair::open(tap, &memory));
        Ok(Self {
            pairs: pairs.collect::<Result<_, _>>()?,
            memory,
            nobody: nobody().map_err(|error| KIND.failed(error))?,
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
        let kernel = KIND.opened(Kernel::new(memory.clone()))?;
        KIND.own(&kernel, memory)?;
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
        KIND.agree(&self.kernel, features)?;
        for ring in rings {
            let queue = ring.queue % 2;
            set_ring(&self.kernel, queue, ring, nobody)?;
            self.serves[queue] = true;
            self.kernel
                .set_backend(queue, Some(self.tap.file()))
                .map_err(plain)?;
        }
        Ok(())
    }

    /// The kernel lets go of a queue before the call returns (vhost_net_set_backend in drivers/vhost/net.c flushes it).
    fn stop(&mut self) {
        for (queue, serves) in self.serves.iter_mut().enumerate() {
            if std::mem::take(serves)
                && let Err(error) = self.kernel.set_backend(queue, None)
            {
                log::error!("{} does not stop: {}", KIND.path, plain(error));
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
            Some(pair) => set_line(&pair.kernel, queue % 2, line, &self.nobody),
            None => Ok(()),
        }
    }

    fn stop(&mut self) {
        self.pairs.iter_mut().for_each(Pair::stop);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn a_start_with_one_ring_out_of_ram_is_refused_before_the_kernel_hears_of_any() {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let mut net = VhostNet {
            pairs: Vec::new(),
            memory: Arc::new(ram),
            nobody: nobody().unwrap(),
        };
        let bell = nobody().unwrap();
        let ring = |queue, used| Ring {
            queue,
            max: 256,
            size: 256,
            descriptors: 0,
            available: 0x2000,
            used,
            bell: &bell,
            line: None,
        };
        let end = 0x1_0000 - 6 - 8 * 256;
        assert!(net.start(0, &[ring(0, 0x3000), ring(1, end)]).is_ok());
        assert!(net.start(0, &[ring(0, 0x3000), ring(1, end + 4)]).is_err());
    }
}
