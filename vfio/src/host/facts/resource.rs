//! The attribute `resource`: first and last address and flags, a line for each BAR, the ROM, and more that is not a function's own
//! (Documentation/PCI/sysfs-pci.rst; the flags are those of Linux's `include/linux/ioport.h`).

use std::path::Path;

use devices::pci::bar::{BarKind, REGISTERS};

use super::super::sysfs;

const PORTS: u64 = 0x100;
const MEMORY: u64 = 0x200;
const PREFETCHABLE: u64 = 0x2000;
const MEMORY_64: u64 = 0x10_0000;
const UNSET: u64 = 0x2000_0000;

/// Where a register of a function's decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) struct Resource {
    /// Its first address; none where the kernel found no room for it.
    pub(in crate::host) address: Option<u64>,
    /// In bytes (or ports), at least 1.
    pub(in crate::host) size: u64,
    flags: u64,
}

impl Resource {
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_whitespace();
        let mut number = || u64::from_str_radix(numbers.next()?.strip_prefix("0x")?, 16).ok();
        let (first, last, flags) = (number()?, number()?, number()?);
        let size = last.checked_sub(first)?.checked_add(1)?;
        let used = flags & (PORTS | MEMORY) != 0;
        used.then_some(Self {
            address: (first != 0 && flags & UNSET == 0).then_some(first),
            size,
            flags,
        })
    }

    /// Which address space it is in.
    pub(super) fn kind(&self) -> BarKind {
        let prefetchable = self.flags & PREFETCHABLE != 0;
        if self.flags & MEMORY == 0 {
            BarKind::Io
        } else if self.flags & MEMORY_64 != 0 {
            BarKind::Memory64 { prefetchable }
        } else {
            BarKind::Memory32 { prefetchable }
        }
    }
}

/// What the function in `dir` decodes: six BARs and the ROM.
pub(in crate::host) fn resources(dir: &Path) -> [Option<Resource>; REGISTERS] {
    let text = sysfs::text(&dir.join("resource")).unwrap_or_default();
    let mut lines = text.lines();
    std::array::from_fn(|_| lines.next().and_then(Resource::parse))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_where_how_large_and_of_what_kind() {
        let bar = Resource::parse("0x00000000fd000000 0x00000000fdffffff 0x0000000000042208");
        let bar = bar.unwrap();
        assert_eq!((bar.address, bar.size), (Some(0xfd00_0000), 0x100_0000));
        let kind = |line| Resource::parse(line).unwrap().kind();
        let prefetchable = true;
        assert_eq!(bar.kind(), BarKind::Memory32 { prefetchable });
        assert_eq!(kind("0xc000 0xc01f 0x40101"), BarKind::Io);
        assert_eq!(
            kind("0x4000000000 0x47ffffffff 0x14220c"),
            BarKind::Memory64 { prefetchable }
        );
    }

    #[test]
    fn what_the_kernel_found_no_room_for_has_a_size_and_no_address() {
        let bar = Resource::parse("0x0 0xfffff 0x20040200").unwrap();
        assert_eq!((bar.address, bar.size), (None, 0x10_0000));
    }

    #[test]
    fn what_is_no_resource_is_none() {
        for line in [
            "",
            "nonsense",
            "0x0 0x0 0x0",
            "0xffffffffffffffff 0x0 0x200",
            "0x0 0xffffffffffffffff 0x200",
            "0x1000 0x1fff",
        ] {
            assert_eq!(Resource::parse(line), None, "{line}");
        }
    }
}
