//! A virtio device as its registers show it: common configuration, vectors, and the thread that serves it while it runs.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{
    Backend, Engine, Kind, Ring,
    common::{Common, Effect},
    function::AtStart,
    interrupts::{Cause, Interrupts},
    queue::QueueRegisters,
    registers::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1},
    worker::{Served, Work, Worker},
};
use crate::{interrupt::MsiSource, mapping::GuestRam, pci::msix::Msix};

/// What the transport offers for every device.
const TRANSPORT_FEATURES: u64 = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX;

/// One device.
pub(super) struct Device {
    pub(super) kind: Kind,
    pub(super) msix: Msix,
    pub(super) interrupts: Arc<Interrupts>,
    /// What the driver rings, by queue.
    pub(super) bells: Vec<Arc<EventFd>>,
    common: Common,
    backend: Arc<Mutex<Box<dyn Backend>>>,
    worker: Option<Worker>,
    /// Whoever serves queues in place of the worker. Gone before the memory that it knows addresses of.
    engine: Option<Box<dyn Engine>>,
    ram: Arc<dyn GuestRam>,
    at_start: AtStart,
}

impl Device {
    /// At power-on.
    pub(super) fn new(
        mut backend: Box<dyn Backend>,
        msi: &dyn MsiSource,
        ram: Arc<dyn GuestRam>,
        at_start: AtStart,
    ) -> io::Result<Self> {
        let engine = backend.engine();
        let kind = backend.kind();
        let queues = kind.queues.len();
        // One for the configuration, and one for each queue.
        let vectors = u16::try_from(queues + 1).map_err(io::Error::other)?;
        let interrupts = Interrupts::new(msi.vectors(vectors.into())?, vectors.into(), queues);
        let bell = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new);
        Ok(Self {
            common: Common::new(kind.features | TRANSPORT_FEATURES, &kind.queues),
            msix: Msix::new(vectors),
            interrupts: Arc::new(interrupts),
            bells: (0..queues).map(|_| bell()).collect::<Result<_, _>>()?,
            kind,
            backend: Arc::new(Mutex::new(backend)),
            worker: None,
            engine,
            ram,
            at_start,
        })
    }

    /// Reads the common configuration.
    pub(super) fn common_read(&self, offset: usize, data: &mut [u8]) {
        let needs_reset = self.interrupts.needs_reset();
        let generation = self.kind.config.generation();
        self.common.read(offset, data, needs_reset, generation);
    }

    /// Writes the common configuration, and does what that asks for.
    pub(super) fn common_write(&mut self, offset: usize, data: &[u8]) {
        match self.common.write(offset, data) {
            Effect::None => {}
            Effect::Reset => self.reset(),
            Effect::Start => self.start(),
            Effect::Vector(cause, vector) => self.assign(cause, vector),
        }
    }

    fn assign(&mut self, cause: Cause, vector: u16) {
        let taken = self.interrupts.assign(cause, vector);
        self.common.set_vector(cause, taken.then_some(vector));
        if let (Cause::Queue(queue), Some(engine)) = (cause, &mut self.engine) {
            let line = self.interrupts.eventfd_of(cause);
            let line = line.as_deref().map(AsFd::as_fd);
            if let Err(error) = engine.interrupt_by(queue, line) {
                log::error!("{}: vector {vector}: {error}", self.kind.name);
            }
        }
    }

    /// Has the queues served. One that is not as it has to be costs the guest the device.
    fn start(&mut self) {
        // With no thread nobody has the backend.
        self.worker = None;
        let mut backend = self.backend.lock().unwrap_or_else(PoisonError::into_inner);
        backend.agree(self.common.features());
        let queues: Option<Vec<_>> = self
            .common
            .enabled()
            .map(|queue| self.serve(queue))
            .collect();
        let Some(queues) = queues else {
            log::debug!(
                "{}: a queue of its is not in memory: it needs a reset",
                self.kind.name
            );
            return self.interrupts.need_reset();
        };
        let (handed, kept): (Vec<_>, Vec<_>) = queues
            .into_iter()
            .partition(|served| backend.is_handed_over(served.index));
        drop(backend);
        if let Err(error) = self.start_engine(&handed) {
            log::error!("{}: it is not served: {error}", self.kind.name);
            return self.interrupts.need_reset();
        }
        if handed.is_empty() || !kept.is_empty() {
            self.start_worker(kept);
        }
    }

    /// Hands queues over that are known to be in memory.
    fn start_engine(&mut self, handed: &[Served]) -> io::Result<()> {
        let Some(engine) = &mut self.engine else {
            return Ok(());
        };
        let registers = self.common.enabled();
        let rings: Vec<_> = registers
            .filter(|(queue, _)| handed.iter().any(|served| served.index == *queue))
            .map(|queue| (queue, self.interrupts.eventfd_of(Cause::Queue(queue.0))))
            .collect();
        let rings: Vec<_> = rings
            .iter()
            .filter_map(|(queue, line)| ring(*queue, &self.bells, line.as_deref()))
            .collect();
        engine.start(self.common.features(), &rings)
    }

    fn start_worker(&mut self, queues: Vec<Served>) {
        let started = Worker::start(Work {
            name: self.kind.name.clone(),
            backend: self.backend.clone(),
            queues,
            ram: self.ram.clone(),
            interrupts: self.interrupts.clone(),
            at_start: self.at_start.clone(),
        });
        match started {
            Ok(worker) => self.worker = Some(worker),
            Err(error) => {
                log::error!("{}: no thread for it: {error}", self.kind.name);
                self.interrupts.need_reset();
            }
        }
    }

    fn serve(&self, (index, registers): (usize, &QueueRegisters)) -> Option<Served> {
        let queue = registers.queue(self.ram.memory(), self.common.features())?;
        let bell = self.bells.get(index)?.clone();
        Some(Served {
            index,
            queue,
            bell,
            has_rung: false,
            is_waiting: false,
        })
    }

    /// The driver's reset: once it is done the device touches no memory and does not interrupt (§2.4).
    pub(super) fn reset(&mut self) {
        self.worker = None;
        if let Some(engine) = &mut self.engine {
            engine.stop();
        }
        self.common.reset();
        self.interrupts.reset();
        for bell in &self.bells {
            // EAGAIN says that it did not ring.
            let _ = bell.read();
        }
    }

    /// The function may not reach memory any more, as a kernel says that is about to start another one. What the queues were at is
    /// lost by that: a driver that wants it again starts anew.
    pub(super) fn halt(&mut self) {
        if self.common.is_running() {
            self.worker = None;
            if let Some(engine) = &mut self.engine {
                engine.stop();
            }
            self.interrupts.fall_silent();
        }
    }

    /// Back to power-on, which the MSI-X table is part of.
    pub(super) fn power_on(&mut self) {
        self.reset();
        let gone = self.msix.routes().into_iter();
        self.interrupts
            .route(&gone.map(|(vector, _)| (vector, None)).collect());
        self.msix.reset();
        self.interrupts.forget();
    }
}

/// A queue that is in memory, as an engine wants to know it.
fn ring<'a>(
    (queue, registers): (usize, &QueueRegisters),
    bells: &'a [Arc<EventFd>],
    line: Option<&'a File>,
) -> Option<Ring<'a>> {
    Some(Ring {
        queue,
        max: registers.max(),
        size: registers.size,
        descriptors: registers.descriptors,
        available: registers.available,
        used: registers.used,
        bell: bells.get(queue)?,
        line: line.map(AsFd::as_fd),
    })
}
