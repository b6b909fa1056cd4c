//! Network interfaces of the guest's: taps of the host's, and the kernel's vhost where that carries the packets.

mod holder;
mod ioctl;
mod tap;

pub use holder::Holder;
pub use tap::{Queue, Tap, TapError};

use std::{fmt, io, sync::Arc};

use devices::{
    rtl8139::{Rtl8139, Wiring},
    virtio::{
        Engine,
        net::{Identity, Net, Wire},
    },
};
use vm_memory::GuestMemoryMmap;

use crate::vhost::{VhostError, VhostNet};

/// What the interface is on the host's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A tap by its name, which is made if it is not there.
    Name(String),
    /// A tap that whoever started us has opened, by its descriptor.
    Descriptor(i32),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name}"),
            Self::Descriptor(fd) => write!(f, "fd={fd}"),
        }
    }
}

impl Source {
    /// Opens it, if it is there: nothing on the host changes by that.
    pub fn find(&self, queues: usize) -> Result<Option<Tap>, TapError> {
        match self {
            Self::Name(name) => Tap::find(name, queues),
            Self::Descriptor(fd) => Tap::inherit(*fd).map(Some),
        }
    }

    /// Whether it can be made where it is not there: nothing is, so far.
    pub fn check_make(&self) -> Result<(), TapError> {
        match self {
            Self::Name(name) => Tap::check_make(name),
            Self::Descriptor(_) => Ok(()),
        }
    }

    /// What the host calls it.
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Name(name) => Some(name.clone()),
            Self::Descriptor(fd) => Tap::name_of(*fd),
        }
    }

    /// Opens it where it was not there.
    pub fn make(&self, queues: usize) -> Result<Tap, TapError> {
        match self {
            Self::Name(name) => Tap::make(name, queues),
            Self::Descriptor(fd) => Tap::inherit(*fd),
        }
    }
}

/// Whether the kernel carries the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Vhost {
    /// If it can.
    #[default]
    Auto,
    /// Or else there is no machine.
    On,
    /// A thread of ours does.
    Off,
}

/// What the guest sees of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Model {
    /// Virtio's device.
    #[default]
    Virtio,
    /// A card of Realtek's, emulated.
    Rtl8139,
}

/// A network device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The host's side.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The kernel's way.
    #[error(transparent)]
    Vhost(#[from] VhostError),
    /// The device itself.
    #[error("making a network device\n  it takes a few open files:  ulimit -n")]
    Device(#[source] io::Error),
}

/// The guest's network device `number`, by virtio, over a tap that is open.
pub fn device(
    number: usize,
    mac: [u8; 6],
    (tap, vhost): (Tap, Vhost),
    memory: &GuestMemoryMmap,
) -> Result<Net, NetError> {
    let identity = Identity {
        number,
        mac,
        mtu: tap.mtu(),
    };
    let name = tap.name().to_owned();
    let queues = tap.into_queues();
    let engine = match vhost {
        Vhost::Off => None,
        Vhost::On => Some(VhostNet::open(&queues, memory)?),
        Vhost::Auto => VhostNet::open(&queues, memory)
            .inspect_err(|error| log::info!("net{number}: {error}"))
            .ok(),
    };
    let who = match engine {
        Some(_) => "the kernel (vhost)",
        None => "a thread",
    };
    log::info!("net{number}: {who} carries the packets of {name}");
    let engine = engine.map(|engine| Box::new(engine) as Box<dyn Engine>);
    let wires = queues.into_iter().map(|queue| queue as Arc<dyn Wire>);
    Net::new(&identity, wires.collect(), engine).map_err(NetError::Device)
}

/// The same as a card that is emulated.
pub fn card(
    number: usize,
    mac: [u8; 6],
    tap: Tap,
    wiring: &Wiring<'_>,
) -> Result<Arc<Rtl8139>, NetError> {
    let name = format!("net{number}");
    log::info!("{name}: a thread carries the packets of {}", tap.name());
    let mut queues = tap.into_queues();
    let none = || NetError::Device(io::ErrorKind::NotFound.into());
    let wire = queues.pop().ok_or_else(none)?;
    Rtl8139::new(&name, mac, wire, wiring).map_err(NetError::Device)
}
