//! The chip between its guest and its wire: packets both ways, the interrupt pin, and the thread that brings what comes.
//!
//! A packet to be sent goes out on the vCPU that asked for it, with nothing locked. What comes the thread puts into the guest's ring
//! while it holds the chip, so that nothing does once a reset has had it.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vm_memory::{Bytes, GuestAddress, VolatileSlice};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd},
};

use super::chip::{Chip, Effect, LONGEST, Received};
use crate::{
    bus::{Action, BusDevice},
    interrupt::IntxWire,
    mapping::GuestRam,
    virtio::net::Wire,
};

/// Virtio's header, which packets on a wire have and this card knows nothing of: all zero.
const HEADER_LEN: usize = 12;

const STOP: u64 = 0;
const WIRE: u64 = 1;
const ROOM: u64 = 2;
const RESAMPLE: u64 = 3;

pub(super) struct Station {
    name: String,
    core: Mutex<Core>,
    wire: Arc<dyn Wire>,
    ram: Arc<dyn GuestRam>,
    watch: Epoll,
    stop: EventFd,
    /// The driver may have made room.
    room: EventFd,
}

struct Core {
    chip: Chip,
    may_master: bool,
    may_interrupt: bool,
    pin: Option<Pin>,
    /// A packet that the ring had no room for. Those behind it stay with the interface.
    waiting: Option<Vec<u8>>,
}

/// The connected pin, and duplicates of its eventfds, so that to signal and to hear is one call.
struct Pin {
    trigger: File,
    resample: File,
    _wire: Box<dyn IntxWire>,
}

impl Core {
    /// Says that the pin is asserted, if it is. Saying so twice does no harm.
    fn signal(&self) {
        if let Some(pin) = &self.pin
            && self.may_interrupt
            && self.chip.interrupts()
        {
            // An eventfd that is full has been signalled often enough.
            let _ = (&pin.trigger).write_all(&1_u64.to_ne_bytes());
        }
    }
}

