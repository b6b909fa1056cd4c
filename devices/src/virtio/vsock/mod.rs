//! The socket device (virtio 1.2 §5.10), with Unix sockets as the host's side (`listener`), or left to an `Engine` (`handed`).
//!
//! Each connection is one Unix socket (`connection`). Data of the guest's is written to it at once, or kept as far as the guest has been
//! told that there is room. Data of the host's stays in the kernel until the guest has a buffer and room for it. Left out: sockets that
//! keep packets apart (SEQPACKET), which Unix sockets' users do not expect, and the event queue, which is for migration.

mod connection;
mod handed;
mod listener;
mod packet;

pub use handed::{F_SEQPACKET, Handed};
pub use listener::SocketError;

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use self::{
    connection::{Connection, Flushed, ROOM, State},
    listener::Listener,
    packet::{HEADER_LEN, Header, NEITHER, NO_RECEIVE, STREAM, op},
};
use super::{Answer, Backend, Buffer, Chain, Garbage, Kind, chain};

const DEVICE_TYPE: u16 = 19;
/// A communication controller of no particular kind: PCI 3.0 appendix D.
const CLASS: u32 = 0x07_80_00;
/// Linux fills the first queue with buffers of 4 KiB: half a MiB of its memory.
const QUEUE_SIZE: u16 = 128;
/// What the guest receives by (§5.10.2), and what it transmits by. The third is for events.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// The host's number (§5.10.4).
const HOST_CID: u64 = 2;
/// Half of the descriptors that a process usually may have; times `ROOM` these are 32 MiB.
const MOST_CONNECTIONS: usize = 512;
/// What we have to say to a guest that gives us no buffers, in packets; after that we do not listen to it.
const MOST_CONTROLS: usize = 256;
/// Ports of the host's side for connections that the host began: from here on, where no service is, as with Firecracker.
const FIRST_PORT: u32 = 1 << 30;
/// The most data of one packet.
const MOST_DATA: usize = 64 << 10;
/// The epoll token of the listener; connections count from 1.
const LISTENER: u64 = 0;

/// The socket device.
pub struct Vsock {
    cid: u64,
    listener: Listener,
    epoll: Epoll,
    connections: HashMap<u64, Connection>,
    /// By the host's port and the guest's.
    by_ports: HashMap<(u32, u32), u64>,
    last_id: u64,
    last_port: u32,
    /// What is to be said to the guest before any data, in order.
    controls: VecDeque<Header>,
    /// Connections that may have data for the guest: one packet each in turn.
    line: VecDeque<u64>,
    data: Vec<u8>,
    /// There may be programs that wait to be accepted.
    has_backlog: bool,
}

impl Vsock {
    /// For a guest whose number is `cid`, with a socket at `path`.
    pub fn new(cid: u32, path: &Path) -> Result<Self, SocketError> {
        let listener = Listener::bind(path)?;
        let watched = Epoll::new().and_then(|epoll| {
            watch(&epoll, &listener, LISTENER)?;
            Ok(epoll)
        });
        let path = || path.to_owned();
        let epoll = watched.map_err(|source| SocketError::Bind {
            path: path(),
            source,
        })?;
        Ok(Self {
            cid: cid.into(),
            listener,
            epoll,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            last_id: LISTENER,
            last_port: FIRST_PORT - 1,
            controls: VecDeque::new(),
            line: VecDeque::new(),
            data: vec![0; MOST_DATA],
            has_backlog: false,
        })
    }

    fn add(&mut self, connection: Connection) -> io::Result<u64> {
        let id = self.last_id + 1;
        watch(&self.epoll, &connection.stream, id)?;
        self.last_id = id;
        self.connections.insert(id, connection);
        Ok(id)
    }

    /// Closes the host's side and forgets the connection.
    fn remove(&mut self, id: u64) {
        if let Some(gone) = self.connections.remove(&id)
            && !gone.is_orphan
        {
            self.by_ports.remove(&(gone.host_port, gone.guest_port));
        }
        if self.has_backlog {
            self.accept();
        }
    }

