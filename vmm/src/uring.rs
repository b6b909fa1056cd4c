//! Many reads and writes of a disk's at once, by io_uring(7): one system call starts all that a guest has asked for since the last.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    thread,
    time::Duration,
};

use devices::{
    mapping::GuestRam,
    virtio::{
        Buffer,
        blk::{MOST_AT_ONCE, Ring, Transfer},
    },
};
use io_uring::{IoUring, opcode, squeue::Entry, types};
use vm_memory::GuestMemoryBackend;

/// readv(2) takes no more parts (IOV_MAX).
const MOST_PARTS: usize = 1024;

/// How long a kernel without memory is left alone: the guest's disk stands still, and a processor is not kept from freeing some.
const A_MOMENT: Duration = Duration::from_millis(1);

/// As the kernel reads a `struct iovec`: address and length.
type Part = [usize; 2];
const _: () = assert!(size_of::<Part>() == size_of::<libc::iovec>());

/// A ring, and the guest memory that it moves data to and from.
pub struct Uring {
    ring: IoUring,
    ram: Arc<dyn GuestRam>,
    /// By tag. The kernel reads them when a transfer starts.
    parts: Vec<Vec<Part>>,
    going_on: usize,
}

impl Uring {
    /// A ring, unless this kernel has none or does not let us.
    pub fn new(ram: Arc<dyn GuestRam>) -> io::Result<Self> {
        Ok(Self {
            ring: IoUring::new(MOST_AT_ONCE.into())?,
            ram,
            parts: (0..MOST_AT_ONCE).map(|_| Vec::new()).collect(),
            going_on: 0,
        })
    }

    /// Writes down where in our memory `buffers` are; where that is written, and how many parts they are.
    fn lay_out(&mut self, tag: u16, buffers: &[Buffer]) -> io::Result<(*const libc::iovec, u32)> {
        let none = || io::Error::from(io::ErrorKind::InvalidInput);
        let parts = self.parts.get_mut(usize::from(tag)).ok_or_else(none)?;
        parts.clear();
        for buffer in buffers {
            let memory = self.ram.memory();
            for slice in memory.get_slices(buffer.address, buffer.len) {
                let slice = slice.map_err(io::Error::other)?;
                let address = slice.ptr_guard_mut().as_ptr().expose_provenance();
                parts.push([address, slice.len()]);
            }
        }
        let count = u32::try_from(parts.len()).map_err(io::Error::other)?;
        match parts.len() {
            1..=MOST_PARTS => Ok((parts.as_ptr().cast(), count)),
            _ => Err(none()),
        }
    }

    fn entry(&mut self, tag: u16, file: &File, at: u64, what: Transfer<'_>) -> io::Result<Entry> {
        let file = types::Fd(file.as_raw_fd());
        Ok(match what {
            Transfer::Flush => opcode::Fsync::new(file)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Transfer::Read(buffers) => {
                let (parts, count) = self.lay_out(tag, buffers)?;
                opcode::Readv::new(file, parts, count).offset(at).build()
            }
            Transfer::Write {
                buffers,
                is_durable,
            } => {
                let (parts, count) = self.lay_out(tag, buffers)?;
                let flags = if is_durable { libc::RWF_DSYNC } else { 0 };
                let write = opcode::Writev::new(file, parts, count).offset(at);
                write.rw_flags(flags).build()
            }
        })
    }
}