impl Station {
    pub(super) fn new(
        name: &str,
        address: [u8; 6],
        wire: Arc<dyn Wire>,
        ram: Arc<dyn GuestRam>,
    ) -> io::Result<Self> {
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let (watch, stop, room) = (Epoll::new()?, eventfd()?, eventfd()?);
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        for (fd, token, events) in [
            (stop.as_raw_fd(), STOP, EventSet::IN),
            (room.as_raw_fd(), ROOM, EventSet::IN),
            // What there is no room for stays there, and must not keep the thread awake.
            (wire.as_raw_fd(), WIRE, edges),
        ] {
            watch.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))?;
        }
        let core = Core {
            chip: Chip::new(address),
            may_master: false,
            may_interrupt: true,
            pin: None,
            waiting: None,
        };
        Ok(Self {
            name: name.to_owned(),
            core: Mutex::new(core),
            wire,
            ram,
            watch,
            stop,
            room,
        })
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the command register lets the card do.
    pub(super) fn allow(&self, may_master: bool, may_interrupt: bool) {
        let mut core = self.core();
        (core.may_master, core.may_interrupt) = (may_master, may_interrupt);
        core.signal();
    }

    /// Connects the pin, unless it is.
    pub(super) fn connect(&self, connect: impl FnOnce() -> io::Result<Box<dyn IntxWire>>) {
        let mut core = self.core();
        if core.pin.is_some() {
            return;
        }
        let connected = connect().and_then(|wire| {
            let pin = Pin {
                trigger: duplicate(wire.trigger())?,
                resample: duplicate(wire.resample())?,
                _wire: wire,
            };
            let event = EpollEvent::new(EventSet::IN, RESAMPLE);
            let fd = pin.resample.as_raw_fd();
            self.watch.ctl(ControlOperation::Add, fd, event)?;
            Ok(pin)
        });
        match connected {
            Ok(pin) => core.pin = Some(pin),
            Err(error) => log::error!("{}: its interrupt pin: {error}", self.name),
        }
    }

    /// Back to power-on: nothing of the guest's memory is touched, and no interrupt raised, until it is switched on again.
    pub(super) fn reset(&self) {
        let mut core = self.core();
        if let Some(pin) = core.pin.take() {
            let (fd, event) = (pin.resample.as_raw_fd(), EpollEvent::default());
            let _ = self.watch.ctl(ControlOperation::Delete, fd, event);
        }
        core.chip.power_on();
        core.may_master = false;
    }

    pub(super) fn stop(&self) {
        // It cannot be full: this is the only signal that it ever gets.
        let _ = self.stop.write(1);
    }

    /// Brings what comes, until `stop`.
    pub(super) fn run(&self) {
        let mut ready = [EpollEvent::default(); 4];
        loop {
            let count = match self.watch.wait(-1, &mut ready) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return log::error!("{}: nothing comes any more: {error}", self.name),
                Ok(count) => count,
            };
            for event in ready.iter().take(count) {
                match event.data() {
                    STOP => return,
                    RESAMPLE => self.resample(),
                    _ => {
                        let _ = self.room.read();
                        self.receive();
                    }
                }
            }
        }
    }

    /// The guest's end of interrupt: a pin that is still asserted says so again.
    fn resample(&self) {
        let core = self.core();
        if let Some(pin) = &core.pin {
            let _ = (&pin.resample).read(&mut [0; 8]);
        }
        core.signal();
    }

    /// Brings packets until there is none, or no room, or it is time to look who else wants something.
    fn receive(&self) {
        /// As many as a virtio queue has in its turn.
        const TURN: usize = 256;
        // A byte more, by which a packet that is too long is known.
        let mut buffer = [0; HEADER_LEN + LONGEST + 1];
        for _ in 0..TURN {
            let waiting = self.core().waiting.take();
            let packet = match waiting {
                Some(packet) => packet,
                None => match self.wire.receive(&[VolatileSlice::from(&mut buffer[..])]) {
                    Ok(len) => buffer.get(HEADER_LEN..len).unwrap_or_default().to_vec(),
                    // There is none, or the interface has a trouble of which it will say when that is over.
                    Err(_) => return,
                },
            };
            let core = &mut *self.core();
            if core.may_master && core.chip.receive(&packet, self.ram.memory()) == Received::NoRoom
            {
                core.waiting = Some(packet);
                return;
            }
            core.signal();
        }
        let _ = self.room.write(1);
    }

    /// Sends a packet from the guest's memory; whether the card could have it.
    fn send(&self, address: u32, len: usize) -> bool {
        if len > LONGEST || !self.core().may_master {
            return false;
        }
        let mut packet = vec![0; HEADER_LEN + len];
        let (_, body) = packet.split_at_mut(HEADER_LEN);
        let from = GuestAddress(address.into());
        if self.ram.memory().read_slice(body, from).is_err() {
            return false;
        }
        // What the interface does not take is lost, as on any other network.
        let _ = self.wire.send(&[VolatileSlice::from(&mut packet[..])]);
        true
    }
}

fn duplicate(eventfd: BorrowedFd<'_>) -> io::Result<File> {
    Ok(File::from(eventfd.try_clone_to_owned()?))
}

/// The chip's registers on the bus.
pub(super) struct Registers(pub(super) Arc<Station>);

impl BusDevice for Registers {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        self.0.core().chip.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut core = self.0.core();
        let effect = core.chip.write(offset, data);
        let waits = core.waiting.is_some();
        drop(core);
        match effect {
            Effect::Room if waits => {
                let _ = self.0.room.write(1);
            }
            Effect::None | Effect::Room => {}
            Effect::Send(descriptor, address, len) => {
                let is_sent = self.0.send(address, len);
                self.0.core().chip.sent_one(descriptor, is_sent);
            }
        }
        self.0.core().signal();
        Action::None
    }
}
