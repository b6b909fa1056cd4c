//! A guest's side made of packets, and the host's of real Unix sockets.

use std::{
    io::{ErrorKind, Read},
    net::Shutdown,
    os::unix::net::UnixListener,
    path::PathBuf,
};

use super::{packet::NO_SEND, *};
use crate::testing::Random;

const CID: u32 = 3;
const AT: u64 = 0x1000;
/// The guest's room in these tests.
const GUEST_ROOM: u32 = 256 << 10;

struct Table {
    dir: tempfile::TempDir,
    memory: GuestMemoryMmap,
    vsock: Vsock,
    guest_forwarded: u32,
}

fn table() -> Table {
    let dir = tempfile::tempdir().unwrap();
    let mut vsock = Vsock::new(CID, &dir.path().join("v")).unwrap();
    vsock.agree(0);
    Table {
        dir,
        memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap(),
        vsock,
        guest_forwarded: 0,
    }
}

fn buffer(address: u64, len: usize) -> Buffer {
    let address = GuestAddress(address);
    Buffer { address, len }
}

impl Table {
    fn path(&self, port: u32) -> PathBuf {
        self.dir.path().join(format!("v_{port}"))
    }

    fn header(&self, op: u16, from_port: u32, to_port: u32) -> Header {
        Header {
            from_cid: CID.into(),
            to_cid: HOST_CID,
            from_port,
            to_port,
            kind: STREAM,
            op,
            room: GUEST_ROOM,
            forwarded: self.guest_forwarded,
            ..Header::default()
        }
    }

    /// Transmits a packet in two buffers, cut inside of the header.
    fn transmit(&mut self, header: Header, data: &[u8]) -> Result<Answer, Garbage> {
        let packet = [&header.bytes(), data].concat();
        self.memory.write_slice(&packet, GuestAddress(AT)).unwrap();
        let chain = Chain {
            readable: vec![buffer(AT, 10), buffer(AT + 10, packet.len() - 10)],
            ..Chain::default()
        };
        self.vsock.serve(TRANSMIT, chain, &self.memory)
    }

    fn say(&mut self, op: u16, from_port: u32, to_port: u32) {
        let header = self.header(op, from_port, to_port);
        assert_eq!(self.transmit(header, &[]), Ok(Answer::Done(0)));
    }

    fn send(&mut self, from_port: u32, to_port: u32, data: &[u8]) {
        let mut header = self.header(op::DATA, from_port, to_port);
        header.len = u32::try_from(data.len()).unwrap();
        assert_eq!(self.transmit(header, data), Ok(Answer::Done(0)));
    }

    /// The next packet for the guest, if there is one, into a buffer as Linux has it.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        self.vsock.stirred();
        let chain = Chain {
            writable: vec![buffer(AT, 100), buffer(AT + 100, 3996)],
            ..Chain::default()
        };
        match self.vsock.serve(RECEIVE, chain, &self.memory).unwrap() {
            Answer::NotYet | Answer::Later => None,
            Answer::Done(len) => {
                let mut packet = vec![0; len.try_into().unwrap()];
                self.memory
                    .read_slice(&mut packet, GuestAddress(AT))
                    .unwrap();
                let header = Header::parse(packet[..HEADER_LEN].try_into().unwrap());
                let data = packet.split_off(HEADER_LEN);
                assert_eq!(usize::try_from(header.len).unwrap(), data.len());
                Some((header, data))
            }
        }
    }

    fn heard(&mut self) -> Option<(u16, u32)> {
        self.receive().map(|(header, _)| (header.op, header.flags))
    }

    /// A connection that the guest began, from its port 5000 to the host's 80.
    fn connected(&mut self) -> UnixStream {
        let service = UnixListener::bind(self.path(80)).unwrap();
        self.say(op::REQUEST, 5000, 80);
        assert_eq!(self.heard(), Some((op::RESPONSE, 0)));
        service.accept().unwrap().0
    }
}

#[test]
fn a_guest_reaches_the_service_at_the_sockets_name_and_its_port() {
    let mut table = table();
    let mut host = table.connected();
    table.send(5000, 80, b"hello");
    let mut said = [0; 5];
    host.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello");
    host.write_all(b"world").unwrap();
    let (header, data) = table.receive().unwrap();
    assert_eq!(
        (
            header.op,
            header.from_port,
            header.to_port,
            header.forwarded
        ),
        (op::DATA, 80, 5000, 5)
    );
    assert_eq!(data, b"world");
    assert_eq!(table.heard(), None);
}

