//! What PCI devices are called: by the system's `pci.ids`, if it has that, and otherwise by a few names of our own.
//!
//! The file is 1.4 MB of text and wanted for a dozen lines, so it is not made into anything: one pass over it picks those.

mod builtin;

use std::{collections::BTreeMap, fs, path::Path};

pub use builtin::class;

/// Where distributions have it: Debian and others; Fedora, openSUSE and Arch; self-made.
const PLACES: [&str; 3] = [
    "/usr/share/misc/pci.ids",
    "/usr/share/hwdata/pci.ids",
    "/usr/share/pci.ids",
];

/// Names of some vendors and devices.
#[derive(Debug, Default)]
pub struct Names {
    vendors: BTreeMap<u16, String>,
    devices: BTreeMap<(u16, u16), String>,
}

impl Names {
    /// The names of `devices`, which are vendor and device IDs.
    pub fn of_system(devices: impl Iterator<Item = (u16, u16)>) -> Self {
        let mut files = PLACES
            .iter()
            .filter_map(|place| fs::read(Path::new(place)).ok());
        // A name in Latin-1 is no reason to have none.
        let text = files.next().unwrap_or_default();
        Self::in_text(&String::from_utf8_lossy(&text), devices)
    }

    /// The same from the text of a file like that (its format is described at its beginning).
    pub(crate) fn in_text(text: &str, devices: impl Iterator<Item = (u16, u16)>) -> Self {
        let mut names = Self::default();
        for (vendor, device) in devices {
            names.vendors.entry(vendor).or_default();
            names.devices.entry((vendor, device)).or_default();
        }
        names.fill(text);
        for (vendor, name) in &mut names.vendors {
            if name.is_empty() {
                builtin::vendor(*vendor)
                    .unwrap_or_default()
                    .clone_into(name);
            }
        }
        names
    }

    fn fill(&mut self, text: &str) {
        let mut vendor = None;
        for line in text.split('\n') {
            match line.as_bytes() {
                // The lists of classes and the like come last.
                [b'C', b' ', ..] => return,
                [b'\t', b'\t', ..] | [b'#', ..] | [] => {}
                [b'\t', ..] => {
                    let found = vendor.zip(entry(&line[1..]));
                    let Some((vendor, (device, name))) = found else {
                        continue;
                    };
                    if let Some(wanted) = self.devices.get_mut(&(vendor, device)) {
                        name.clone_into(wanted);
                    }
                }
                _ => {
                    let found = entry(line);
                    vendor = found
                        .map(|(id, _)| id)
                        .filter(|id| self.vendors.contains_key(id));
                    if let Some((id, name)) = found
                        && let Some(wanted) = self.vendors.get_mut(&id)
                    {
                        name.clone_into(wanted);
                    }
                }
            }
        }
    }

    /// What the vendor is called.
    pub fn vendor(&self, vendor: u16) -> Option<&str> {
        self.vendors
            .get(&vendor)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    /// What the device is called, without its vendor.
    pub fn device(&self, vendor: u16, device: u16) -> Option<&str> {
        let name = self.devices.get(&(vendor, device)).map(String::as_str);
        name.filter(|name| !name.is_empty())
    }

    /// Vendor and device, by name as far as known, and otherwise by number.
    pub fn full(&self, vendor: u16, device: u16) -> String {
        match (self.vendor(vendor), self.device(vendor, device)) {
            (Some(maker), Some(name)) => format!("{maker} {name}"),
            (Some(maker), None) => format!("{maker} device {device:04x}"),
            (None, _) => format!("{vendor:04x}:{device:04x}"),
        }
    }
}

/// `8086  Intel Corporation`
fn entry(line: &str) -> Option<(u16, &str)> {
    let (id, name) = line.split_once("  ")?;
    Some((u16::from_str_radix(id, 16).ok()?, name.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# a comment\n\n1022  Advanced Micro Devices\n\t10ca  Not this one\n\
        8086  Intel Corporation\n\t10c9  82576 Gigabit\n\t\t8086 a03c  A board\n\t10ca  82576 Virtual Function\n\
        ffff  Illegal\nC 01  Mass storage\n\t06  SATA\n10ca  Trap\n";

    fn names(text: &str) -> Names {
        Names::in_text(text, [(0x8086, 0x10ca), (0x8086, 0xbeef)].into_iter())
    }

    #[test]
    fn the_devices_asked_for_are_found_below_their_vendor() {
        let names = names(TEXT);
        assert_eq!(
            names.full(0x8086, 0x10ca),
            "Intel Corporation 82576 Virtual Function"
        );
        assert_eq!(names.full(0x8086, 0xbeef), "Intel Corporation device beef");
        assert_eq!(names.device(0x8086, 0x10c9), None);
        assert_eq!(names.full(0x1234, 0x5678), "1234:5678");
    }

    #[test]
    fn without_the_file_there_are_names_of_vendors() {
        assert_eq!(names("").full(0x8086, 0x10ca), "Intel device 10ca");
    }

    #[test]
    fn a_file_of_garbage_is_no_file() {
        for text in [
            "\t\n\t\t\n \n\u{fffd}",
            "8086\n\t10ca",
            "8086 x\n",
            "\t10ca  x\n",
        ] {
            assert_eq!(
                names(text).full(0x8086, 0x10ca),
                "Intel device 10ca",
                "{text}"
            );
        }
    }
}
