//! Requests at the edges of a disk, and files that fail.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
};

use tempfile::TempDir;
use vm_memory::GuestAddress;

use super::{
    super::{Buffer, testing::ram},
    *,
};

const HEADER: u64 = 0x1000;
const DATA: u64 = 0x10000;
const STATUS: u64 = 0x2000;
const SECTORS: u64 = 64;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;

struct Table {
    dir: TempDir,
    memory: GuestMemoryMmap,
    blk: Blk,
}

fn access(is_readonly: bool) -> Access {
    Access {
        is_readonly,
        is_direct: false,
    }
}

fn table(is_readonly: bool) -> Table {
    table_of(access(is_readonly)).unwrap()
}

fn table_of(access: Access) -> Result<Table, DiskError> {
    table_with(access, 64)
}

fn table_of_sectors(sectors: usize) -> Table {
    table_with(access(false), sectors).unwrap()
}

fn table_with(access: Access, sectors: usize) -> Result<Table, DiskError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, vec![0x5a; 512 * sectors]).unwrap();
    let disk = Disk::open(&path, access)?;
    let memory = ram().0.clone();
    let blk = Blk::new(0, disk, 2);
    Ok(Table { dir, memory, blk })
}

fn buffer(address: u64, len: usize) -> Buffer {
    Buffer {
        address: GuestAddress(address),
        len,
    }
}

impl Table {
    /// The status of a request over `len` bytes of data, and how much was said to be written.
    fn request(&mut self, kind: u32, sector: u64, len: usize) -> (u8, u32) {
        let memory = &self.memory;
        memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        memory.write_obj(0xee_u8, GuestAddress(STATUS)).unwrap();
        let data = (len > 0).then_some(buffer(DATA, len));
        let is_to_guest = matches!(kind, READ | GET_ID);
        let (read, written) = if is_to_guest {
            (None, data)
        } else {
            (data, None)
        };
        let chain = Chain {
            readable: [buffer(HEADER, 16)].into_iter().chain(read).collect(),
            writable: written.into_iter().chain([buffer(STATUS, 1)]).collect(),
            ..Chain::default()
        };
        let Answer::Done(used) = self.blk.serve(0, chain, memory).unwrap() else {
            panic!("a disk never has anybody wait");
        };
        (memory.read_obj(GuestAddress(STATUS)).unwrap(), used)
    }

