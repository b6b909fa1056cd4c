//! One range of RAM in this process: mapped, and said to the kernel what it is for.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd},
    ptr::{self, NonNull},
};

use devices::mapping::HostMapping;

use super::{Backing, Pages};

/// Alignment of each range in this process, so that guest and host agree on where a 2 MiB page starts.
pub(super) const HUGE_PAGE: usize = 2 << 20;

/// What madvise(2) goes by.
const PAGE: usize = 4096;

/// Nodes that a policy can name: the kernel's limit (MAX_NUMNODES; CONFIG_NODES_SHIFT in arch/x86/Kconfig goes to 10).
const MOST_NODES: usize = 1024;

/// One range of RAM in this process.
pub(super) struct Range {
    pub(super) start: NonNull<u8>,
    pub(super) len: usize,
    /// What it is kept in, where others may map it: that is how they come by it.
    file: Option<File>,
}

// SAFETY: the range is plain mapped memory that belongs to no thread; every access goes through volatile copies or the guest.
unsafe impl Send for Range {}
// SAFETY: as above.
unsafe impl Sync for Range {}

// SAFETY: `Range::map` made the mapping, readable and writable, and only `drop` unmaps it; no Rust reference to it is ever made
// (vm-memory copies by volatile accesses).
unsafe impl HostMapping for Range {
    fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl Range {
    pub(super) fn map(len: usize, backing: Backing) -> io::Result<Self> {
        let file = backing
            .is_shared
            .then(|| shared_file(len, backing.pages))
            .transpose()?;
        let start = match (backing.pages.pool_page(), &file) {
            // The pool's pages are reserved here: who comes too late is told now, and not by a SIGBUS.
            (Some(_), Some(file)) => map_at(ptr::null_mut(), len, libc::MAP_SHARED, Some(file))?,
            (Some(_), None) => map_private(len, pool_flags(backing.pages))?,
            (None, file) => {
                let start = map_aligned(len)?;
                if file.is_some() {
                    let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
                    map_at(start.as_ptr(), len, flags, file.as_ref())?;
                }
                start
            }
        };
        let range = Self { start, len, file };
        range.advise(backing);
        Ok(range)
    }

    /// Gives the pages wholly within these bytes of it back to the host.
    pub(super) fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len);
        let end = end.ok_or(io::ErrorKind::InvalidInput)? / PAGE * PAGE;
        let start = offset.next_multiple_of(PAGE);
        if start >= end {
            return Ok(());
        }
        let advice = match self.file {
            // In the file as well, or the pages stay there.
            Some(_) => libc::MADV_REMOVE,
            None => libc::MADV_DONTNEED,
        };
        // SAFETY: start < end <= len, within the mapping.
        let at = unsafe { self.start.add(start) };
        // SAFETY: the pages are the guest's, who said that it does without what is in them; no Rust reference to them is ever made.
        match unsafe { libc::madvise(at.as_ptr().cast(), end - start, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Advice only: a kernel that cannot follow it loses nothing but time.
    fn advise(&self, backing: Backing) {
        let huge = match backing.pages {
            Pages::TransparentHuge => Some(libc::MADV_HUGEPAGE),
            Pages::Small => Some(libc::MADV_NOHUGEPAGE),
            Pages::Huge2M | Pages::Huge1G => None,
        };
        // What the guest has in memory is no business of a core file.
        for advice in huge.into_iter().chain([libc::MADV_DONTDUMP]) {
            let _ = madvise(self.start, self.len, advice);
        }
        if let Some(node) = backing.node
            && let Err(error) = self.prefer(node)
        {
            log::debug!("guest memory on node {node}: {error}");
        }
    }

    /// Has the kernel take the range's pages from `node` as long as it has any (mbind(2)).
    fn prefer(&self, node: u32) -> io::Result<()> {
        let mut nodes = [0_u64; MOST_NODES / 64];
        let word = usize::try_from(node / 64)
            .ok()
            .and_then(|at| nodes.get_mut(at));
        *word.ok_or(io::ErrorKind::InvalidInput)? |= 1 << (node % 64);
        let (mode, start) = (libc::MPOL_PREFERRED, self.start.as_ptr());
        // The kernel reads one bit less than it is told.
        let bits = MOST_NODES + 1;
        // SAFETY: a policy leaves the contents as they are; the kernel reads the array, which has as many bits.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                start,
                self.len,
                mode,
                nodes.as_ptr(),
                bits,
                0,
            )
        };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        munmap(self.start, self.len);
    }
}

fn pool_flags(pages: Pages) -> i32 {
    match pages {
        Pages::TransparentHuge | Pages::Small => 0,
        Pages::Huge2M => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
        Pages::Huge1G => libc::MAP_HUGETLB | libc::MAP_HUGE_1GB,
    }
}

/// A file without a name for `len` bytes, which nobody who is given it can make shorter or longer under the guest.
fn shared_file(len: usize, pages: Pages) -> io::Result<File> {
    let pool = match pages {
        Pages::TransparentHuge | Pages::Small => 0,
        Pages::Huge2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
        Pages::Huge1G => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | pool;
    // SAFETY: the name is a string with its NUL.
    let descriptor = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and is nobody else's.
    let file = unsafe { File::from_raw_fd(descriptor) };
    file.set_len(len as u64)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: sealing touches no memory.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Private memory at an address that is a multiple of 2 MiB. Kernels before 6.7 place a mapping at any page: take 2 MiB more and cut off
/// what is out of line.
fn map_aligned(len: usize) -> io::Result<NonNull<u8>> {
    let whole = len
        .checked_add(HUGE_PAGE)
        .ok_or(io::ErrorKind::OutOfMemory)?;
    let start = map_private(whole, libc::MAP_NORESERVE)?;
    let skip = start.as_ptr().align_offset(HUGE_PAGE);
    munmap(start, skip);
    // SAFETY: skip < 2 MiB, so skip + len lies within the `whole` bytes just mapped.
    let start = unsafe { start.add(skip) };
    // SAFETY: the same.
    let end = unsafe { start.add(len) };
    munmap(end, whole - skip - len);
    Ok(start)
}

fn map_private(len: usize, flags: i32) -> io::Result<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    map_at(ptr::null_mut(), len, flags, None)
}

/// Maps at `place`: null with any flags but MAP_FIXED, or what was mapped just before and nobody has seen yet.
fn map_at(place: *mut u8, len: usize, flags: i32, file: Option<&File>) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let descriptor = file.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing, and one at `place` what is ours alone.
    let start = unsafe { libc::mmap(place.cast(), len, protection, flags, descriptor, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Unmaps part of what was mapped above, which nothing refers to any more.
fn munmap(start: NonNull<u8>, len: usize) {
    if len > 0 {
        // SAFETY: the callers own the mapping and give it up here.
        unsafe { libc::munmap(start.as_ptr().cast(), len) };
    }
}

pub(super) fn madvise(start: NonNull<u8>, len: usize, advice: i32) -> io::Result<()> {
    // SAFETY: the advices used (huge pages, no dump, populate) leave the contents of a mapping as they are.
    match unsafe { libc::madvise(start.as_ptr().cast(), len, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
