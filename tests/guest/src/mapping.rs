//! Memory that hardware sees as well: a BAR, or a page whose physical address is known. All of this program's `unsafe`.
#![expect(unsafe_code, reason = "mmap and volatile accesses")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::{self, NonNull};

/// The size of the largest page that is asked for, and so of what `Mapping::own` gives.
const HUGE_PAGE: usize = 2 << 20;
const PAGE: usize = 4096;

/// A shared mapping, until dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

/// What one access can carry.
pub(crate) trait Word: Copy {}
impl Word for u8 {}
impl Word for u32 {}
impl Word for u64 {}

impl Mapping {
    /// `len` bytes of a file from an offset on; whole pages.
    pub(crate) fn of(path: &Path, offset: u64, len: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        Self::new(len, libc::MAP_SHARED, file.as_raw_fd(), offset)
    }

    /// Memory of our own that is in one piece and stays where it is: a huge page. The kernel is asked for one first.
    pub(crate) fn own() -> io::Result<Self> {
        std::fs::write("/proc/sys/vm/nr_hugepages", "1")?;
        let flags =
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_POPULATE;
        Self::new(HUGE_PAGE, flags, -1, 0)
    }

    fn new(len: usize, flags: i32, file: i32, offset: i64) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, file, offset) };
        let start = NonNull::new(address.cast()).filter(|_| address != libc::MAP_FAILED);
        start
            .map(|start| Self { start, len })
            .ok_or_else(io::Error::last_os_error)
    }

    /// Where its first byte is for hardware: /proc/self/pagemap, Documentation/admin-guide/mm/pagemap.rst of the kernel.
    pub(crate) fn physical(&self) -> io::Result<u64> {
        let mut entry = [0; 8];
        let index = (self.start.as_ptr().addr() / PAGE) as u64;
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, index * 8)?;
        let entry = u64::from_le_bytes(entry);
        let present = entry >> 63 == 1;
        let frame = entry & ((1 << 55) - 1);
        if !present || frame == 0 {
            return Err(io::Error::other(
                "the page is not there, or this is not root",
            ));
        }
        Ok(frame * PAGE as u64)
    }

    /// Reads one word; `offset` is a multiple of its size.
    pub(crate) fn read<T: Word>(&self, offset: usize) -> T {
        let at = self.at::<T>(offset);
        // SAFETY: `at` has checked that the word is inside the mapping and aligned, and every bit pattern is a word.
        unsafe { ptr::read_volatile(at) }
    }

    /// Writes one word; `offset` is a multiple of its size.
    pub(crate) fn write<T: Word>(&self, offset: usize, value: T) {
        let at = self.at::<T>(offset);
        // SAFETY: as in `read`. Nobody has a reference into the mapping, and `&self` is of one thread.
        unsafe { ptr::write_volatile(at, value) }
    }

    fn at<T: Word>(&self, offset: usize) -> *mut T {
        let size = size_of::<T>();
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.len);
        assert!(inside && offset.is_multiple_of(size), "offset {offset:#x}");
        self.start.as_ptr().wrapping_add(offset).cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` as a whole, and nothing refers to it after this.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Waits until a file can be read from, or the time is over.
pub(crate) fn readable(file: &File, limit_ms: i32) -> io::Result<bool> {
    let mut entry = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the pointer is to one pollfd that lives through the call.
    match unsafe { libc::poll(&raw mut entry, 1, limit_ms) } {
        -1 => Err(io::Error::last_os_error()),
        count => Ok(count == 1),
    }
}