    /// Ranges for discard and write-zeroes: sector, sectors, flags.
    fn range(&mut self, kind: u32, (sector, sectors, flags): (u64, u32, u32)) -> u8 {
        let memory = &self.memory;
        memory.write_obj(sector, GuestAddress(DATA)).unwrap();
        memory.write_obj(sectors, GuestAddress(DATA + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(DATA + 12)).unwrap();
        self.request(kind, 0, 16).0
    }

    fn data(&self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory
            .read_slice(&mut data, GuestAddress(DATA))
            .unwrap();
        data
    }

    fn file(&self) -> File {
        let path = self.dir.path().join("disk");
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn sector(&self, sector: u64) -> [u8; 512] {
        let mut bytes = [0; 512];
        self.file()
            .read_exact_at(&mut bytes, sector * SECTOR)
            .unwrap();
        bytes
    }
}

#[test]
fn what_is_written_is_in_the_file_and_read_back() {
    let mut table = table(false);
    table
        .memory
        .write_slice(&[7; 1024], GuestAddress(DATA))
        .unwrap();
    assert_eq!(table.request(WRITE, 62, 1024), (0, 1));
    assert_eq!(table.sector(61), [0x5a; 512]);
    assert_eq!((table.sector(62), table.sector(63)), ([7; 512], [7; 512]));
    assert_eq!(table.request(READ, 61, 1536), (0, 1537));
    let data = table.data(1536);
    assert_eq!(
        (&data[..512], &data[512..]),
        (&[0x5a; 512][..], &[7; 1024][..])
    );
    assert_eq!(table.request(FLUSH, 0, 0), (0, 1));
}

#[test]
fn features_and_configuration_are_those_of_the_specification() {
    // virtio 1.2 §5.2.3: SEG_MAX, RO, FLUSH, MQ, DISCARD, WRITE_ZEROES.
    let rw = 1 << 2 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 14;
    let ro = 1 << 2 | 1 << 5 | 1 << 9 | 1 << 12;
    assert_eq!(table(false).blk.kind().features, rw);
    let kind = table(true).blk.kind();
    assert_eq!(kind.features, ro);
    // §5.2.4: capacity, segments, queues; limits and alignment of discards; limits of zeroing, and that it may unmap.
    let mut expected = [0; 60];
    for (at, value) in [
        (0, &64_u64.to_le_bytes()[..]),
        (12, &254_u32.to_le_bytes()),
        (34, &2_u16.to_le_bytes()),
        (36, &(1_u32 << 21).to_le_bytes()),
        (40, &16_u32.to_le_bytes()),
        (44, &1_u32.to_le_bytes()),
        (48, &(1_u32 << 21).to_le_bytes()),
        (52, &16_u32.to_le_bytes()),
        (56, &[1]),
    ] {
        expected[at..at + value.len()].copy_from_slice(value);
    }
    let mut config = [0xee; 60];
    kind.config.read(0, &mut config);
    assert_eq!(config, expected);
    assert_eq!(kind.queues, [256, 256], "a queue for each processor");
}

/// Has a system call fail with `errno` for the calling thread, for good.
#[expect(
    unsafe_code,
    reason = "libc has no other way to a filter of system calls"
)]
fn fail(call: libc::c_long, errno: i32) {
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    let statement = |code: u32, (jt, jf), k| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt,
        jf,
        k,
    };
    let [number, errno] = [call, errno.into()].map(|value| u32::try_from(value).unwrap());
    let mut filter = [
        // The system call's number is the first field of what the filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, (0, 1), number),
        statement(
            libc::BPF_RET | libc::BPF_K,
            (0, 0),
            libc::SECCOMP_RET_ERRNO | errno,
        ),
        statement(libc::BPF_RET | libc::BPF_K, (0, 0), ALLOW),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: takes no pointers; only this thread loses rights that it does not use.
    let locked = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(locked, 0, "{}", io::Error::last_os_error());
    // SAFETY: `program` and the filter that it points to live until the call returns, which copies them.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

#[test]
fn a_write_is_stored_before_it_is_answered_unless_the_driver_flushes_and_a_flush_always_is() {
    let mut table = table(false);
    // What asks the kernel to store something fails, and nothing else does.
    let failed = std::thread::spawn(move || {
        fail(libc::SYS_fdatasync, libc::EIO);
        // virtio 1.2 §5.2.6.2: with VIRTIO_BLK_F_FLUSH, and only then, a write may be answered before it is stored.
        [None, Some(F_FLUSH), Some(0)].map(|features| {
            if let Some(features) = features {
                table.blk.agree(features);
            }
            let write = table.request(WRITE, 0, 512).0;
            let zeroes = table.range(ZEROES, (1, 1, 0));
            let flush = table.request(FLUSH, 0, 0).0;
            [write, zeroes, flush, table.request(READ, 0, 512).0]
        })
    });
    let (stored, left) = ([1, 1, 1, 0], [0, 0, 1, 0]);
    assert_eq!(failed.join().unwrap(), [stored, left, stored]);
}

#[test]
fn what_is_not_wholly_on_the_disk_is_an_io_error_and_changes_nothing() {
    let mut table = table(false);
    for (sector, len) in [
        (64, 512),
        (63, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 0),
        (0, 511),
    ] {
        assert_eq!(table.request(READ, sector, len).0, 1, "{sector} {len}");
        assert_eq!(table.request(WRITE, sector, len).0, 1, "{sector} {len}");
    }
    assert_eq!(table.file().metadata().unwrap().len(), SECTORS * SECTOR);
    assert_eq!(table.sector(63), [0x5a; 512]);
}

#[test]
fn a_disk_that_is_read_only_is_not_written() {
    let mut table = table(true);
    assert_ne!(table.blk.kind().features & F_READ_ONLY, 0);
    assert_eq!(table.request(READ, 0, 512).0, 0);
    assert_eq!(table.request(WRITE, 0, 512).0, 1);
    assert_eq!(table.range(ZEROES, (0, 1, 0)), 1);
    assert_eq!(table.range(DISCARD, (0, 1, 0)), 1);
    assert_eq!(table.sector(0), [0x5a; 512]);
}

#[test]
fn zeroed_sectors_read_as_zeroes_and_discarded_ones_take_no_room() {
    let mut table = table(false);
    assert_eq!(table.range(ZEROES, (1, 2, 0)), 0);
    assert_eq!(table.range(ZEROES, (4, 1, 1)), 0);
    assert_eq!(
        (table.sector(0), table.sector(3)),
        ([0x5a; 512], [0x5a; 512])
    );
    for sector in [1, 2, 4] {
        assert_eq!(table.sector(sector), [0; 512]);
    }
    let before = table.file().metadata().unwrap().blocks();
    // A file system that cannot is one that says so.
    let status = table.range(DISCARD, (8, 56, 0));
    assert!(matches!(status, 0 | 2));
    let after = table.file().metadata().unwrap();
    assert!(status == 2 || after.blocks() < before);
    assert_eq!(after.len(), SECTORS * SECTOR);
}

#[test]
fn a_file_that_cannot_have_holes_is_zeroed_by_writing_and_discards_nothing() {
    let mut table = table(false);
    let zeroes = std::thread::spawn(move || {
        fail(libc::SYS_fallocate, libc::EOPNOTSUPP);
        assert_eq!(table.range(DISCARD, (0, 1, 0)), 2, "not supported");
        for (sector, sectors, flags) in [(1, 1, 0), (8, 2, 1), (62, 2, 0)] {
            assert_eq!(table.range(ZEROES, (sector, sectors, flags)), 0);
        }
        (0..SECTORS)
            .filter(|&at| table.sector(at) == [0; 512])
            .collect::<Vec<_>>()
    });
    assert_eq!(zeroes.join().unwrap(), [1, 8, 9, 62, 63]);
    // More than is written at once.
    let mut table = table_of_sectors(512);
    let zeroes = std::thread::spawn(move || {
        fail(libc::SYS_fallocate, libc::EOPNOTSUPP);
        assert_eq!(table.range(ZEROES, (3, 300, 0)), 0);
        (0..512)
            .filter(|&at| table.sector(at) == [0; 512])
            .collect::<Vec<u64>>()
    });
    assert!(zeroes.join().unwrap().into_iter().eq(3..303));
}

#[test]
fn a_file_that_fails_to_have_holes_is_an_io_error_and_keeps_its_data() {
    let mut table = table(false);
    let statuses = std::thread::spawn(move || {
        fail(libc::SYS_fallocate, libc::EIO);
        let statuses = [DISCARD, ZEROES].map(|kind| table.range(kind, (0, 1, 0)));
        (statuses, table.sector(0))
    });
    assert_eq!(statuses.join().unwrap(), ([1, 1], [0x5a; 512]));
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    let mut table = table(false);
    for (range, status) in [
        ((63, 2, 0), 1),
        ((u64::MAX, 1, 0), 1),
        ((0, MOST_SECTORS + 1, 0), 1),
        ((0, 1, 2), 2),
    ] {
        assert_eq!(table.range(ZEROES, range), status, "{range:?}");
        assert_eq!(table.range(DISCARD, range), status, "{range:?}");
    }
    assert_eq!(table.range(DISCARD, (0, 1, 1)), 2, "unmap is for zeroes");
    assert_eq!(table.request(DISCARD, 0, 17).0, 1);
    let most = usize::try_from(MOST_RANGES).unwrap();
    assert_eq!(table.request(ZEROES, 0, 16 * (most + 1)).0, 1);
}

#[test]
fn a_disk_says_its_name_and_knows_no_other_requests() {
    let mut table = table(false);
    assert_eq!(table.request(GET_ID, 0, 20), (0, 21));
    assert_eq!(&table.data(20)[..5], b"blk0\0");
    assert_eq!(table.request(GET_ID, 0, 2), (0, 3));
    assert_eq!(table.request(99, 0, 512).0, 2);
}

#[test]
fn a_request_without_room_for_its_status_is_garbage() {
    let mut table = table(false);
    let chain = Chain {
        readable: vec![buffer(HEADER, 16)],
        ..Chain::default()
    };
    let served = table.blk.serve(0, chain, &table.memory);
    assert_eq!(served, Err(Garbage::Request("status")));
}

#[test]
fn a_file_that_becomes_shorter_is_an_io_error_and_does_not_grow_again() {
    let mut table = table(false);
    table.file().set_len(512).unwrap();
    assert_eq!(table.request(READ, 0, 512).0, 0);
    assert_eq!(table.request(READ, 1, 512).0, 1);
    assert_eq!(table.request(READ, 0, 1024).0, 1);
    assert_eq!(table.request(WRITE, 1, 512).0, 1);
    assert_eq!(table.file().metadata().unwrap().len(), 512);
    assert_eq!(table.blk.failures, 3);
}

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    let table = table(false);
    let path = table.dir.path().join("disk");
    for is_readonly in [false, true] {
        let error = Disk::open(&path, access(is_readonly))
            .unwrap_err()
            .to_string();
        assert!(error.contains("is in use by "), "{error}");
    }
    drop(table.blk);
    let _reader = Disk::open(&path, access(true)).unwrap();
    let _second = Disk::open(&path, access(true)).unwrap();
    assert!(matches!(
        Disk::open(&path, access(false)),
        Err(DiskError::Busy { .. })
    ));
}

