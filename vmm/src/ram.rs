//! Guest RAM: anonymous private memory, in huge pages where they are to be had, populated by several threads.
//!
//! Zeroing the pages is most of what starting a guest with an assigned device costs: the DMA map pins all of them. So it is done
//! by all processors at once, and begins before the rest of the machine is put together.

use std::{
    io,
    num::NonZeroUsize,
    ptr::{self, NonNull},
    sync::Arc,
    thread::{self, JoinHandle},
};

use arch::ram::RamRange;
use devices::mapping::{GuestRam, HostMapping};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Alignment of each range in this process, so that guest and host agree on where a 2 MiB page starts.
const HUGE_PAGE: usize = 2 << 20;
/// What one thread populates at a time. Large enough that the calls do not count; and small, because the kernel holds the lock of this
/// process's address space meanwhile, and every vCPU and every BAR that is mapped beside it waits for that.
const POPULATE_CHUNK: usize = 2 * HUGE_PAGE;

/// Which pages RAM is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pages {
    /// Ordinary pages, transparently huge where the kernel can.
    #[default]
    TransparentHuge,
    /// Ordinary pages only.
    Small,
    /// From the host's reserved pool of 2 MiB pages.
    Huge2M,
    /// From the host's reserved pool of 1 GiB pages.
    Huge1G,
}

impl Pages {
    /// The pool's page size in bytes, for pages from a pool.
    pub fn pool_page(self) -> Option<u64> {
        match self {
            Self::TransparentHuge | Self::Small => None,
            Self::Huge2M => Some(2 << 20),
            Self::Huge1G => Some(1 << 30),
        }
    }
}

/// RAM cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The pool of huge pages is too small.
    #[error(
        "{needed} huge pages of {page_kib} KiB are needed, the host has {free} free\n  \
         reserve them:  echo {total} > /sys/kernel/mm/hugepages/hugepages-{page_kib}kB/nr_hugepages"
    )]
    NoHugePages {
        /// Pages asked for.
        needed: u64,
        /// Size of one, KiB.
        page_kib: u64,
        /// Pages in the pool that nobody has.
        free: u64,
        /// What the pool has to be.
        total: u64,
    },
    /// The size is no multiple of the pool's pages.
    #[error(
        "a memory range of {len:#x} bytes at {guest:#x} is not made of whole {page} MiB pages\n  \
         choose a --memory that is, or smaller pages: --memory SIZE,hugepages=2M"
    )]
    NotWholePages {
        /// Length in bytes.
        len: u64,
        /// Where the range is in the guest.
        guest: u64,
        /// Page size in MiB.
        page: u64,
    },
    /// The kernel refused the memory.
    #[error(
        "reserving {len} MiB of guest memory\n  give the guest less with --memory, or free memory on the host"
    )]
    Map {
        /// Size asked for, MiB.
        len: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel could not provide the pages.
    #[error(
        "populating guest memory\n  give the guest less with --memory, or free memory on the host"
    )]
    Populate(#[source] io::Error),
    /// vm-memory refused the ranges.
    #[error("laying out guest memory: {0}")]
    Layout(String),
}

