//! The network device (virtio 1.2 §5.1), over an interface of the host's that gives and takes packets with their header.
//!
//! Packets go between the interface and the guest's memory as they are: nobody here looks into them, and none is copied. An `Engine`
//! does that in place of the device's thread where the host has one; the thread is then left with the commands.
//!
//! Left out: packets in several requests, but for an engine's; filters by address, since a bridge's port gets what it gets; hashes; the
//! announcement after a migration.

mod registers;
mod wire;

pub use wire::{Offloads, Wire};

use std::{io, os::fd::RawFd, sync::Arc};

use vm_memory::{Bytes, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use self::registers::*;
use super::{
    Answer, Backend, Chain, Config, Engine, Garbage, Kind,
    chain::{put, slices},
};

/// Room for a burst; as many as a driver allocates at once.
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;
/// The longest that a packet of a guest's can be: an IP datagram that is to be cut into segments, the Ethernet header with two VLANs,
/// and virtio's.
const LONGEST: usize = 65535 + 14 + 8 + HEADER_LEN;

/// What a network device is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Which of the guest's it is, from 0.
    pub number: usize,
    /// Its address.
    pub mac: [u8; 6],
    /// The longest packet that the interface takes, without Ethernet header, if that is known.
    pub mtu: Option<u16>,
}

/// A network device.
pub struct Net {
    kind: Kind,
    /// One for each pair of queues.
    wires: Vec<Arc<dyn Wire>>,
    /// Wakes the thread when one of them has packets.
    watch: Epoll,
    engine: Option<Box<dyn Engine>>,
    is_handed_over: bool,
    /// Where the queue of commands is, if there is one: after the pairs that the driver knows of (§5.1.2).
    control: Option<usize>,
    failures: u64,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Receive(usize),
    Transmit(usize),
    Control,
}

impl Net {
    /// Over the queues of an interface, one for each pair of the device's. An engine has its own ways to these.
    pub fn new(
        identity: &Identity,
        wires: Vec<Arc<dyn Wire>>,
        engine: Option<Box<dyn Engine>>,
    ) -> io::Result<Self> {
        let watch = Epoll::new()?;
        if engine.is_none() {
            for wire in &wires {
                listen(&watch, &**wire)?;
            }
        }
        Ok(Self {
            kind: kind(identity, wires.len(), engine.is_some()),
            wires,
            watch,
            is_handed_over: engine.is_some(),
            engine,
            control: None,
            failures: 0,
        })
    }

    fn role(&self, queue: usize) -> Role {
        match self.control == Some(queue) {
            true => Role::Control,
            false if queue.is_multiple_of(2) => Role::Receive(queue / 2),
            false => Role::Transmit(queue / 2),
        }
    }