    /// Says something of a connection to the guest.
    fn say(&mut self, id: u64, op: u16, flags: u32) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.is_orphan
        {
            let packet = connection.packet(self.cid, op, flags, 0);
            self.controls.push_back(packet);
        }
    }

    /// Ends a connection for both sides.
    fn reset(&mut self, id: u64) {
        self.say(id, op::RESET, 0);
        self.remove(id);
    }

    /// Puts a connection into the line if it may have something for the guest.
    fn enqueue(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id)
            && connection.state == State::Open
            && !connection.is_orphan
            && connection.is_readable
            && !connection.is_in_line
        {
            connection.is_in_line = true;
            self.line.push_back(id);
        }
    }

    // What comes from the host.

    fn accept(&mut self) {
        self.has_backlog = false;
        loop {
            match self.listener.accept() {
                Ok(Some(stream)) if self.connections.len() < MOST_CONNECTIONS => {
                    let greeting = State::Greeting(Vec::new());
                    let added = self.add(Connection::new(stream, greeting, 0, 0));
                    if let Err(error) = added {
                        log::warn!("vsock0: a program of the host's cannot connect: {error}");
                    }
                }
                Ok(Some(_)) => {
                    log::warn!("vsock0: all {MOST_CONNECTIONS} connections are in use");
                }
                Ok(None) => return,
                Err(error) => {
                    self.has_backlog = true;
                    return log::warn!("vsock0: a program of the host's cannot connect: {error}");
                }
            }
        }
    }

    /// Something happened to a connection's Unix socket.
    fn happened(&mut self, id: u64, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.is_readable |= !events.difference(EventSet::OUT).is_empty();
        connection.has_hung_up |= events.contains(EventSet::HANG_UP);
        match connection.state {
            State::Greeting(_) => self.greet(id),
            State::Asked if connection.has_hung_up => self.reset(id),
            State::Asked => {}
            State::Open => {
                self.tell_stop(id);
                self.flush(id);
                self.enqueue(id);
            }
        }
    }

    fn greet(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match connection.greeting() {
            Ok(None) => {}
            Err(connection::Impolite) => self.remove(id),
            Ok(Some(guest_port)) => {
                let host_port = self.free_port(guest_port);
                if let Some(connection) = self.connections.get_mut(&id) {
                    (connection.host_port, connection.guest_port) = (host_port, guest_port);
                    connection.state = State::Asked;
                }
                self.by_ports.insert((host_port, guest_port), id);
                self.say(id, op::REQUEST, 0);
            }
        }
    }

    /// There are a billion, and connections are few.
    fn free_port(&mut self, guest_port: u32) -> u32 {
        loop {
            self.last_port = self.last_port.wrapping_add(1).max(FIRST_PORT);
            if !self.by_ports.contains_key(&(self.last_port, guest_port)) {
                return self.last_port;
            }
        }
    }

    /// The host's end of sending, or of all, for the guest to know.
    fn tell_stop(&mut self, id: u64) {
        let connection = self.connections.get_mut(&id);
        if let Some(flags) = connection.and_then(Connection::news_of_stop) {
            self.say(id, op::SHUTDOWN, flags);
        }
    }

    // What comes from the guest.

    fn transmit(&mut self, mut chain: Chain, memory: &GuestMemoryMmap) -> Result<Answer, Garbage> {
        if self.controls.len() >= MOST_CONTROLS {
            return Ok(Answer::NotYet);
        }
        let header = Header::parse(&chain.take_header(memory)?);
        if (header.from_cid, header.to_cid) != (self.cid, HOST_CID) {
            // Neither from this guest nor to us: there is nobody to answer.
            return Ok(Answer::Done(0));
        }
        let known = self.by_ports.get(&(header.to_port, header.from_port));
        match known.copied().filter(|_| header.kind == STREAM) {
            Some(id) => self.heard(id, &header, &chain, memory)?,
            None if header.kind == STREAM && header.op == op::REQUEST => self.requested(&header),
            None if header.op == op::RESET => {}
            None => self.controls.push_back(header.refusal()),
        }
        Ok(Answer::Done(0))
    }

    /// The guest wants something from one of the host's ports.
    fn requested(&mut self, header: &Header) {
        let connected = match self.connections.len() < MOST_CONNECTIONS {
            true => self.listener.connect(header.to_port),
            false => Err(io::Error::other("all connections are in use")),
        };
        let added = connected.and_then(|stream| self.open(stream, header));
        match added {
            Ok(id) => {
                self.say(id, op::RESPONSE, 0);
                self.enqueue(id);
            }
            Err(error) => {
                log::debug!("vsock0: port {} of the host's: {error}", header.to_port);
                self.controls.push_back(header.refusal());
            }
        }
    }

    fn open(&mut self, stream: UnixStream, header: &Header) -> io::Result<u64> {
        let (host_port, guest_port) = (header.to_port, header.from_port);
        let mut connection = Connection::new(stream, State::Open, host_port, guest_port);
        connection.note_credit(header);
        let id = self.add(connection)?;
        self.by_ports.insert((host_port, guest_port), id);
        Ok(id)
    }

    /// A packet of a connection that there is.
    fn heard(
        &mut self,
        id: u64,
        header: &Header,
        chain: &Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<(), Garbage> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        connection.note_credit(header);
        match (header.op, &connection.state) {
            (op::RESPONSE, State::Asked) => {
                let line = format!("OK {}\n", connection.host_port);
                connection.state = State::Open;
                if connection.stream.write_all(line.as_bytes()).is_err() {
                    self.reset(id);
                }
            }
            // It ended well and got tired of waiting: what it sent is still the host's.
            (op::RESET, State::Open)
                if connection.guest_stopped == NEITHER && !connection.is_flushed() =>
            {
                connection.is_orphan = true;
                self.by_ports.remove(&(header.to_port, header.from_port));
            }
            (op::RESET, _) => self.remove(id),
            (op::SHUTDOWN, _) => {
                connection.guest_stopped |= header.flags & NEITHER;
                self.flush(id);
            }
            (op::DATA, State::Open) if header.len <= ROOM => {
                let missing = Garbage::Request("data");
                let len = usize::try_from(header.len).map_err(|_| missing)?;
                let data = chain::gather(&chain.readable, len, memory, missing)?;
                match connection.accept(&data) {
                    true => self.flush(id),
                    false => self.reset(id),
                }
            }
            (op::CREDIT_UPDATE, _) => {}
            (op::CREDIT_REQUEST, _) => self.say(id, op::CREDIT_UPDATE, 0),
            // Whoever speaks like this has lost track of the connection.
            _ => self.reset(id),
        }
        self.enqueue(id);
        Ok(())
    }

    /// Passes on what waits for the host, and what follows from that.
    fn flush(&mut self, id: u64) {
        match self.connections.get_mut(&id).map(Connection::flush) {
            Some(Flushed::Over) => self.reset(id),
            Some(Flushed::TellRoom) => self.say(id, op::CREDIT_UPDATE, 0),
            Some(Flushed::Refused) => self.say(id, op::SHUTDOWN, NO_RECEIVE),
            Some(Flushed::Fine) | None => {}
        }
    }

    // What goes to the guest.

    fn receive(&mut self, buffers: &[Buffer], memory: &GuestMemoryMmap) -> Result<Answer, Garbage> {
        let room: usize = buffers.iter().map(|buffer| buffer.len).sum();
        let room = room.checked_sub(HEADER_LEN).filter(|&room| room > 0);
        let room = room.ok_or(Garbage::Request("header and data"))?;
        loop {
            if let Some(header) = self.controls.pop_front() {
                return fill(buffers, &header.bytes(), memory);
            }
            let Some(id) = self.line.pop_front() else {
                return Ok(Answer::NotYet);
            };
            if let Some((header, len)) = self.next_data(id, room) {
                self.enqueue(id);
                let packet = [&header.bytes(), self.data.get(..len).unwrap_or_default()].concat();
                return fill(buffers, &packet, memory);
            }
        }
    }

    /// The next data of a connection's, in `data`, with its header, if there is some and the guest has room for it.
    fn next_data(&mut self, id: u64, room: usize) -> Option<(Header, usize)> {
        let connection = self.connections.get_mut(&id)?;
        connection.is_in_line = false;
        let credit = usize::try_from(connection.credit()).unwrap_or(usize::MAX);
        if credit == 0 {
            if !connection.has_asked {
                connection.has_asked = true;
                self.say(id, op::CREDIT_REQUEST, 0);
            }
            return None;
        }
        let most = room.min(credit).min(MOST_DATA);
        match connection.read(self.data.get_mut(..most)?) {
            Ok(None) => None,
            Ok(Some(0)) => {
                (connection.is_at_end, connection.is_readable) = (true, false);
                self.tell_stop(id);
                None
            }
            Ok(Some(len)) => {
                let len_of_packet = u32::try_from(len).ok()?;
                connection.count_sent(len_of_packet);
                let header = connection.packet(self.cid, op::DATA, 0, len_of_packet);
                Some((header, len))
            }
            Err(_) => {
                self.reset(id);
                None
            }
        }
    }
}