#[test]
fn a_port_without_a_service_refuses_and_so_does_a_service_that_is_too_busy() {
    let mut table = table();
    table.say(op::REQUEST, 5000, 80);
    assert_eq!(table.heard(), Some((op::RESET, 0)));
    let _service = UnixListener::bind(table.path(81)).unwrap();
    // Nobody accepts: at some time its queue is full.
    let answers: Vec<_> = (6000..6000 + 5000)
        .take_while(|&port| {
            table.say(op::REQUEST, port, 81);
            table.heard() == Some((op::RESPONSE, 0))
        })
        .collect();
    assert!(!answers.is_empty() && answers.len() <= MOST_CONNECTIONS);
}

#[test]
fn a_program_of_the_hosts_says_where_to_and_is_told_when_it_is_there() {
    let mut table = table();
    let mut host = UnixStream::connect(table.dir.path().join("v")).unwrap();
    host.write_all(b"CONNECT 22\nearly").unwrap();
    let (request, _) = table.receive().unwrap();
    assert_eq!((request.op, request.to_port), (op::REQUEST, 22));
    assert!(request.from_port >= FIRST_PORT);
    table.say(op::RESPONSE, 22, request.from_port);
    let mut line = vec![0; format!("OK {}\n", request.from_port).len()];
    host.read_exact(&mut line).unwrap();
    assert_eq!(line, format!("OK {}\n", request.from_port).as_bytes());
    assert_eq!(table.receive().unwrap().1, b"early");
}

#[test]
fn a_program_that_is_refused_or_says_nonsense_is_hung_up_on() {
    let mut table = table();
    let path = table.dir.path().join("v");
    for nonsense in [
        "GET / HTTP/1.1\r\n",
        "CONNECT\n",
        "CONNECT 1 2\n",
        "CONNECT 4294967296\n",
    ] {
        let mut host = UnixStream::connect(&path).unwrap();
        host.write_all(nonsense.as_bytes()).unwrap();
        assert_eq!(table.heard(), None);
        // What was not read makes the end a reset of the connection.
        assert_eq!(host.read(&mut [0; 16]).unwrap_or(0), 0, "{nonsense}");
    }
    let mut host = UnixStream::connect(&path).unwrap();
    host.write_all(b"CONNECT 22\n").unwrap();
    let (request, _) = table.receive().unwrap();
    table.say(op::RESET, 22, request.from_port);
    assert_eq!(host.read(&mut [0; 16]).unwrap(), 0);
    assert!(table.vsock.connections.is_empty() && table.vsock.by_ports.is_empty());
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut table = table();
    let mut host = table.connected();
    let all: Vec<u8> = (0..GUEST_ROOM + 1000).map(|n| n.to_le_bytes()[0]).collect();
    let sent = all.clone();
    let writer = std::thread::spawn(move || {
        host.write_all(&sent).unwrap();
        host
    });
    let mut got = Vec::new();
    while got.len() < GUEST_ROOM as usize {
        match table.receive() {
            Some((header, data)) if header.op == op::DATA => got.extend(data),
            Some((header, _)) => panic!("{header:?}"),
            None => std::thread::yield_now(),
        }
    }
    // The guest has passed nothing on: it is asked, once.
    while table.heard() != Some((op::CREDIT_REQUEST, 0)) {
        std::thread::yield_now();
    }
    assert_eq!(table.heard(), None);
    // Linux answers at once, whether it has room or not.
    table.say(op::CREDIT_UPDATE, 5000, 80);
    assert_eq!(table.heard(), None);
    table.guest_forwarded = GUEST_ROOM;
    table.say(op::CREDIT_UPDATE, 5000, 80);
    while got.len() < all.len() {
        got.extend(table.receive().map(|(_, data)| data).unwrap_or_default());
    }
    assert!(got == all);
    drop(writer.join().unwrap());
}

