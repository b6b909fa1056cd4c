//! Guest RAM: anonymous private memory, or a file without a name where others are to map it; in huge pages where they are to be had,
//! populated by several threads.
//!
//! Zeroing the pages is most of what starting a guest with an assigned device costs: the DMA map pins all of them. So it is done
//! by all processors at once, and begins before the rest of the machine is put together.

mod piece;
mod populate;
mod range;
#[cfg(test)]
mod tests;

pub use self::populate::Populating;

use std::{io, sync::Arc};

use arch::ram::RamRange;
use devices::mapping::{Discard, GuestRam, HostMapping};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use self::range::Range;

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

/// What RAM is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backing {
    /// Which pages.
    pub pages: Pages,
    /// Whether it is in a file, which another process could map.
    pub is_shared: bool,
    /// The host's memory node that it should be on; the kernel's choice if there is none.
    pub node: Option<u32>,
}

impl From<Pages> for Backing {
    fn from(pages: Pages) -> Self {
        Self {
            pages,
            ..Self::default()
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

/// The guest's RAM.
pub struct Ram {
    memory: GuestMemoryMmap,
    ranges: Vec<(u64, Arc<Range>)>,
}

impl Ram {
    /// Reserves address space for every range of `plan`. Nothing is populated.
    pub fn reserve(plan: &[RamRange], backing: impl Into<Backing>) -> Result<Self, RamError> {
        let backing = backing.into();
        check(plan, backing.pages)?;
        let ranges: Vec<_> = plan
            .iter()
            .map(|range| {
                let fail = |source| RamError::Map {
                    len: range.len >> 20,
                    source,
                };
                let len = usize::try_from(range.len)
                    .map_err(|_| fail(io::ErrorKind::OutOfMemory.into()))?;
                let mapped = Range::map(len, backing).map_err(fail)?;
                Ok((range.guest, Arc::new(mapped)))
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
        Arc::new(self.share())
    }

    /// The same for one that gives pages of it back.
    pub fn discard(&self) -> Arc<dyn Discard> {
        Arc::new(self.share())
    }

    fn share(&self) -> SharedRam {
        SharedRam {
            memory: self.memory.clone(),
            ranges: self.ranges.clone(),
        }
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
}

/// The guest's view of RAM, with what it is a view of.
struct SharedRam {
    memory: GuestMemoryMmap,
    ranges: Vec<(u64, Arc<Range>)>,
}

impl GuestRam for SharedRam {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}

impl Discard for SharedRam {
    fn discard(&self, at: GuestAddress, len: u64) -> io::Result<()> {
        let none = || io::Error::from(io::ErrorKind::InvalidInput);
        let within = |(guest, range): &&(u64, Arc<Range>)| {
            let offset = at.0.checked_sub(*guest);
            offset.is_some_and(|offset| offset < range.len as u64)
        };
        let (guest, range) = self.ranges.iter().find(within).ok_or_else(none)?;
        let offset = usize::try_from(at.0 - guest).map_err(io::Error::other)?;
        range.discard(offset, usize::try_from(len).map_err(io::Error::other)?)
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

/// Whether the host has what `plan` takes of a pool of huge pages. Looked at first, so that a missing page is said with what to do about
/// it.
pub fn check(plan: &[RamRange], pages: Pages) -> Result<(), RamError> {
    pages
        .pool_page()
        .map_or(Ok(()), |page| check_pool(plan, page))
}

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
