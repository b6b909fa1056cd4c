//! A part of a region in this process's address space.
#![expect(unsafe_code, reason = "mmap")]

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, raw::c_int},
    ptr,
    sync::Arc,
};

use devices::mapping::HostMapping;

use super::region::{Area, RegionInfo};

/// Above this alignment no larger page exists.
const LARGEST_PAGE: u64 = 1 << 30;

/// A part of a region that is mapped, until dropped.
///
/// Nobody in this process reads or writes it: with memory decoding off, or the device asleep, that would be a SIGBUS.
#[derive(Debug)]
pub struct RegionMapping {
    address: usize,
    len: usize,
    read_only: bool,
}

impl RegionMapping {
    /// Maps `area` of the region, as long as the kernel lists it, rounded up to whole pages.
    pub(super) fn new(file: &File, region: &RegionInfo, area: Area) -> io::Result<Self> {
        let len = whole_pages(area.len)?;
        let file_offset = region.file_offset.checked_add(area.offset);
        let file_offset = file_offset
            .and_then(|offset| i64::try_from(offset).ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        let reserved = Reservation::new(len, alignment(region.size), area.offset)?;
        let protection = match region.writable {
            true => libc::PROT_READ | libc::PROT_WRITE,
            false => libc::PROT_READ,
        };
        let at = ptr::without_provenance_mut(reserved.wanted);
        // SAFETY: replaces only pages of `reserved`, which is ours and which nobody refers to.
        let address = unsafe {
            libc::mmap(
                at,
                len,
                protection,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.as_raw_fd(),
                file_offset,
            )
        };
        let error = io::Error::last_os_error();
        // Also when it failed: the kernel may have taken the reserved pages away before it asked the driver, and what another
        // thread has put into that hole since must not be unmapped with the rest. What may be left there is address space only.
        reserved.keep_only(len);
        if address == libc::MAP_FAILED {
            return Err(error);
        }
        Ok(Self {
            address: address.addr(),
            len,
            read_only: !region.writable,
        })
    }
}

impl Drop for RegionMapping {
    fn drop(&mut self) {
        unmap(self.address, self.len);
    }
}

// SAFETY: the range is mapped by `new`, page-aligned as mmap is, and unmapped by `drop` only; it is device memory that no Rust
// reference points to.
unsafe impl HostMapping for RegionMapping {
    fn address(&self) -> usize {
        self.address
    }

    fn len(&self) -> usize {
        self.len
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }
}

/// Some pages of a mapping, which they keep alive.
struct Part {
    whole: Arc<dyn HostMapping>,
    offset: usize,
    len: usize,
}

// SAFETY: `part` checked that the range is whole pages inside `whole`, which keeps its own promise and lives as long as this.
unsafe impl HostMapping for Part {
    fn address(&self) -> usize {
        self.whole.address() + self.offset
    }

    fn len(&self) -> usize {
        self.len
    }

    fn is_read_only(&self) -> bool {
        self.whole.is_read_only()
    }
}

/// The pages of `area` (in bytes from the start of `whole`); `None` if they are not whole pages of it.
pub(crate) fn part(whole: &Arc<dyn HostMapping>, area: Area) -> Option<Arc<dyn HostMapping>> {
    let offset = usize::try_from(area.offset).ok()?;
    let len = usize::try_from(area.len).ok()?;
    let page = usize::try_from(page_bytes()).ok()?;
    let inside = offset.checked_add(len)? <= whole.len();
    let whole_pages = offset.is_multiple_of(page) && len.is_multiple_of(page) && len > 0;
    (inside && whole_pages).then(|| {
        let whole = whole.clone();
        Arc::new(Part { whole, offset, len }) as _
    })
}

/// Address space without access, kept so that a mapping can be put at the address that suits it.
struct Reservation {
    start: usize,
    len: usize,
    wanted: usize,
}

impl Reservation {
    /// Room for `len` bytes at an address that is `offset` past a multiple of `alignment`: then the kernel can use its largest
    /// pages for the mapping, and a BAR of gigabytes costs no time.
    fn new(len: usize, alignment: usize, offset: u64) -> io::Result<Self> {
        let total = len
            .checked_add(alignment)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let flags: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes; replaces nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), total, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.addr();
        let phase = usize::try_from(offset).unwrap_or(0) & (alignment - 1);
        let gap = phase.wrapping_sub(start) & (alignment - 1);
        Ok(Self {
            start,
            len: total,
            wanted: start + gap,
        })
    }