/// One range of RAM in this process.
struct Range {
    start: NonNull<u8>,
    len: usize,
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
    fn map(len: usize, pages: Pages) -> io::Result<Self> {
        let pool = match pages {
            Pages::TransparentHuge | Pages::Small => 0,
            Pages::Huge2M => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
            Pages::Huge1G => libc::MAP_HUGETLB | libc::MAP_HUGE_1GB,
        };
        if pool != 0 {
            // The pool's pages are reserved here: who comes too late is told now, and not by a SIGBUS.
            let start = mmap(len, pool)?;
            return Ok(Self { start, len }.undumped());
        }
        // Kernels before 6.7 place a mapping at any page: take 2 MiB more and cut off what is out of line.
        let whole = len
            .checked_add(HUGE_PAGE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let start = mmap(whole, libc::MAP_NORESERVE)?;
        let skip = start.as_ptr().align_offset(HUGE_PAGE);
        munmap(start, skip);
        // SAFETY: skip < 2 MiB, so skip + len lies within the `whole` bytes just mapped.
        let start = unsafe { start.add(skip) };
        // SAFETY: the same.
        let end = unsafe { start.add(len) };
        munmap(end, whole - skip - len);
        let range = Self { start, len };
        let advice = if pages == Pages::Small {
            libc::MADV_NOHUGEPAGE
        } else {
            libc::MADV_HUGEPAGE
        };
        // Advice only: a kernel without THP says EINVAL and nothing is lost.
        let _ = madvise(range.start, range.len, advice);
        Ok(range.undumped())
    }

    /// What the guest has in memory is no business of a core file.
    fn undumped(self) -> Self {
        let _ = madvise(self.start, self.len, libc::MADV_DONTDUMP);
        self
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        munmap(self.start, self.len);
    }
}

fn mmap(len: usize, flags: i32) -> io::Result<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces nothing.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Unmaps part of what `mmap` above returned, which nothing refers to any more.
fn munmap(start: NonNull<u8>, len: usize) {
    if len > 0 {
        // SAFETY: the callers own the mapping and give it up here.
        unsafe { libc::munmap(start.as_ptr().cast(), len) };
    }
}

fn madvise(start: NonNull<u8>, len: usize, advice: i32) -> io::Result<()> {
    // SAFETY: the advices used (huge pages, no dump, populate) leave the contents of a mapping as they are.
    match unsafe { libc::madvise(start.as_ptr().cast(), len, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The guest's RAM.
pub struct Ram {
    memory: GuestMemoryMmap,
    ranges: Vec<(u64, Arc<Range>)>,
}

impl Ram {
    /// Reserves address space for every range of `plan`. Nothing is populated.
    pub fn reserve(plan: &[RamRange], pages: Pages) -> Result<Self, RamError> {
        if let Some(page) = pages.pool_page() {
            check_pool(plan, page)?;
        }
        let ranges: Vec<_> = plan
            .iter()
            .map(|range| {
                let fail = |source| RamError::Map {
                    len: range.len >> 20,
                    source,
                };
                let len = usize::try_from(range.len)
                    .map_err(|_| fail(io::ErrorKind::OutOfMemory.into()))?;
                Ok((range.guest, Arc::new(Range::map(len, pages).map_err(fail)?)))
            })
            .collect::<Result<_, RamError>>()?;
        let regions = ranges
            .iter()
            .map(|(guest, range)| region(*guest, range))
            .collect::<Result<_, _>>()?;
        let memory = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| RamError::Layout(error.to_string()))?;
        Ok(Self { memory, ranges })
    }

    /// The guest's view of it, for loading and for virtual devices. A clone must not outlive the `Ram`.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The same for a device that reads and writes it, and which may outlive the `Ram`.
    pub fn shared(&self) -> Arc<dyn GuestRam> {
        Arc::new(SharedRam {
            memory: self.memory.clone(),
            _ranges: self.ranges.iter().map(|(_, range)| range.clone()).collect(),
        })
    }

    /// Each range: where it is in the guest, and what backs it.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, Arc<dyn HostMapping>)> {
        self.ranges
            .iter()
            .map(|(guest, range)| (*guest, range.clone() as Arc<dyn HostMapping>))
    }

    /// Size in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.ranges.iter().map(|(_, range)| range.len as u64).sum()
    }

    /// Begins to populate all of it, on as many threads as there are processors.
    pub fn populate(&self) -> Populating {
        let chunks: Vec<_> = self
            .ranges
            .iter()
            .flat_map(|(_, range)| chunks(range))
            .collect();
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let queue = Arc::new((std::sync::atomic::AtomicUsize::new(0), chunks));
        let workers = (0..threads)
            .map(|n| {
                let queue = queue.clone();
                thread::Builder::new()
                    .name(format!("populate{n}"))
                    .spawn(move || {
                        loop {
                            let next = queue.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            let Some((range, offset, len)) = queue.1.get(next) else {
                                return Ok(());
                            };
                            populate_chunk(range, *offset, *len)?;
                        }
                    })
            })
            .collect();
        Populating { workers }
    }
}

fn chunks(range: &Arc<Range>) -> impl Iterator<Item = (Arc<Range>, usize, usize)> + use<'_> {
    (0..range.len).step_by(POPULATE_CHUNK).map(|offset| {
        (
            range.clone(),
            offset,
            POPULATE_CHUNK.min(range.len - offset),
        )
    })
}

fn populate_chunk(range: &Range, offset: usize, len: usize) -> io::Result<()> {
    // SAFETY: `chunks` makes offset + len at most range.len.
    let start = unsafe { range.start.add(offset) };
    match madvise(start, len, libc::MADV_POPULATE_WRITE) {
        // Linux before 5.14 has no MADV_POPULATE_WRITE; the DMA map then populates by itself, slower.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

/// The guest's view of RAM, with what it is a view of.
struct SharedRam {
    memory: GuestMemoryMmap,
    _ranges: Vec<Arc<Range>>,
}

impl GuestRam for SharedRam {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}

/// RAM that is being populated.
#[must_use]
pub struct Populating {
    workers: Vec<io::Result<JoinHandle<io::Result<()>>>>,
}

impl Populating {
    /// Waits until all of it is there.
    pub fn wait(self) -> Result<(), RamError> {
        for worker in self.workers {
            let ended = worker.map_err(RamError::Populate)?.join();
            ended
                .map_err(|_| RamError::Populate(io::Error::other("a thread died")))?
                .map_err(RamError::Populate)?;
        }
        Ok(())
    }
}

fn region(guest: u64, range: &Range) -> Result<GuestRegionMmap, RamError> {
    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: the range is mapped with this protection, and `Ram` keeps it beside the view made of it.
    let raw = unsafe { MmapRegion::build_raw(range.start.as_ptr(), range.len, protection, flags) };
    let mapping = raw.map_err(|error| RamError::Layout(error.to_string()))?;
    GuestRegionMmap::new(mapping, GuestAddress(guest))
        .ok_or_else(|| RamError::Layout(format!("{guest:#x} + {:#x} overflows", range.len)))
}

/// Looks at the pool first, so that a missing huge page is said with what to do about it.
fn check_pool(plan: &[RamRange], page: u64) -> Result<(), RamError> {
    if let Some(range) = plan.iter().find(|range| range.len % page != 0) {
        return Err(RamError::NotWholePages {
            len: range.len,
            guest: range.guest,
            page: page >> 20,
        });
    }
    let needed = plan.iter().map(|range| range.len / page).sum();
    let page_kib = page >> 10;
    let pool = |file: &str| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{page_kib}kB/{file}");
        std::fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
    };
    // Free ones can be promised to others already.
    let promised = pool("resv_hugepages").unwrap_or(0);
    let free = pool("free_hugepages").unwrap_or(0).saturating_sub(promised);
    if free < needed {
        let total = pool("nr_hugepages").unwrap_or(0) + needed - free;
        return Err(RamError::NoHugePages {
            needed,
            page_kib,
            free,
            total,
        });
    }
    Ok(())
}

mod piece;
#[cfg(test)]
mod tests;