#[test]
fn a_guest_that_sends_more_than_there_is_room_for_loses_the_connection() {
    let mut table = table();
    let host = table.connected();
    // What a Unix socket itself takes comes first.
    let mut sent = 0;
    while table.vsock.connections.len() == 1 {
        table.send(5000, 80, &[0; 4096]);
        sent += 4096;
        assert!(sent < 1 << 22, "there is no limit");
    }
    assert!(sent > ROOM as usize);
    let told: Vec<_> = std::iter::from_fn(|| table.heard()).collect();
    assert_eq!(told.last(), Some(&(op::RESET, 0)));
    drop(host);
}

#[test]
fn what_waits_for_the_host_is_counted_as_room_once_the_host_took_it() {
    let mut table = table();
    let mut host = table.connected();
    let mut sent = 0;
    while table.vsock.connections.values().all(|one| one.is_flushed()) {
        table.send(5000, 80, &[7; 4096]);
        sent += 4096;
    }
    let mut last = 0;
    while let Some((header, _)) = table.receive() {
        last = header.forwarded;
    }
    let mut got = vec![0; sent];
    host.set_nonblocking(true).unwrap();
    let mut read = 0;
    while read < sent {
        read += host.read(&mut got[read..]).unwrap_or(0);
        if let Some((header, _)) = table.receive() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            last = header.forwarded;
        }
    }
    assert!(got.iter().all(|&byte| byte == 7));
    while let Some((header, _)) = table.receive() {
        last = header.forwarded;
    }
    table.say(op::CREDIT_REQUEST, 5000, 80);
    let (header, _) = table.receive().unwrap();
    assert_eq!(header.op, op::CREDIT_UPDATE);
    assert_eq!(usize::try_from(header.forwarded).unwrap(), sent);
    assert!(header.forwarded - last <= ROOM, "it was told on the way");
}

#[test]
fn the_hosts_end_reaches_the_guest_after_all_that_it_sent() {
    let mut table = table();
    let mut host = table.connected();
    host.write_all(b"last words").unwrap();
    drop(host);
    assert_eq!(table.receive().unwrap().1, b"last words");
    assert_eq!(table.heard(), Some((op::SHUTDOWN, NEITHER)));
    assert_eq!(table.heard(), None);
    table.say(op::RESET, 5000, 80);
    assert!(table.vsock.connections.is_empty());
}

#[test]
fn a_host_that_only_stops_sending_still_receives() {
    let mut table = table();
    let mut host = table.connected();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(table.heard(), Some((op::SHUTDOWN, NO_SEND)));
    table.send(5000, 80, b"answer");
    let mut said = [0; 6];
    host.read_exact(&mut said).unwrap();
    drop(host);
    assert_eq!(table.heard(), Some((op::SHUTDOWN, NEITHER)));
}

#[test]
fn the_guests_end_reaches_the_host_after_all_that_it_sent() {
    let mut table = table();
    let mut host = table.connected();
    table.send(5000, 80, b"last words");
    let mut header = table.header(op::SHUTDOWN, 5000, 80);
    header.flags = NEITHER;
    assert_eq!(table.transmit(header, &[]), Ok(Answer::Done(0)));
    let mut said = Vec::new();
    host.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"last words");
    assert_eq!(table.heard(), Some((op::RESET, 0)));
}

#[test]
fn a_guest_stops_sending_and_receiving_one_by_one() {
    let mut table = table();
    let mut host = table.connected();
    let stop = |table: &mut Table, flags| {
        let mut header = table.header(op::SHUTDOWN, 5000, 80);
        header.flags = flags;
        assert_eq!(table.transmit(header, &[]), Ok(Answer::Done(0)));
    };
    host.set_nonblocking(true).unwrap();
    let read = |host: &mut UnixStream| host.read(&mut [0; 16]).map_err(|error| error.kind());
    stop(&mut table, 0);
    assert_eq!(
        (read(&mut host), table.heard()),
        (Err(ErrorKind::WouldBlock), None)
    );
    stop(&mut table, NO_SEND);
    assert_eq!((read(&mut host), table.heard()), (Ok(0), None));
    host.write_all(b"still heard").unwrap();
    assert_eq!(table.receive().unwrap().1, b"still heard");
    stop(&mut table, NO_RECEIVE);
    assert_eq!(table.heard(), Some((op::RESET, 0)), "both is the end");
    let refused = host.write_all(b"not heard").map_err(|error| error.kind());
    assert_eq!(refused, Err(ErrorKind::BrokenPipe));
}

