//! Requests that overtake each other, fall short, or are many: over a ring that ends the last one first.

use std::{
    fs::{self, File},
    io::Write,
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use vm_memory::{Bytes, GuestMemoryMmap};

use super::{
    super::{
        super::{Answer, Backend, Buffer, testing::ram},
        Access, Blk,
    },
    *,
};

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;

/// What was begun: tag, where in the file, the buffers and whether they are written.
type Noted = (u16, u64, Vec<Buffer>, bool);

struct FakeRing {
    memory: GuestMemoryMmap,
    file: File,
    noted: Vec<Noted>,
    started: usize,
    /// A part of this many bytes is all that a transfer moves.
    most: usize,
    waits: Arc<AtomicUsize>,
    /// So many are all that the kernel starts at once.
    most_started: usize,
    /// What a flush ends with.
    flush_errno: i32,
    /// What a transfer ends with.
    transfer_errno: i32,
    /// Whether each write was to be stored before it ends.
    durable: Arc<Mutex<Vec<bool>>>,
}

impl Ring for FakeRing {
    fn source(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn begin(&mut self, tag: u16, _: &File, at: u64, what: Transfer<'_>) -> io::Result<()> {
        assert!(self.noted.iter().all(|noted| noted.0 != tag), "a tag twice");
        let (buffers, is_write) = match what {
            Transfer::Read(buffers) => (buffers, false),
            Transfer::Write {
                buffers,
                is_durable,
            } => {
                self.durable.lock().unwrap().push(is_durable);
                (buffers, true)
            }
            Transfer::Flush => (&[][..], false),
        };
        self.noted.push((tag, at, buffers.to_vec(), is_write));
        Ok(())
    }

    fn submit(&mut self) -> io::Result<bool> {
        self.started = self.noted.len().min(self.most_started);
        Ok(self.started < self.noted.len())
    }

    fn ended(&mut self) -> Option<(u16, io::Result<usize>)> {
        self.started = self.started.checked_sub(1)?;
        let (tag, mut at, buffers, is_write) = self.noted.remove(self.started);
        if buffers.is_empty() && self.flush_errno != 0 {
            return Some((tag, Err(io::Error::from_raw_os_error(self.flush_errno))));
        }
        if !buffers.is_empty() && self.transfer_errno != 0 {
            return Some((tag, Err(io::Error::from_raw_os_error(self.transfer_errno))));
        }
        let mut moved = 0;
        for buffer in buffers {
            let mut bytes = vec![0; buffer.len.min(self.most - moved)];
            if is_write {
                self.memory.read_slice(&mut bytes, buffer.address).unwrap();
                self.file.write_all_at(&bytes, at).unwrap();
            } else {
                self.file.read_exact_at(&mut bytes, at).unwrap();
                self.memory.write_slice(&bytes, buffer.address).unwrap();
            }
            at += bytes.len() as u64;
            moved += bytes.len();
        }
        Some((tag, Ok(moved)))
    }

    fn wait(&mut self) -> io::Result<()> {
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.submit().map(drop)
    }
}

struct Table {
    _dir: tempfile::TempDir,
    memory: GuestMemoryMmap,
    blk: Blk,
    waits: Arc<AtomicUsize>,
    durable: Arc<Mutex<Vec<bool>>>,
}

/// A disk of 64 sectors, each full of its number, over a ring that moves at most `most` bytes at once.
fn table(most: usize) -> Table {
    table_with(|ring| ring.most = most)
}

/// The same over a ring that is as told.
fn table_with(tell: impl Fn(&mut FakeRing)) -> Table {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let content: Vec<u8> = (0..64).flat_map(|sector| [sector; 512]).collect();
    fs::write(&path, content).unwrap();
    let disk = Disk::open(&path, Access::default()).unwrap();
    let memory = ram().0.clone();
    let waits = Arc::default();
    let mut ring = FakeRing {
        memory: memory.clone(),
        file: File::options().read(true).write(true).open(&path).unwrap(),
        noted: Vec::new(),
        started: 0,
        most: 1 << 20,
        waits: Arc::clone(&waits),
        most_started: usize::MAX,
        flush_errno: 0,
        transfer_errno: 0,
        durable: Arc::default(),
    };
    tell(&mut ring);
    let durable = ring.durable.clone();
    let blk = Blk::new(0, disk, 1).with_ring(Box::new(ring));
    Table {
        _dir: dir,
        memory,
        blk,
        waits,
        durable,
    }
}

fn buffer(address: u64, len: usize) -> Buffer {
    let address = GuestAddress(address);
    Buffer { address, len }
}

impl Table {
    /// Where request `head` has its data.
    fn data(head: u16) -> u64 {
        0x10000 + u64::from(head) * 0x400
    }

    fn ask(&mut self, head: u16, kind: u32, sector: u64, len: usize) -> Answer {
        let header = 0x1000 + u64::from(head) * 32;
        let memory = &self.memory;
        memory.write_obj(kind, GuestAddress(header)).unwrap();
        memory.write_obj(sector, GuestAddress(header + 8)).unwrap();
        memory
            .write_obj(0xee_u8, GuestAddress(header + 16))
            .unwrap();
        let data = (len > 0).then_some(buffer(Self::data(head), len));
        let (read, written) = match kind {
            READ => (None, data),
            _ => (data, None),
        };
        let chain = Chain {
            head,
            readable: [buffer(header, 16)].into_iter().chain(read).collect(),
            writable: written
                .into_iter()
                .chain([buffer(header + 16, 1)])
                .collect(),
        };
        self.blk.serve(0, chain, memory).unwrap()
    }

    fn status(&self, head: u16) -> u8 {
        let at = GuestAddress(0x1000 + u64::from(head) * 32 + 16);
        self.memory.read_obj(at).unwrap()
    }

    /// The requests that are done, and how much of each is new.
    fn finished(&mut self) -> Vec<(u16, u32)> {
        let next = || self.blk.finished(&self.memory).unwrap();
        std::iter::from_fn(next)
            .map(|one| (one.head, one.written))
            .collect()
    }

    fn byte(&self, address: u64) -> u8 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }
}

#[test]
fn requests_end_in_any_order_each_with_its_own_data_and_status() {
    let mut table = table(1 << 20);
    for head in 0..3 {
        let answer = table.ask(head, READ, u64::from(head) + 10, 512);
        assert_eq!(answer, Answer::Later);
    }
    assert_eq!(table.ask(3, FLUSH, 0, 0), Answer::Later);
    assert_eq!(table.status(0), 0xee, "nothing is said before it is done");
    assert_eq!(table.finished(), [(3, 1), (2, 513), (1, 513), (0, 513)]);
    for head in 0..3 {
        let number = u8::try_from(head).unwrap() + 10;
        assert_eq!(
            (table.status(head), table.byte(Table::data(head))),
            (0, number)
        );
    }
}

#[test]
fn what_is_wrong_is_refused_at_once_and_what_cannot_go_on_by_itself_is_done_at_once() {
    let mut table = table(1 << 20);
    assert_eq!(table.ask(0, READ, 64, 512), Answer::Done(513));
    assert_eq!(table.ask(1, WRITE, 0, 100), Answer::Done(1));
    assert_eq!((table.status(0), table.status(1)), (1, 1));
    assert_eq!(table.ask(2, 99, 0, 0), Answer::Done(1));
    assert_eq!(table.status(2), 2);
    assert_eq!(table.finished(), []);
}

#[test]
fn what_falls_short_is_done_again_in_whole() {
    let mut table = table(100);
    let ones = [1; 1024];
    table
        .memory
        .write_slice(&ones, GuestAddress(Table::data(0)))
        .unwrap();
    assert_eq!(table.ask(0, WRITE, 20, 1024), Answer::Later);
    assert_eq!(table.finished(), [(0, 1)]);
    assert_eq!(table.ask(1, READ, 20, 1024), Answer::Later);
    assert_eq!(table.finished(), [(1, 1025)]);
    assert_eq!((table.status(0), table.status(1)), (0, 0));
    assert_eq!(table.byte(Table::data(1) + 1023), 1);
}

#[test]
fn a_flush_that_says_what_is_lost_is_not_asked_again() {
    for errno in [libc::EIO, libc::ENOSPC, libc::EDQUOT] {
        let mut table = table_with(|ring| ring.flush_errno = errno);
        assert_eq!(table.ask(0, FLUSH, 0, 0), Answer::Later);
        assert_eq!(table.finished(), [(0, 1)]);
        assert_eq!(table.status(0), 1, "an I/O error");
    }
    // The file itself can be flushed.
    let mut table = table_with(|ring| ring.flush_errno = libc::EINVAL);
    assert_eq!(table.ask(0, FLUSH, 0, 0), Answer::Later);
    assert_eq!(table.finished(), [(0, 1)]);
    assert_eq!(table.status(0), 0);
}

#[test]
fn what_came_in_whole_is_not_done_again() {
    // The ring has another file than the disk: what is done again shows.
    let mut other = tempfile::tempfile().unwrap();
    other.write_all(&[0x77; 64 * 512]).unwrap();
    let mut table = table_with(|ring| ring.file = other.try_clone().unwrap());
    assert_eq!(table.ask(0, READ, 5, 1024), Answer::Later);
    assert_eq!(table.finished(), [(0, 1025)]);
    assert_eq!(table.byte(Table::data(0)), 0x77);
    assert_eq!(table.ask(1, WRITE, 6, 512), Answer::Later);
    assert_eq!(table.finished(), [(1, 1)]);
    table.blk.flights = None;
    assert_eq!(table.ask(2, READ, 6, 512), Answer::Done(513));
    assert_eq!(table.byte(Table::data(2)), 6, "the disk was not written");
}

#[test]
fn a_write_that_was_to_be_stored_and_is_lost_is_an_error_and_any_other_is_done_again() {
    let mut table = table_with(|ring| ring.transfer_errno = libc::EIO);
    let mut end = |kind, features| {
        if let Some(features) = features {
            table.blk.agree(features);
        }
        assert_eq!(table.ask(0, kind, 5, 512), Answer::Later);
        assert_eq!(table.finished().len(), 1);
        table.status(0)
    };
    assert_eq!(end(WRITE, None), 1, "stored, until a driver flushes");
    assert_eq!(end(READ, None), 0);
    assert_eq!(end(WRITE, Some(1 << 9)), 0, "VIRTIO_BLK_F_FLUSH");
    assert_eq!(end(WRITE, Some(0)), 1);
    assert_eq!(*table.durable.lock().unwrap(), [true, false, true]);
}

#[test]
fn the_disk_is_woken_by_its_ring_if_it_has_one() {
    let file = tempfile::tempfile().unwrap();
    let mut table = table_with(|ring| ring.file = file.try_clone().unwrap());
    assert!(table.blk.source().is_some_and(|fd| fd > 2));
    table.blk.flights = None;
    assert_eq!(table.blk.source(), None);
}

#[test]
fn what_the_kernel_does_not_start_at_once_starts_when_another_has_ended() {
    let mut table = table_with(|ring| ring.most_started = 1);
    for head in 0..3 {
        assert_eq!(table.ask(head, READ, 5, 512), Answer::Later);
    }
    // One comes with each look, as one with each event.
    assert_eq!(table.finished(), [(0, 513), (1, 513), (2, 513)]);
}

#[test]
fn what_there_is_no_room_for_waits_and_is_asked_again() {
    let mut table = table(1 << 20);
    for _ in 0..MOST_AT_ONCE {
        assert_eq!(table.ask(0, READ, 0, 512), Answer::Later);
    }
    assert_eq!(table.ask(1, READ, 1, 512), Answer::NotYet);
    let counted = table.blk.counters().counts().reads;
    assert_eq!(
        counted,
        u64::from(MOST_AT_ONCE),
        "what waits is not counted yet"
    );
    assert_eq!(table.finished().len(), usize::from(MOST_AT_ONCE));
    assert_eq!(table.ask(1, READ, 1, 512), Answer::Later);
}

#[test]
fn a_reset_waits_for_what_goes_on_and_says_nothing_of_it() {
    let mut table = table(1 << 20);
    assert_eq!(table.ask(0, READ, 5, 512), Answer::Later);
    assert_eq!(table.ask(1, READ, 6, 512), Answer::Later);
    table.blk.settle();
    assert_eq!(table.waits.load(Ordering::Relaxed), 1);
    assert_eq!(table.byte(Table::data(1)), 6, "it is over");
    assert_eq!((table.finished(), table.status(0)), (vec![], 0xee));
    assert_eq!(table.ask(0, READ, 5, 512), Answer::Later);
    assert_eq!(table.finished(), [(0, 513)]);
}
