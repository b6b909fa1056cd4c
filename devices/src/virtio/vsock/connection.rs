//! One connection: a Unix socket of the host's on one side, a socket of the guest's on the other, and how much either may send.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use super::packet::{Header, NEITHER, NO_RECEIVE, NO_SEND, STREAM};

/// What the guest may send ahead of the host's reading, in bytes: Linux's largest packet. Times the most connections it is what a guest
/// can have us keep.
pub(super) const ROOM: u32 = 64 << 10;

/// How far a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// A program of the host's has connected, and has yet to say where to: what came of its line.
    Greeting(Vec<u8>),
    /// The guest was asked, and has yet to answer.
    Asked,
    /// Data goes both ways.
    Open,
}

/// A connection.
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) state: State,
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
    /// What the guest sent and the host has not taken: `ROOM` at most.
    waiting: VecDeque<u8>,
    /// Counters of §5.10.6.3: what the guest sent that we passed on, and what it knows of that.
    forwarded: u32,
    told: u32,
    /// What we sent to the guest, what of it it has passed on, and its room.
    sent: u32,
    guest_forwarded: u32,
    guest_room: u32,
    /// Whether there may be something to read from the host.
    pub(super) is_readable: bool,
    /// Whether it is in line for that.
    pub(super) is_in_line: bool,
    /// Whether it is known to need credit that it asked for.
    pub(super) has_asked: bool,
    /// The host is at its end in both directions.
    pub(super) has_hung_up: bool,
    pub(super) is_at_end: bool,
    /// The guest has forgotten it. The host gets what was sent.
    pub(super) is_orphan: bool,
    /// Flags of the shutdowns that each side was told of.
    pub(super) host_stopped: u32,
    pub(super) guest_stopped: u32,
    /// Those of the guest's that the host knows of.
    passed_on: u32,
}

/// What is left to do after the host took something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Nothing.
    Fine,
    /// The guest should know that there is room again.
    TellRoom,
    /// The host takes nothing any more: the guest should know.
    Refused,
    /// Nothing will come from either side: it is over.
    Over,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, state: State, host_port: u32, guest_port: u32) -> Self {
        Self {
            stream,
            state,
            host_port,
            guest_port,
            waiting: VecDeque::new(),
            forwarded: 0,
            told: 0,
            sent: 0,
            guest_forwarded: 0,
            guest_room: 0,
            // Until a read says otherwise.
            is_readable: true,
            is_in_line: false,
            has_asked: false,
            has_hung_up: false,
            is_at_end: false,
            is_orphan: false,
            host_stopped: 0,
            guest_stopped: 0,
            passed_on: 0,
        }
    }

    /// A packet to the guest, with what it has to know of our room.
    pub(super) fn packet(&mut self, guest_cid: u64, op: u16, flags: u32, len: u32) -> Header {
        self.told = self.forwarded;
        Header {
            from_cid: super::HOST_CID,
            to_cid: guest_cid,
            from_port: self.host_port,
            to_port: self.guest_port,
            len,
            kind: STREAM,
            op,
            flags,
            room: ROOM,
            forwarded: self.forwarded,
        }
    }

    /// What every packet of the guest's says of its room.
    pub(super) fn note_credit(&mut self, header: &Header) {
        self.guest_room = header.room;
        self.guest_forwarded = header.forwarded;
        // Only room is an answer: a guest that has none says so at once, as often as it is asked.
        self.has_asked &= self.credit() == 0;
    }

    /// How many bytes the guest has room for. One that says nonsense has none.
    pub(super) fn credit(&self) -> u32 {
        let on_their_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_room.saturating_sub(on_their_way)
    }

    /// Counts data as sent to the guest.
    pub(super) fn count_sent(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// Takes data of the guest's for the host; false when it is more than the guest may send.
    pub(super) fn accept(&mut self, data: &[u8]) -> bool {
        let room = (ROOM as usize).saturating_sub(self.waiting.len());
        let fits = data.len() <= room;
        if fits {
            self.waiting.extend(data);
        }
        fits
    }

    /// Passes on to the host what it takes of what waits, and that the guest stopped.
    pub(super) fn flush(&mut self) -> Flushed {
        let mut refused = false;
        while !self.waiting.is_empty() {
            let (first, _) = self.waiting.as_slices();
            match self.stream.write(first) {
                Ok(count) => self.forward(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Whatever it is, nobody reads there any more. What comes is dropped, which makes room.
                Err(_) => {
                    refused = self.host_stopped & NO_RECEIVE == 0;
                    self.host_stopped |= NO_RECEIVE;
                    self.forward(self.waiting.len());
                }
            }
        }
        if self.waiting.is_empty() {
            self.pass_stop();
            if self.guest_stopped == NEITHER {
                return Flushed::Over;
            }
        }
        match refused {
            true => Flushed::Refused,
            false if self.forwarded.wrapping_sub(self.told) >= ROOM / 2 => Flushed::TellRoom,
            false => Flushed::Fine,
        }
    }

    /// Whether the host has all that the guest sent.
    pub(super) fn is_flushed(&self) -> bool {
        self.waiting.is_empty()
    }

    fn forward(&mut self, count: usize) {
        let count = count.min(self.waiting.len());
        self.waiting.drain(..count);
        // No more than ROOM waits, which fits.
        let count = u32::try_from(count).unwrap_or(ROOM);
        self.forwarded = self.forwarded.wrapping_add(count);
    }

    /// Once: each is an event of the socket's, which brings us here again. Errors say that the host is gone, as a read will.
    fn pass_stop(&mut self) {
        let news = self.guest_stopped & !self.passed_on;
        self.passed_on |= news;
        if news & NO_SEND != 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if news & NO_RECEIVE != 0 {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
    }

    /// Reads what the host sends; `None` when there is nothing now.
    pub(super) fn read(&mut self, data: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            return match self.stream.read(data) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_readable = false;
                    Ok(None)
                }
                done => done.map(Some),
            };
        }
    }

    /// The flags of a shutdown that the guest has to be told of now, if any: what the host stopped, once all that it sent is read.
    pub(super) fn news_of_stop(&mut self) -> Option<u32> {
        if !self.is_at_end {
            return None;
        }
        let flags = match self.has_hung_up {
            true => NEITHER,
            false => NO_SEND | self.host_stopped,
        };
        let is_news = flags & !self.host_stopped != 0;
        self.host_stopped |= flags;
        is_news.then_some(flags)
    }

    /// What the host says first: `CONNECT PORT`, on a line of its own. The port, once it is all there.
    pub(super) fn greeting(&mut self) -> Result<Option<u32>, Impolite> {
        // The longest is CONNECT 4294967295 and its end, with room for what a person adds in blanks.
        const LONGEST: usize = 32;
        loop {
            let mut byte = [0];
            // One at a time: what follows the line is the guest's.
            match self.read(&mut byte) {
                Ok(None) => return Ok(None),
                Ok(Some(1..)) => {}
                Ok(Some(0)) | Err(_) => return Err(Impolite),
            }
            let State::Greeting(line) = &mut self.state else {
                return Err(Impolite);
            };
            if byte == *b"\n" {
                let line = String::from_utf8_lossy(line);
                let mut words = line.split_whitespace();
                let is_connect = words.next() == Some("CONNECT");
                let port = words.next().and_then(|port| port.parse().ok());
                return match (is_connect, port, words.next()) {
                    (true, Some(port), None) => Ok(Some(port)),
                    _ => Err(Impolite),
                };
            }
            line.extend(byte);
            if line.len() > LONGEST {
                return Err(Impolite);
            }
        }
    }
}

/// A program of the host's that does not say where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Impolite;