#[test]
fn a_guest_that_only_stops_receiving_is_not_written_to_and_still_sends() {
    let mut table = table();
    let mut host = table.connected();
    let mut header = table.header(op::SHUTDOWN, 5000, 80);
    header.flags = NO_RECEIVE;
    assert_eq!(table.transmit(header, &[]), Ok(Answer::Done(0)));
    let refused = host.write_all(b"not heard").map_err(|error| error.kind());
    assert_eq!(refused, Err(ErrorKind::BrokenPipe));
    table.send(5000, 80, b"still sent");
    let mut said = [0; 10];
    host.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"still sent");
}

#[test]
fn a_guest_is_told_once_that_the_host_reads_no_more_and_what_it_sends_makes_room() {
    let mut table = table();
    let host = table.connected();
    host.shutdown(Shutdown::Read).unwrap();
    table.send(5000, 80, b"lost");
    let (header, _) = table.receive().unwrap();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, NO_RECEIVE));
    assert_eq!(header.forwarded, 4);
    table.send(5000, 80, b"lost as well");
    assert_eq!(table.heard(), None);
    table.say(op::CREDIT_REQUEST, 5000, 80);
    assert_eq!(table.receive().unwrap().0.forwarded, 16);
}

#[test]
fn a_reset_is_never_answered() {
    let mut table = table();
    table.say(op::RESET, 1, 1);
    assert_eq!(table.heard(), None, "of a connection that there is not");
    let _host = table.connected();
    table.say(op::RESET, 5000, 80);
    assert_eq!(table.heard(), None);
    assert!(table.vsock.connections.is_empty());
}

#[test]
fn a_program_that_leaves_before_the_guest_answers_takes_its_request_back() {
    let mut table = table();
    let mut host = UnixStream::connect(table.dir.path().join("v")).unwrap();
    host.write_all(b"CONNECT 22\n").unwrap();
    assert_eq!(table.heard(), Some((op::REQUEST, 0)));
    host.write_all(b"early").unwrap();
    assert_eq!(table.heard(), None, "it may say more meanwhile");
    drop(host);
    assert_eq!(table.heard(), Some((op::RESET, 0)));
}

#[test]
fn a_greeting_has_room_for_some_blanks_and_no_more() {
    for (len, is_taken) in [(32, true), (33, false)] {
        let mut table = table();
        let line = format!("CONNECT{:>1$}\n", 22, len - "CONNECT".len());
        assert_eq!(line.len(), len + 1);
        let mut host = UnixStream::connect(table.dir.path().join("v")).unwrap();
        host.write_all(line.as_bytes()).unwrap();
        assert_eq!(table.heard().is_some(), is_taken, "{len} characters");
    }
}

#[test]
fn the_device_is_woken_by_its_socket() {
    let table = table();
    assert!(table.vsock.source().is_some_and(|fd| fd > 2));
}

#[test]
fn what_a_guest_sent_reaches_the_host_even_if_the_guest_does_not_wait_for_that() {
    let mut table = table();
    let mut host = table.connected();
    let mut sent = 0;
    while table.vsock.connections.values().all(|one| one.is_flushed()) {
        table.send(5000, 80, &[7; 4096]);
        sent += 4096;
    }
    let mut header = table.header(op::SHUTDOWN, 5000, 80);
    header.flags = NEITHER;
    assert_eq!(table.transmit(header, &[]), Ok(Answer::Done(0)));
    while table.heard().is_some() {}
    table.say(op::RESET, 5000, 80);
    assert!(table.vsock.by_ports.is_empty(), "its ports are free");
    let mut got = vec![0; sent];
    let reader = std::thread::spawn(move || host.read_exact(&mut got));
    while !reader.is_finished() {
        table.heard();
        std::thread::yield_now();
    }
    reader.join().unwrap().unwrap();
    assert_eq!(table.heard(), None, "the guest knows of it no more");
    assert!(table.vsock.connections.is_empty());
}

