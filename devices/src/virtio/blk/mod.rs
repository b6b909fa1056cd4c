//! The block device (virtio 1.2 §5.2), over a file or a block device of the host's.
//!
//! Left out: geometry, topology and life time, of which there is nothing true to say; secure erase; zoned devices.

mod counters;
mod direct;
mod disk;
mod flights;
mod lock;
mod request;
mod ring;

use counters::Counted;
pub use counters::{Counters, Counts};
pub use disk::{Access, Disk, DiskError};
pub use ring::{MOST_AT_ONCE, Ring, Transfer};

use std::{io, os::fd::RawFd, sync::Arc};

use vm_memory::{Bytes, GuestMemoryMmap};

use self::{
    flights::{Ask, Begun, Flights},
    request::{Failed, Request, Status},
};
use super::{Answer, Backend, Buffer, Chain, Finished, Garbage, Kind};

const DEVICE_TYPE: u16 = 2;
/// Mass storage, of no particular kind: PCI 3.0 appendix D.
const CLASS: u32 = 0x01_80_00;
const QUEUE_SIZE: u16 = 256;
/// More queues than that are more than one thread has use for.
const MOST_QUEUES: u16 = 8;
/// How long the name is that a driver asks for (§5.2.6.1).
const ID_LEN: usize = 20;
/// Segments of one discard or write-zeroes request.
const MOST_RANGES: u32 = 16;
/// Sectors of one of them: 1 GiB, so that none keeps the thread busy for long where it has to write zeroes itself.
const MOST_SECTORS: u32 = 1 << 21;

const F_SEG_MAX: u64 = 1 << 2;
const F_READ_ONLY: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_MULTI_QUEUE: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Length in bytes of a sector, whatever the disk's own are.
const SECTOR: u64 = 512;

/// A block device.
pub struct Blk {
    name: String,
    /// Before the disk, whose file is open for as long as anything goes on.
    flights: Option<Flights>,
    disk: Disk,
    queues: u16,
    /// Without flushes a driver takes what is written to be stored (§5.2.6.2).
    writes_through: bool,
    failures: u64,
    counters: Arc<Counters>,
}

impl Blk {
    /// The guest's disk `number`, for a guest with this many processors.
    pub fn new(number: usize, disk: Disk, cpus: u32) -> Self {
        let queues = u16::try_from(cpus).unwrap_or(u16::MAX);
        Self {
            name: format!("blk{number}"),
            flights: None,
            disk,
            queues: queues.clamp(1, MOST_QUEUES),
            writes_through: true,
            failures: 0,
            counters: Arc::default(),
        }
    }

    /// What it is asked for, from now on.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// The same with many requests going on at once, by `ring`.
    pub fn with_ring(mut self, ring: Box<dyn Ring>) -> Self {
        self.flights = Some(Flights::new(ring));
        self
    }

    fn features(&self) -> u64 {
        let always = F_SEG_MAX | F_FLUSH | F_MULTI_QUEUE;
        let blocks = self.disk.block().map_or(0, |_| F_BLK_SIZE);
        match self.disk.is_readonly() {
            true => always | blocks | F_READ_ONLY,
            false => always | blocks | F_DISCARD | F_WRITE_ZEROES,
        }
    }

