//! The thread of a device: waits until a queue has something, or the host for the device, and serves it.
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

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd},
};

use super::{
    Answer, Backend, Finished,
    chain::{Chain, Garbage},
    function::AtStart,
    interrupts::{Cause, Interrupts},
};
use crate::mapping::GuestRam;

/// A queue that is in use, and what its driver rings.
pub(super) struct Served {
    pub(super) index: usize,
    pub(super) queue: Queue,
    pub(super) bell: Arc<EventFd>,
    /// Whether its driver rang, and nobody has looked yet.
    pub(super) has_rung: bool,
    /// Whether its first request waits for something else than its driver.
    pub(super) is_waiting: bool,
}

/// What the thread works with.
pub(super) struct Work {
    pub(super) name: String,
    pub(super) backend: Arc<Mutex<Box<dyn Backend>>>,
    pub(super) queues: Vec<Served>,
    pub(super) ram: Arc<dyn GuestRam>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) at_start: AtStart,
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

/// The tokens of `Stop::bell` and the device's source; the others are positions in `Work::queues`.
const STOP: u64 = u64::MAX;
const SOURCE: u64 = u64::MAX - 1;

impl Worker {
    /// Starts serving.
    pub(super) fn start(work: Work) -> io::Result<Self> {
        let stop = Arc::new(Stop {
            asked: AtomicBool::new(false),
            bell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        });
        let epoll = Epoll::new()?;
        let watch = |fd, token, events| {
            let event = EpollEvent::new(events, token);
            epoll.ctl(ControlOperation::Add, fd, event)
        };
        watch(stop.bell.as_raw_fd(), STOP, EventSet::IN)?;
        for (token, served) in (0..).zip(&work.queues) {
            watch(served.bell.as_raw_fd(), token, EventSet::IN)?;
        }
        let backend = work.backend.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = backend.source() {
            // By edges: what the driver has no room for yet stays there, and must not keep us awake.
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            watch(source, SOURCE, events)?;
        }
        drop(backend);
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
    (work.at_start)();
    let backend = work.backend.clone();
    let mut backend = backend.lock().unwrap_or_else(PoisonError::into_inner);
    serve_until(&mut work, &mut **backend, epoll, stop);
    backend.settle();
}

/// Serves until it is told to stop, or the driver's queues make no sense any more.
fn serve_until(work: &mut Work, backend: &mut dyn Backend, epoll: &Epoll, stop: &Stop) {
    let mut ready = [EpollEvent::default(); 8];
    loop {
        // Whose turn was over has more, but not before the others were heard.
        let has_more = work.queues.iter().any(|served| served.has_rung);
        let timeout_ms = if has_more { 0 } else { -1 };
        let count = match epoll.wait(timeout_ms, &mut ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return log::error!("{}: it is not served any more: {error}", work.name),
            Ok(count) => count,
        };
        for event in ready.iter().take(count) {
            match event.data() {
                STOP => return,
                SOURCE if backend.stirred() => work.interrupts.signal(Cause::Config),
                // What waits is served anew.
                SOURCE => {}
                queue => work.rang(queue),
            }
        }
        if let Err((queue, garbage)) = work.serve(backend, stop) {
            // The guest can do this as often as it resets the device, which is seldom enough to say at this level only.
            log::debug!("{}: queue {queue}: {garbage}: it needs a reset", work.name);
            return work.interrupts.need_reset();
        }
    }
}

impl Work {
    fn rang(&mut self, queue: u64) {
        let queue = usize::try_from(queue).unwrap_or(usize::MAX);
        if let Some(served) = self.queues.get_mut(queue) {
            // How often it rang does not matter: all that is there is served.
            let _ = served.bell.read();
            served.has_rung = true;
        }
    }

    /// Serves what rang and what waits, until nothing done in one queue makes anything possible in another.
    fn serve(&mut self, backend: &mut dyn Backend, stop: &Stop) -> Result<(), (usize, Garbage)> {
        let memory = self.ram.memory();
        loop {
            let mut has_served = false;
            for served in &mut self.queues {
                if served.has_rung || served.is_waiting {
                    served.has_rung = false;
                    let served_some = serve_all(served, backend, memory, &self.interrupts, stop);
                    has_served |= served_some.map_err(|garbage| (served.index, garbage))?;
                }
            }
            has_served |= finish(&mut self.queues, backend, memory, &self.interrupts)?;
            let has_more = self.queues.iter().any(|served| served.has_rung);
            if !has_served || has_more || stop.asked.load(Ordering::SeqCst) {
                return Ok(());
            }
        }
    }
}

/// Serves what is in a queue until it is empty and its driver will ring again, its first request has to wait, or it has had its turn:
/// as many requests as fit into it. Whether any was served.
fn serve_all(
    served: &mut Served,
    backend: &mut dyn Backend,
    memory: &GuestMemoryMmap,
    interrupts: &Interrupts,
    stop: &Stop,
) -> Result<bool, Garbage> {
    let Served { index, queue, .. } = served;
    let ring = |_| Garbage::Ring;
    let mut has_served = false;
    let mut left = queue.size();
    loop {
        queue.disable_notification(memory).map_err(ring)?;
        while let Some(chain) = Chain::next(queue, memory)? {
            let head = chain.head;
            match backend.serve(*index, chain, memory)? {
                Answer::Done(written) => {
                    let finished = Finished {
                        queue: *index,
                        head,
                        written,
                    };
                    give_back(queue, finished, memory, interrupts)?;
                }
                Answer::Later => {}
                Answer::NotYet => {
                    // It is taken again, and looked at again: what its driver writes over it meanwhile is its own loss.
                    queue.go_to_previous_position();
                    served.is_waiting = true;
                    return Ok(has_served);
                }
            }
            has_served = true;
            // A guest with several processors can keep a queue full for ever.
            if stop.asked.load(Ordering::SeqCst) {
                return Ok(has_served);
            }
            left = left.saturating_sub(1);
            if left == 0 {
                served.has_rung = true;
                return Ok(has_served);
            }
        }
        served.is_waiting = false;
        if !queue.enable_notification(memory).map_err(ring)? {
            return Ok(has_served);
        }
    }
}

/// Gives back what is done of the requests that go on; whether any was.
fn finish(
    queues: &mut [Served],
    backend: &mut dyn Backend,
    memory: &GuestMemoryMmap,
    interrupts: &Interrupts,
) -> Result<bool, (usize, Garbage)> {
    let mut has_finished = false;
    while let Some(finished) = backend.finished(memory).map_err(|garbage| (0, garbage))? {
        let from = finished.queue;
        let served = queues.iter_mut().find(|served| served.index == from);
        if let Some(Served { queue, .. }) = served {
            let given = give_back(queue, finished, memory, interrupts);
            given.map_err(|garbage| (from, garbage))?;
        }
        has_finished = true;
    }
    Ok(has_finished)
}

fn give_back(
    queue: &mut Queue,
    finished: Finished,
    memory: &GuestMemoryMmap,
    interrupts: &Interrupts,
) -> Result<(), Garbage> {
    let ring = |_| Garbage::Ring;
    let Finished { head, written, .. } = finished;
    queue.add_used(memory, head, written).map_err(ring)?;
    if queue.needs_notification(memory).map_err(ring)? {
        interrupts.signal(Cause::Queue(finished.queue));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