    /// Gives back all but the `len` bytes at the address wanted, which are somebody else's now.
    fn keep_only(self, len: usize) {
        let this = std::mem::ManuallyDrop::new(self);
        unmap(this.start, this.wanted - this.start);
        let end = this.wanted + len;
        unmap(end, this.start + this.len - end);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        unmap(self.start, self.len);
    }
}

/// Unmaps a range that this module mapped and nobody uses any more.
fn unmap(address: usize, len: usize) {
    if len > 0 {
        // SAFETY: both callers own the range, and give it up with this call.
        unsafe { libc::munmap(ptr::without_provenance_mut(address), len) };
    }
}

/// Natural alignment of a BAR of `size` bytes, at least a page and no more than the largest.
fn alignment(size: u64) -> usize {
    let size = size.clamp(page_bytes(), LARGEST_PAGE).next_power_of_two();
    usize::try_from(size).unwrap_or(4096)
}

fn whole_pages(len: u64) -> io::Result<usize> {
    let len = len.checked_next_multiple_of(page_bytes());
    let len = len
        .filter(|&len| len > 0)
        .and_then(|len| usize::try_from(len).ok());
    len.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Size of a page of this host, in bytes.
pub(crate) fn page_bytes() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::{super::region::RegionIndex, *};

    fn region(size: u64, file_offset: u64) -> RegionInfo {
        RegionInfo {
            index: RegionIndex(0),
            size,
            readable: true,
            writable: true,
            msix_mappable: false,
            kind: None,
            mappable: vec![],
            file_offset,
        }
    }

    #[test]
    fn a_mapping_is_congruent_to_its_place_in_the_region() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x100_0000).unwrap();
        let area = Area {
            offset: 0x3000,
            len: 0x2000,
        };
        let mapping = RegionMapping::new(&file, &region(0x80_0000, 0x1000), area).unwrap();
        assert_eq!(mapping.address() % 0x80_0000, 0x3000);
        assert_eq!(mapping.len(), 0x2000);
    }

    #[test]
    fn a_part_smaller_than_a_page_is_mapped_as_a_page() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x1000).unwrap();
        let area = Area {
            offset: 0,
            len: 256,
        };
        let mapping = RegionMapping::new(&file, &region(256, 0), area).unwrap();
        assert_eq!(mapping.len(), 0x1000);
    }

    #[test]
    fn a_part_is_whole_pages_of_its_mapping() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x4000).unwrap();
        let area = |offset, len| Area { offset, len };
        let whole = RegionMapping::new(&file, &region(0x4000, 0), area(0, 0x4000)).unwrap();
        let whole: Arc<dyn HostMapping> = Arc::new(whole);
        let inside = part(&whole, area(0x1000, 0x2000)).unwrap();
        assert_eq!(inside.address(), whole.address() + 0x1000);
        assert_eq!(inside.len(), 0x2000);
        for (offset, len) in [
            (0x3000, 0x2000),
            (0x800, 0x1000),
            (0, 0x800),
            (0, 0),
            (u64::MAX, 0x1000),
        ] {
            assert!(part(&whole, area(offset, len)).is_none());
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let area = |offset, len| Area { offset, len };
        assert!(RegionMapping::new(&file, &region(0x1000, 0), area(0, 0)).is_err());
        assert!(RegionMapping::new(&file, &region(0x1000, 0), area(0, u64::MAX)).is_err());
        assert!(RegionMapping::new(&file, &region(0x1000, 0), area(u64::MAX, 4096)).is_err());
        assert!(RegionMapping::new(&file, &region(0x1000, u64::MAX), area(1, 4096)).is_err());
    }
}