    /// Puts the next packet into the request, if there is one.
    fn receive(
        &mut self,
        pair: usize,
        request: &Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Answer, Garbage> {
        let missing = Garbage::Request("packet");
        if request.writable_len() < HEADER_LEN {
            return Err(missing);
        }
        let wire = self.wires.get(pair).ok_or(missing)?;
        match wire.receive(&slices(&request.writable, memory)?) {
            Ok(len) => {
                // The interface leaves it to us; it is 1 where packets are in one request (§5.1.6.4).
                put(&request.writable, NUM_BUFFERS, 1_u16.to_le_bytes(), memory)?;
                Ok(Answer::Done(u32::try_from(len).unwrap_or(u32::MAX)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Answer::NotYet),
            Err(error) => {
                self.note("receiving", &error);
                Ok(Answer::NotYet)
            }
        }
    }

    /// Sends a packet. One that the interface does not take is lost, as on any other network.
    fn transmit(
        &mut self,
        pair: usize,
        request: &Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Answer, Garbage> {
        let wire = self.wires.get(pair).ok_or(Garbage::Request("packet"))?;
        let len: usize = request.readable.iter().map(|buffer| buffer.len).sum();
        if (HEADER_LEN..=LONGEST).contains(&len) {
            let sent = wire.send(&slices(&request.readable, memory)?);
            // EINVAL: the guest wrote a header that makes no sense.
            if let Err(error) = sent
                && error.kind() != io::ErrorKind::InvalidInput
            {
                self.note("sending", &error);
            }
        }
        Ok(Answer::Done(0))
    }

    /// Does a command (§5.1.6.5).
    fn command(&mut self, mut request: Chain, memory: &GuestMemoryMmap) -> Result<Answer, Garbage> {
        let [class, command] = request.take_header(memory)?;
        let is_done = match (class, command) {
            (CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET) => {
                let pairs = u16::from_le_bytes(request.take_header(memory)?);
                (1..=self.wires.len()).contains(&pairs.into()) && self.use_pairs(pairs.into())
            }
            _ => false,
        };
        let answer = if is_done { CTRL_OK } else { CTRL_ERR };
        memory
            .write_obj(answer, request.take_last_byte()?)
            .map_err(|_| Garbage::Request("acknowledgement"))?;
        Ok(Answer::Done(1))
    }

    /// Has the interface put packets into the first `pairs` pairs only; whether that was possible.
    fn use_pairs(&mut self, pairs: usize) -> bool {
        // The only queue of an interface that has one cannot leave it.
        for (pair, wire) in self.wires.iter().enumerate().skip(1) {
            let is_used = pair < pairs;
            let heard = wire.attach(is_used).and_then(|()| match is_used {
                // One that was away is not heard of unless it is asked anew.
                true if !self.is_handed_over => listen(&self.watch, &**wire),
                _ => Ok(()),
            });
            if let Err(error) = heard {
                log::error!("{}: pair {pair} of its queues: {error}", self.kind.name);
                return false;
            }
        }
        true
    }

    /// What the interface failed at, said ever less often: a guest can have it fail as often as it likes.
    fn note(&mut self, doing: &str, error: &io::Error) {
        self.failures += 1;
        if self.failures.is_power_of_two() {
            let (name, failures) = (&self.kind.name, self.failures);
            log::warn!("{name}: {doing}: {error}; the packet is lost (failure {failures})");
        }
    }
}

impl Backend for Net {
    fn kind(&self) -> Kind {
        self.kind.clone()
    }

    fn agree(&mut self, features: u64) {
        let pairs = if features & F_MQ != 0 {
            self.wires.len()
        } else {
            1
        };
        self.control = (features & F_CTRL_VQ != 0).then_some(2 * pairs);
        if let Some(wire) = self.wires.first()
            && let Err(error) = wire.offload(offloads(features))
        {
            log::error!("{}: what its driver takes: {error}", self.kind.name);
        }
        // §5.1.5: a driver has one pair until it asks for more.
        self.use_pairs(1);
    }

    fn serve(
        &mut self,
        queue: usize,
        request: Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Answer, Garbage> {
        match self.role(queue) {
            Role::Receive(pair) => self.receive(pair, &request, memory),
            Role::Transmit(pair) => self.transmit(pair, &request, memory),
            Role::Control => self.command(request, memory),
        }
    }

    fn source(&self) -> Option<RawFd> {
        use std::os::fd::AsRawFd;
        (!self.is_handed_over).then(|| self.watch.as_raw_fd())
    }

    fn stirred(&mut self) -> bool {
        // Edges, which are used up by being looked at; every queue that waits is tried anyway.
        let mut ready = [EpollEvent::default(); 8];
        while self.watch.wait(0, &mut ready).is_ok_and(|count| count > 0) {}
        false
    }

    fn engine(&mut self) -> Option<Box<dyn Engine>> {
        self.engine.take()
    }

    fn is_handed_over(&self, queue: usize) -> bool {
        self.is_handed_over && self.role(queue) != Role::Control
    }
}

/// What a device with so many pairs of queues is, and offers.
fn kind(identity: &Identity, pairs: usize, has_engine: bool) -> Kind {
    let mut features = F_CSUM | F_GUEST_CSUM | F_MAC | F_STATUS;
    features |= F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_GUEST_UFO;
    features |= F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN | F_HOST_UFO;
    let mut queues = vec![QUEUE_SIZE; 2 * pairs];
    if identity.mtu.is_some() {
        features |= F_MTU;
    }
    if has_engine {
        features |= F_MRG_RXBUF;
    }
    if pairs > 1 {
        features |= F_CTRL_VQ | F_MQ;
        queues.push(CONTROL_SIZE);
    }
    Kind {
        name: format!("net{}", identity.number),
        device_type: DEVICE_TYPE,
        class: CLASS,
        features,
        queues,
        config: config(identity, pairs),
    }
}

/// The layout of §5.1.4.
fn config(identity: &Identity, pairs: usize) -> Config {
    let pairs = u16::try_from(pairs).unwrap_or(u16::MAX);
    let words = [STATUS_LINK_UP, pairs, identity.mtu.unwrap_or(0)];
    let words = words.iter().flat_map(|word| word.to_le_bytes());
    let bytes: Vec<u8> = identity.mac.into_iter().chain(words).collect();
    bytes.into()
}

/// What packets for the guest may be like, by what its driver takes.
fn offloads(features: u64) -> Offloads {
    // §5.1.3.1: none of them without checksums that are not there.
    let takes = |feature| features & F_GUEST_CSUM != 0 && features & feature != 0;
    Offloads {
        checksum: takes(F_GUEST_CSUM),
        tso4: takes(F_GUEST_TSO4),
        tso6: takes(F_GUEST_TSO6),
        ecn: takes(F_GUEST_ECN) && takes(F_GUEST_TSO4 | F_GUEST_TSO6),
        ufo: takes(F_GUEST_UFO),
    }
}

/// Has `watch` hear of packets on a wire, and of those that are there.
fn listen(watch: &Epoll, wire: &dyn Wire) -> io::Result<()> {
    let fd = wire.as_raw_fd();
    let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
    // It may be there from before.
    let _ = watch.ctl(ControlOperation::Delete, fd, event);
    watch.ctl(ControlOperation::Add, fd, event)
}

#[cfg(test)]
mod tests;
