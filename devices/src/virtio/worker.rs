//! The thread of a device: waits until a queue has something, and serves it.
//!
//! It lives from DRIVER_OK to the device's reset, so that there is no half-configured state to be in. It takes no lock of the
//! function's; whoever stops it may hold that.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd},
};

use super::{
    Backend,
    chain::{Chain, Garbage},
    interrupts::{Cause, Interrupts},
};
use crate::mapping::GuestRam;

/// A queue that is in use, and what its driver rings.
pub(super) struct Served {
    pub(super) index: usize,
    pub(super) queue: Queue,
    pub(super) bell: Arc<EventFd>,
}

/// What the thread works with.
pub(super) struct Work {
    pub(super) name: String,
    pub(super) backend: Arc<Mutex<Box<dyn Backend>>>,
    pub(super) queues: Vec<Served>,
    pub(super) ram: Arc<dyn GuestRam>,
    pub(super) interrupts: Arc<Interrupts>,
}

/// The thread, until this is dropped.
pub(super) struct Worker {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

/// How it is told to end: the flag while it works, the bell while it waits.
struct Stop {
    asked: AtomicBool,
    bell: EventFd,
}

/// The token of `Stop::bell`; the others are positions in `Work::queues`.
const STOP: u64 = u64::MAX;

impl Worker {
    /// Starts serving.
    pub(super) fn start(work: Work) -> io::Result<Self> {
        let stop = Arc::new(Stop {
            asked: AtomicBool::new(false),
            bell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        });
        let epoll = Epoll::new()?;
        let watch = |eventfd: &EventFd, token| {
            let event = EpollEvent::new(EventSet::IN, token);
            epoll.ctl(ControlOperation::Add, eventfd.as_raw_fd(), event)
        };
        watch(&stop.bell, STOP)?;
        for (token, served) in (0..).zip(&work.queues) {
            watch(&served.bell, token)?;
        }
        let told = stop.clone();
        let thread = thread::Builder::new()
            .name(work.name.clone())
            .spawn(move || run(work, &epoll, &told))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.asked.store(true, Ordering::SeqCst);
        // It cannot be full: this is the only signal that it ever gets.
        let _ = self.stop.bell.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of a virtio device died");
        }
    }
}

fn run(mut work: Work, epoll: &Epoll, stop: &Stop) {
    let mut backend = work.backend.lock().unwrap_or_else(PoisonError::into_inner);
    let memory = work.ram.memory();
    let mut ready = [EpollEvent::default(); 8];
    loop {
        let count = match epoll.wait(-1, &mut ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return log::error!("{}: it is not served any more: {error}", work.name),
            Ok(count) => count,
        };
        for event in ready.iter().take(count) {
            let at = usize::try_from(event.data()).unwrap_or(usize::MAX);
            let Some(served) = work.queues.get_mut(at) else {
                return;
            };
            // How often it rang does not matter: all that is there is served.
            let _ = served.bell.read();
            let interrupts = &*work.interrupts;
            if let Err(garbage) = serve_all(served, &mut **backend, memory, interrupts, stop) {
                // The guest can do this as often as it resets the device, which is seldom enough to say at this level only.
                log::debug!(
                    "{}: queue {}: {garbage}: it needs a reset",
                    work.name,
                    served.index
                );
                return interrupts.need_reset();
            }
        }
    }
}

/// Serves what is in a queue until it is empty and its driver will ring again.
fn serve_all(
    served: &mut Served,
    backend: &mut dyn Backend,
    memory: &GuestMemoryMmap,
    interrupts: &Interrupts,
    stop: &Stop,
) -> Result<(), Garbage> {
    let Served { index, queue, .. } = served;
    let ring = |_| Garbage::Ring;
    loop {
        queue.disable_notification(memory).map_err(ring)?;
        while let Some(chain) = Chain::next(queue, memory)? {
            let head = chain.head;
            let written = backend.serve(*index, chain, memory)?;
            queue.add_used(memory, head, written).map_err(ring)?;
            if queue.needs_notification(memory).map_err(ring)? {
                interrupts.signal(Cause::Queue(*index));
            }
            // A guest with several processors can keep a queue full for ever.
            if stop.asked.load(Ordering::SeqCst) {
                return Ok(());
            }
        }
        if !queue.enable_notification(memory).map_err(ring)? {
            return Ok(());
        }
    }
}