#[test]
fn a_guest_that_takes_no_answers_is_not_listened_to() {
    let mut table = table();
    let ask = |table: &mut Table| {
        let header = table.header(op::DATA, 1, 1);
        table.transmit(header, &[])
    };
    for _ in 0..MOST_CONTROLS {
        assert_eq!(ask(&mut table), Ok(Answer::Done(0)));
    }
    assert_eq!(ask(&mut table), Ok(Answer::NotYet));
    assert_eq!(table.heard(), Some((op::RESET, 0)));
    assert_eq!(ask(&mut table), Ok(Answer::Done(0)));
}

#[test]
fn a_reset_of_the_device_ends_its_connections_and_the_socket_stays() {
    let mut table = table();
    let mut host = table.connected();
    table.vsock.settle();
    assert_eq!(host.read(&mut [0; 16]).unwrap(), 0);
    let mut host = UnixStream::connect(table.dir.path().join("v")).unwrap();
    host.write_all(b"CONNECT 1\n").unwrap();
    assert_eq!(table.heard(), Some((op::REQUEST, 0)));
}

#[test]
fn packets_without_what_they_say_they_have_are_garbage() {
    let mut table = table();
    let _host = table.connected();
    let mut header = table.header(op::DATA, 5000, 80);
    header.len = 100;
    assert_eq!(
        table.transmit(header, &[0; 99]),
        Err(Garbage::Request("data"))
    );
    for len in [0, 1, HEADER_LEN] {
        let chain = Chain {
            writable: vec![buffer(AT, len)],
            ..Chain::default()
        };
        let served = table.vsock.serve(RECEIVE, chain, &table.memory);
        assert_eq!(served, Err(Garbage::Request("header and data")));
    }
    let chain = Chain::default();
    let served = table.vsock.serve(TRANSMIT, chain, &table.memory);
    assert_eq!(served, Err(Garbage::Request("header")));
}

#[test]
fn whatever_packets_come_connections_and_what_is_kept_stay_within_their_limits() {
    let mut table = table();
    let service = UnixListener::bind(table.path(80)).unwrap();
    service.set_nonblocking(true).unwrap();
    let mut random = Random::new(5);
    let mut kept = Vec::new();
    for _ in 0..30_000 {
        let ports = [0, 1, 80, FIRST_PORT, u32::MAX];
        let mut one_of = |count| usize::try_from(random.within(0..count)).unwrap();
        let from = ports[one_of(5)];
        let to = ports[one_of(5)];
        let op = u16::try_from(one_of(9)).unwrap();
        let mut header = table.header(op, from, to);
        header.kind = u16::try_from(one_of(2)).unwrap() + u16::from(one_of(8) > 0);
        header.from_cid += u64::from(one_of(50) == 0);
        let len = [0, 1, 500][one_of(3)];
        header.len = [u32::try_from(len).unwrap(), u32::MAX, 70_000][one_of(30).saturating_sub(27)];
        header.flags = u32::try_from(one_of(5)).unwrap();
        let numbers = [0, 1, GUEST_ROOM, u32::MAX];
        header.room = numbers[one_of(4)];
        header.forwarded = numbers[one_of(4)];
        let answer = table.transmit(header, &vec![0; len]);
        assert!(!matches!(answer, Ok(Answer::Done(1..))));
        while one_of(3) > 0 && table.receive().is_some() {}
        kept.extend(service.accept().ok());
        kept.truncate(20);
        let vsock = &table.vsock;
        assert!(vsock.controls.len() <= MOST_CONTROLS + 2 * vsock.connections.len() + 2);
        assert_eq!(vsock.by_ports.len(), vsock.connections.len());
        assert!(vsock.line.len() <= 30_000);
    }
}

#[test]
fn a_socket_that_a_killed_process_left_is_replaced_and_one_in_use_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    drop(UnixListener::bind(&path).unwrap());
    let vsock = Vsock::new(CID, &path).unwrap();
    assert!(matches!(Vsock::new(CID, &path), Err(SocketError::InUse(_))));
    drop(vsock);
    assert!(!path.exists(), "it goes with the device");
    std::fs::write(&path, "a file").unwrap();
    assert!(Vsock::new(CID, &path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    let long = dir.path().join("n".repeat(100));
    assert!(matches!(
        Vsock::new(CID, &long),
        Err(SocketError::Long { .. })
    ));
}