    /// The layout of §5.2.4.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, value: &[u8]| {
            let place = config.iter_mut().skip(at);
            place.zip(value).for_each(|(to, from)| *to = *from);
        };
        put(0, &self.disk.sectors().to_le_bytes());
        // Header and status take a descriptor each.
        put(12, &(u32::from(QUEUE_SIZE) - 2).to_le_bytes());
        put(20, &self.disk.block().unwrap_or_default().to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        for limits in [36, 48] {
            put(limits, &MOST_SECTORS.to_le_bytes());
            put(limits + 4, &MOST_RANGES.to_le_bytes());
        }
        put(44, &1_u32.to_le_bytes());
        put(56, &[1]);
        config
    }

    /// What the host's file failed at, said ever less often: a guest can have it fail as often as it likes.
    fn note(&mut self, failed: &Failed) {
        let Failed::Host { doing, source } = failed else {
            return;
        };
        self.failures += 1;
        if self.failures.is_power_of_two() {
            log::warn!(
                "{} ({}): {doing}: {source}; the guest sees an I/O error (failure {})",
                self.name,
                self.disk.path().display(),
                self.failures
            );
        }
    }

    /// The name that the driver shows as the disk's serial number.
    fn id(&self) -> [u8; ID_LEN] {
        let mut id = [0; ID_LEN];
        id.iter_mut()
            .zip(self.name.bytes())
            .for_each(|(to, from)| *to = from);
        id
    }

    /// Does what is asked for, at once.
    fn perform(&mut self, ask: &mut Ask, memory: &GuestMemoryMmap) -> Result<(), Failed> {
        let chain = &mut ask.chain;
        match ask.request.ok_or(Failed::Unsupported)? {
            Request::Read { sector } => self.disk.read(sector, &chain.writable, memory),
            Request::Write { sector } => {
                self.disk.write(sector, &chain.readable, memory)?;
                self.stored()
            }
            Request::Flush => self.disk.flush(),
            Request::Identify => {
                let id = self.id();
                let buffer = chain.writable.first().ok_or(Failed::Request)?;
                let id = &id[..buffer.len.min(ID_LEN)];
                memory
                    .write_slice(id, buffer.address)
                    .map_err(|_| Failed::Request)
            }
            Request::Discard => {
                for range in request::ranges(chain, memory, MOST_RANGES)? {
                    if range.may_unmap {
                        return Err(Failed::Unsupported);
                    }
                    self.disk
                        .discard(range.sector, range.checked(MOST_SECTORS)?)?;
                }
                Ok(())
            }
            Request::WriteZeroes => {
                for range in request::ranges(chain, memory, MOST_RANGES)? {
                    let sectors = range.checked(MOST_SECTORS)?;
                    self.disk.zero(range.sector, sectors, range.may_unmap)?;
                }
                self.stored()
            }
        }
    }

    /// Has it go on by itself, if it can.
    fn begin(&mut self, ask: Ask) -> Begun {
        let Some(flights) = &mut self.flights else {
            return Begun::No(ask);
        };
        flights.begin(ask, &self.disk, self.writes_through)
    }

    /// Writes the status; how many bytes are new to the guest.
    fn answer(
        &mut self,
        ask: &Ask,
        done: &Result<(), Failed>,
        memory: &GuestMemoryMmap,
    ) -> Result<u32, Garbage> {
        let status = match done {
            Ok(()) => Status::Ok,
            Err(Failed::Unsupported) => Status::Unsupported,
            Err(Failed::Request | Failed::Host { .. }) => Status::IoError,
        };
        if let Err(failed) = done {
            self.counters.failed();
            self.note(failed);
        }
        memory
            .write_obj(status as u8, ask.status_at)
            .map_err(|_| Garbage::Request("status"))?;
        // virtio-queue takes no chain of more than 4 GiB.
        let written = u32::try_from(len(&ask.chain.writable)).unwrap_or(u32::MAX);
        Ok(written.saturating_add(1))
    }

    /// Whether the end of a request says that something is stored.
    fn stores(&self, ask: &Ask) -> bool {
        match ask.request {
            Some(Request::Flush) => true,
            Some(Request::Write { .. }) => self.writes_through,
            _ => false,
        }
    }

    fn stored(&mut self) -> Result<(), Failed> {
        if self.writes_through {
            self.disk.flush()
        } else {
            Ok(())
        }
    }
}

impl Backend for Blk {
    fn kind(&self) -> Kind {
        Kind {
            name: self.name.clone(),
            device_type: DEVICE_TYPE,
            class: CLASS,
            features: self.features(),
            queues: vec![QUEUE_SIZE; self.queues.into()],
            config: self.config().into(),
        }
    }

    fn agree(&mut self, features: u64) {
        self.writes_through = features & F_FLUSH == 0;
    }

    fn serve(
        &mut self,
        queue: usize,
        mut chain: Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Answer, Garbage> {
        let request = Request::parse(chain.take_header(memory)?);
        let status_at = chain.take_last_byte()?;
        let counts = self.counters.clone();
        let counted = Counted::of(request, &chain);
        let mut ask = match self.begin(Ask {
            queue,
            request,
            chain,
            status_at,
        }) {
            Begun::NoRoom => return Ok(Answer::NotYet),
            Begun::Yes => {
                counts.asked(counted);
                return Ok(Answer::Later);
            }
            Begun::No(ask) => ask,
        };
        counts.asked(counted);
        let done = self.perform(&mut ask, memory);
        self.answer(&ask, &done, memory).map(Answer::Done)
    }

    fn finished(&mut self, memory: &GuestMemoryMmap) -> Result<Option<Finished>, Garbage> {
        let Some((mut ask, result)) = self.flights.as_mut().and_then(Flights::ended) else {
            return Ok(None);
        };
        let done = match result {
            Ok(count) if count == wanted(&ask) => Ok(()),
            // The kernel tells of a write-back that failed once: asked again it would say that all is well.
            Err(source) if self.stores(&ask) && is_lost(&source) => Err(Failed::Host {
                doing: "having it stored",
                source,
            }),
            // Fell short, or failed: done once more at once, the reason shows, or it is done after all.
            Ok(_) | Err(_) => self.perform(&mut ask, memory),
        };
        Ok(Some(Finished {
            queue: ask.queue,
            head: ask.chain.head,
            written: self.answer(&ask, &done, memory)?,
        }))
    }

    fn settle(&mut self) {
        if let Some(flights) = &mut self.flights {
            flights.settle();
        }
    }

    fn source(&self) -> Option<RawFd> {
        self.flights.as_ref().map(Flights::source)
    }
}

/// What fsync(2) says of earlier writes that will not be stored.
fn is_lost(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(errno, Some(libc::EIO | libc::ENOSPC | libc::EDQUOT))
}

fn len(buffers: &[Buffer]) -> usize {
    buffers.iter().map(|buffer| buffer.len).sum()
}

/// How many bytes a request that went on by itself comes to.
fn wanted(ask: &Ask) -> usize {
    match ask.request {
        Some(Request::Read { .. }) => len(&ask.chain.writable),
        Some(Request::Write { .. }) => len(&ask.chain.readable),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
