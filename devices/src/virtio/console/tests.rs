//! What is typed, printed and resized, and garbage.

use std::sync::mpsc::{self, Receiver, Sender};

use super::*;

const AT: u64 = 0x1000;

/// Sends on what is written, once its gate (a message for each write) lets it.
struct Sink {
    written: Sender<Vec<u8>>,
    gate: Receiver<()>,
}

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let closed = |_| std::io::ErrorKind::BrokenPipe;
        self.gate.recv().map_err(closed)?;
        self.written
            .send(bytes.to_vec())
            .map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Table {
    memory: GuestMemoryMmap,
    port: Arc<Port>,
    console: Console,
    written: Receiver<Vec<u8>>,
    gate: Sender<()>,
}

fn table() -> Table {
    let (written, heard) = mpsc::channel();
    let (opens, gate) = mpsc::channel();
    let port = Port::new(Box::new(Sink { written, gate })).unwrap();
    let mut console = Console::new(port.clone());
    console.agree(F_SIZE);
    Table {
        memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap(),
        port,
        console,
        written: heard,
        gate: opens,
    }
}

fn buffer(address: u64, len: usize) -> Buffer {
    let address = GuestAddress(address);
    Buffer { address, len }
}

impl Table {
    fn receive(&mut self, writable: Vec<Buffer>) -> Result<Answer, Garbage> {
        let chain = Chain {
            writable,
            ..Chain::default()
        };
        self.console.serve(RECEIVE, chain, &self.memory)
    }

    fn transmit(&mut self, readable: Vec<Buffer>) -> Result<Answer, Garbage> {
        let chain = Chain {
            readable,
            ..Chain::default()
        };
        self.console.serve(TRANSMIT, chain, &self.memory)
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }
}

#[test]
fn what_is_typed_fills_what_the_guest_offers_and_no_more() {
    let mut table = table();
    let offered = vec![buffer(AT, 3), buffer(AT + 0x100, 8)];
    assert_eq!(table.receive(offered.clone()), Ok(Answer::NotYet));
    assert_eq!(table.port.receive(b"hello"), 5);
    assert_eq!(table.receive(offered.clone()), Ok(Answer::Done(5)));
    assert_eq!(table.read(AT, 4), b"hel\0");
    assert_eq!(table.read(AT + 0x100, 3), b"lo\0");
    assert_eq!(table.receive(offered), Ok(Answer::NotYet));
}

#[test]
fn typing_ahead_has_a_limit_and_room_is_told_of() {
    let mut table = table();
    assert_eq!(table.port.receive(&[b'x'; 5000]), 4096);
    assert_eq!(table.port.receive(b"y"), 0);
    assert!(table.port.room().read().is_err());
    assert_eq!(table.receive(vec![buffer(AT, 1)]), Ok(Answer::Done(1)));
    assert_eq!(table.port.room().read().unwrap(), 1);
    assert_eq!(table.port.receive(b"yy"), 1);
    assert!(table.port.take(0).is_empty());
    assert!(table.port.room().read().is_err(), "no room was made");
    assert_eq!(table.port.take(1), [b'x']);
    assert_eq!(table.port.room().read().unwrap(), 1);
}

#[test]
fn room_is_told_of_only_to_who_was_refused() {
    let table = table();
    assert_eq!(table.port.receive(&[b'x'; 4096]), 4096);
    assert_eq!(table.port.take(4096).len(), 4096);
    assert!(table.port.room().read().is_err());
}

#[test]
fn what_is_typed_wakes_the_device() {
    let table = table();
    assert_eq!(table.console.source(), Some(table.port.bell().as_raw_fd()));
    assert!(table.port.bell().read().is_err());
    table.port.receive(b"x");
    assert_eq!(table.port.bell().read().unwrap(), 1);
}

#[test]
fn a_short_buffer_is_filled_before_the_next_and_what_is_left_waits() {
    let mut table = table();
    table.port.receive(b"abcdef");
    let offered = vec![buffer(AT, 2), buffer(AT + 0x100, 2)];
    assert_eq!(table.receive(offered), Ok(Answer::Done(4)));
    assert_eq!(
        (table.read(AT, 2), table.read(AT + 0x100, 2)),
        (b"ab".to_vec(), b"cd".to_vec())
    );
    assert_eq!(table.port.take(10), b"ef");
}

#[test]
fn what_is_printed_while_nobody_takes_it_waits_and_is_all_there_in_the_end() {
    let mut table = table();
    let text: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    table.memory.write_slice(&text, GuestAddress(AT)).unwrap();
    let request = || vec![buffer(AT, 70_001), buffer(AT + 70_001, 129_999)];
    assert_eq!(table.transmit(request()), Ok(Answer::NotYet));
    let mut printed = Vec::new();
    loop {
        table.gate.send(()).unwrap();
        printed.extend(table.written.recv().unwrap());
        if table.transmit(request()) == Ok(Answer::Done(0)) {
            break;
        }
    }
    while printed.len() < text.len() {
        table.gate.send(()).unwrap();
        printed.extend(table.written.recv().unwrap());
    }
    assert!(printed == text);
}

#[test]
fn a_full_backlog_that_is_taken_over_wakes_the_device() {
    let mut table = table();
    assert_eq!(table.transmit(vec![buffer(0, 1 << 20)]), Ok(Answer::NotYet));
    // The thread may have begun with less: once that is written it takes over what is full, and says so.
    table.gate.send(()).unwrap();
    while table.port.bell().read().is_err() {
        std::thread::yield_now();
    }
}

#[test]
fn a_resize_is_a_change_of_the_configuration_once_and_for_a_driver_that_knows_sizes() {
    let mut table = table();
    let size = Size {
        columns: 132,
        rows: 0x0203,
    };
    table.port.resize(size);
    assert!(table.console.stirred());
    assert!(!table.console.stirred());
    let mut config = [0; 4];
    table.console.kind().config.read(0, &mut config);
    assert_eq!(config, [132, 0, 3, 2]);
    table.port.resize(size);
    assert!(!table.console.stirred(), "it is as it was");
    table.console.agree(0);
    table.port.resize(Size {
        columns: 80,
        ..size
    });
    assert!(!table.console.stirred());
}

#[test]
fn a_buffer_to_receive_into_that_cannot_be_written_is_garbage() {
    let mut table = table();
    let garbage = Err(Garbage::Request("characters"));
    assert_eq!(table.receive(vec![]), garbage);
    let chain = Chain {
        readable: vec![buffer(AT, 16)],
        ..Chain::default()
    };
    assert_eq!(table.console.serve(RECEIVE, chain, &table.memory), garbage);
    assert_eq!(table.transmit(vec![]), Ok(Answer::Done(0)));
}

#[test]
fn a_reset_forgets_how_much_of_a_request_was_printed() {
    let mut table = table();
    assert_eq!(table.transmit(vec![buffer(0, 1 << 20)]), Ok(Answer::NotYet));
    assert!(table.console.printed > 0);
    table.console.agree(0);
    assert_eq!(table.console.printed, 0);
}