/// What a socket device is, and offers.
fn kind(cid: u64, features: u64) -> Kind {
    Kind {
        name: "vsock0".into(),
        device_type: DEVICE_TYPE,
        class: CLASS,
        features,
        queues: vec![QUEUE_SIZE; 3],
        config: cid.to_le_bytes().to_vec().into(),
    }
}

fn watch(epoll: &Epoll, what: &impl AsRawFd, token: u64) -> io::Result<()> {
    let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    let event = EpollEvent::new(events, token);
    epoll.ctl(ControlOperation::Add, what.as_raw_fd(), event)
}

/// Writes a packet into buffers that have room for it.
fn fill(buffers: &[Buffer], packet: &[u8], memory: &GuestMemoryMmap) -> Result<Answer, Garbage> {
    let mut rest = packet;
    for &Buffer { address, len } in buffers {
        let (part, after) = rest.split_at(rest.len().min(len));
        let at = GuestAddress(address.0);
        let gone = |_| Garbage::Request("header and data");
        memory.write_slice(part, at).map_err(gone)?;
        rest = after;
    }
    Ok(Answer::Done(
        u32::try_from(packet.len()).unwrap_or(u32::MAX),
    ))
}

impl Backend for Vsock {
    fn kind(&self) -> Kind {
        kind(self.cid, 0)
    }

    fn agree(&mut self, _features: u64) {
        if self.has_backlog {
            self.accept();
        }
    }

    fn serve(
        &mut self,
        queue: usize,
        request: Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Answer, Garbage> {
        match queue {
            RECEIVE => self.receive(&request.writable, memory),
            TRANSMIT => self.transmit(request, memory),
            // Buffers for events, of which there are none.
            _ => Ok(Answer::NotYet),
        }
    }

    /// A driver that starts knows nothing of what was before; and without one there is nobody whom the host's programs could talk to.
    fn settle(&mut self) {
        self.connections.clear();
        self.by_ports.clear();
        self.controls.clear();
        self.line.clear();
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }

    fn stirred(&mut self) -> bool {
        let mut ready = [EpollEvent::default(); 64];
        // By edges: what has been told is not told again, so this ends. An error of epoll's would be one of ours.
        while let Ok(count @ 1..) = self.epoll.wait(0, &mut ready) {
            for event in ready.iter().take(count) {
                match event.data() {
                    LISTENER => self.accept(),
                    id => self.happened(id, event.event_set()),
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests;
