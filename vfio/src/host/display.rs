//! What the host knows of a display that a guest is to have: what firmware left on it, and where its memory was.

use std::{fs::File, io::Read, ops::Range, path::Path};

use devices::pci::Bdf;

use super::{Host, facts::resources, sysfs};

/// `struct boot_params` is a page.
const BOOT_PARAMS_LEN: u64 = 4096;
/// How many BARs a function has at most.
const BARS: usize = 6;

/// A display of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDisplay {
    /// Whether the host booted on it.
    pub is_boot_display: bool,
    /// What the host's kernel was told at its start (`struct boot_params`); empty where that cannot be read.
    pub boot_params: Vec<u8>,
    /// Where its BARs are in the host; empty where there is none.
    pub bars: [Range<u64>; BARS],
}

impl Host {
    /// What is known of a function as a display.
    pub fn display(&self, function: Bdf) -> HostDisplay {
        let dir = self.pci_dir(function);
        let mut boot_params = Vec::new();
        // Documentation/ABI/testing/sysfs-kernel-boot_params. Not there: no display is known, and the guest is told of none.
        let file = File::open(self.roots.sys.join("kernel/boot_params/data"));
        let read = file.and_then(|file| file.take(BOOT_PARAMS_LEN).read_to_end(&mut boot_params));
        if let Err(error) = read {
            log::debug!("what the host booted with cannot be read: {error}");
        }
        HostDisplay {
            is_boot_display: sysfs::text(&dir.join("boot_vga")).as_deref() == Some("1"),
            boot_params,
            bars: bars(&dir),
        }
    }
}

/// Where the BARs are; empty where there is none, or the kernel found no room.
fn bars(dir: &Path) -> [Range<u64>; BARS] {
    let resources = resources(dir);
    std::array::from_fn(|index| {
        let found = resources[index].and_then(|resource| {
            let start = resource.address?;
            Some(start..start.checked_add(resource.size)?)
        });
        found.unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_the_first_six_lines_that_have_an_address() {
        let resource = "0x00000000fd000000 0x00000000fdffffff 0x0000000000042208\n\
             0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
             0x00000000febd0000 0x00000000febd0fff 0x0000000000040200\n\
             nonsense\n0xffffffffffffffff 0xffffffffffffffff 0x0\n\n0x1 0x2 0x3\n";
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("resource"), resource).unwrap();
        let found = bars(dir.path());
        assert_eq!(found[0], 0xfd00_0000..0xfe00_0000);
        assert_eq!(found[2], 0xfebd_0000..0xfebd_1000);
        assert!(found[1..].iter().filter(|range| !range.is_empty()).count() == 1);
        assert_eq!(bars(&dir.path().join("gone")), [const { 0..0 }; 6]);
    }
}