impl Ring for Uring {
    fn source(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    fn begin(&mut self, tag: u16, file: &File, at: u64, transfer: Transfer<'_>) -> io::Result<()> {
        let entry = self.entry(tag, file, at, transfer)?.user_data(tag.into());
        // SAFETY: the entry's parts are in `self.parts`, which nobody touches before the tag is free again, and name guest memory, which
        // `self.ram` keeps; `drop` waits for the end of everything before either goes. The file is open by the contract of `begin`.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        self.going_on += 1;
        Ok(())
    }

    fn submit(&mut self) -> io::Result<bool> {
        self.ring.submit()?;
        Ok(!self.ring.submission().is_empty())
    }

    fn ended(&mut self) -> Option<(u16, io::Result<usize>)> {
        let entry = self.ring.completion().next()?;
        self.going_on = self.going_on.saturating_sub(1);
        // Ours, all of them.
        let tag = u16::try_from(entry.user_data()).unwrap_or(u16::MAX);
        let result = usize::try_from(entry.result());
        Some((
            tag,
            result.map_err(|_| io::Error::from_raw_os_error(entry.result().saturating_neg())),
        ))
    }

    fn wait(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What has ended has to be taken first.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                // The kernel has no memory for what was noted, and says nobody when it has again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(A_MOMENT),
                waited => return waited.map(drop),
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.going_on > 0 {
            if self.ended().is_none() && self.wait().is_err() {
                // Memory that a transfer may yet go to must not go.
                std::mem::forget(self.ram.clone());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::FileExt};

    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::tiny_guest::skipped;

    struct TestRam(GuestMemoryMmap);

    impl GuestRam for TestRam {
        fn memory(&self) -> &GuestMemoryMmap {
            &self.0
        }
    }

    fn uring() -> Option<(Uring, Arc<TestRam>)> {
        // Two regions that meet: a buffer may be in both.
        let regions = [(GuestAddress(0), 0x8000), (GuestAddress(0x8000), 0x8000)];
        let ram = Arc::new(TestRam(GuestMemoryMmap::from_ranges(&regions).unwrap()));
        match Uring::new(ram.clone()) {
            Ok(uring) => Some((uring, ram)),
            Err(error) => {
                let number = error.raw_os_error();
                let is_absent = matches!(number, Some(libc::ENOSYS | libc::EPERM));
                assert!(is_absent, "{error}");
                skipped(&format!("io_uring: {error}"));
                None
            }
        }
    }

    fn end(uring: &mut Uring) -> (u16, io::Result<usize>) {
        uring.submit().unwrap();
        loop {
            match uring.ended() {
                Some(ended) => return ended,
                None => uring.wait().unwrap(),
            }
        }
    }

    fn buffer(address: u64, len: usize) -> Buffer {
        let address = GuestAddress(address);
        Buffer { address, len }
    }

    #[test]
    fn what_is_read_and_written_goes_to_its_place_whatever_it_is_cut_into() {
        let Some((mut uring, ram)) = uring() else {
            return;
        };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 8192]).unwrap();
        ram.0
            .write_slice(&[7; 0x200], GuestAddress(0x7f00))
            .unwrap();
        let buffers = [buffer(0x7f00, 0x200), buffer(0x100, 0x200)];
        let write = Transfer::Write {
            buffers: &buffers,
            is_durable: true,
        };
        uring.begin(3, &file, 512, write).unwrap();
        let (tag, result) = end(&mut uring);
        assert_eq!((tag, result.unwrap()), (3, 0x400));
        let mut stored = [0; 0x400];
        file.read_exact_at(&mut stored, 512).unwrap();
        assert_eq!((stored[0x1ff], stored[0x200]), (7, 0));
        let buffers = [buffer(0x4000, 0x800)];
        uring.begin(4, &file, 0, Transfer::Read(&buffers)).unwrap();
        assert_eq!(end(&mut uring).1.unwrap(), 0x800);
        let read: u8 = ram.0.read_obj(GuestAddress(0x4200)).unwrap();
        assert_eq!(read, 7);
        uring.begin(4, &file, 0, Transfer::Flush).unwrap();
        assert_eq!(end(&mut uring).1.unwrap(), 0);
    }

    #[test]
    fn a_file_that_ends_or_cannot_be_written_is_told_of() {
        let Some((mut uring, _ram)) = uring() else {
            return;
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(512).unwrap();
        let buffers = [buffer(0, 1024)];
        let read = Transfer::Read(&buffers);
        uring.begin(0, file.as_file(), 0, read).unwrap();
        assert_eq!(end(&mut uring).1.unwrap(), 512);
        let reader = File::open(file.path()).unwrap();
        let write = Transfer::Write {
            buffers: &buffers,
            is_durable: false,
        };
        uring.begin(0, &reader, 0, write).unwrap();
        let error = end(&mut uring).1.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn as_many_go_on_as_there_are_tags() {
        let Some((mut uring, _ram)) = uring() else {
            return;
        };
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let buffers = [buffer(0, 4096)];
        for tag in 0..MOST_AT_ONCE {
            let read = Transfer::Read(&buffers);
            uring
                .begin(tag, &file, u64::from(tag) * 4096, read)
                .unwrap();
        }
        let mut ended: Vec<u16> = (0..MOST_AT_ONCE).map(|_| end(&mut uring).0).collect();
        ended.sort_unstable();
        assert_eq!(ended, (0..MOST_AT_ONCE).collect::<Vec<_>>());
    }
}