#[test]
fn what_cannot_be_a_disk_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let said = |path| Disk::open(path, access(false)).unwrap_err().to_string();
    assert!(said(&path).contains("truncate -s 1G"));
    assert!(said(dir.path()).contains("neither a file nor a block device"));
    fs::write(&path, [0; 511]).unwrap();
    assert!(said(&path).contains("no room for a single sector"));
    fs::write(&path, [0; 513]).unwrap();
    assert_eq!(Disk::open(&path, access(false)).unwrap().sectors(), 1);
}

/// A disk past the page cache, where the file system of the tests has a way past it.
fn direct_table() -> Option<Table> {
    let access = Access {
        is_readonly: false,
        is_direct: true,
    };
    match table_of(access) {
        Err(DiskError::Open { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
            println!("SKIPPED (the file system of temporary files has no O_DIRECT)");
            None
        }
        table => Some(table.unwrap()),
    }
}

#[test]
fn a_direct_disk_takes_buffers_that_are_aligned_to_nothing() {
    let Some(mut table) = direct_table() else {
        return;
    };
    let block = table.blk.disk.block().unwrap_or(512);
    let block = usize::try_from(block).unwrap();
    let sectors = (block / 512) as u64;
    for shift in [0, 1, 300] {
        let (head, tail) = (
            buffer(DATA + shift, 100),
            buffer(DATA + 0x8003, 2 * block - 100),
        );
        table.memory.write_slice(&[7; 100], head.address).unwrap();
        let rest = vec![9; tail.len];
        table.memory.write_slice(&rest, tail.address).unwrap();
        let buffers = [head, tail];
        table
            .blk
            .disk
            .write(sectors, &buffers, &table.memory)
            .unwrap();
        let mut stored = vec![0; 2 * block];
        table
            .file()
            .read_exact_at(&mut stored, block as u64)
            .unwrap();
        assert_eq!((stored[99], stored[100], stored[2 * block - 1]), (7, 9, 9));
        let mut read = vec![0; 2 * block];
        let back = [buffer(DATA, block - 1), buffer(DATA + 0x9001, block + 1)];
        table.blk.disk.read(sectors, &back, &table.memory).unwrap();
        let (first, second) = read.split_at_mut(block - 1);
        table.memory.read_slice(first, back[0].address).unwrap();
        table.memory.read_slice(second, back[1].address).unwrap();
        assert!(read == stored, "what is stored is what is read");
    }
}

#[test]
fn a_direct_disk_is_read_written_zeroed_and_cut_as_any_other() {
    let Some(mut table) = direct_table() else {
        return;
    };
    let data = table.data(8192);
    assert_eq!(table.request(WRITE, 8, 8192), (0, 1));
    assert_eq!(table.request(READ, 8, 8192), (0, 8193));
    assert!(table.data(8192) == data);
    assert_eq!(table.range(ZEROES, (16, 8, 0)), 0);
    assert_eq!((table.sector(15), table.sector(16)), ([0; 512], [0; 512]));
    assert_eq!(table.sector(24), [0x5a; 512]);
    assert_eq!(table.request(WRITE, 64, 4096).0, 1);
    table.file().set_len(4096).unwrap();
    assert_eq!(table.request(READ, 8, 4096).0, 1);
    assert_eq!(table.request(WRITE, 8, 4096).0, 1);
}

#[test]
fn blocks_larger_than_sectors_are_told_of_and_parts_of_them_refused() {
    let mut table = table(false);
    assert_eq!(table.blk.kind().features & F_BLK_SIZE, 0);
    table.blk.disk.pretend_aligned(512);
    assert_eq!(
        table.blk.kind().features & F_BLK_SIZE,
        0,
        "no more than a sector"
    );
    table.blk.disk.pretend_aligned(4096);
    let kind = table.blk.kind();
    assert_ne!(kind.features & F_BLK_SIZE, 0);
    let mut block = [0; 4];
    kind.config.read(20, &mut block);
    assert_eq!(block, 4096_u32.to_le_bytes());
    assert_eq!(table.request(READ, 8, 4096).0, 0);
    for (sector, len) in [(1, 4096), (8, 512), (7, 512)] {
        assert_eq!(table.request(READ, sector, len).0, 1);
        assert_eq!(table.request(WRITE, sector, len).0, 1);
    }
}

#[test]
fn requests_are_counted_by_what_they_ask_for_and_whether_they_fail() {
    let mut table = table(false);
    let counters = table.blk.counters();
    table.request(READ, 0, 1024);
    table.request(WRITE, 0, 512);
    table.request(WRITE, 64, 512);
    table.request(FLUSH, 0, 0);
    table.request(99, 0, 512);
    let expected = Counts {
        reads: 1,
        read_bytes: 1024,
        writes: 2,
        written_bytes: 1024,
        flushes: 1,
        others: 1,
        failed: 2,
    };
    assert_eq!(counters.counts(), expected);
}
