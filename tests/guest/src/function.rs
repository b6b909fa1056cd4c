//! A PCI function as sysfs shows it: configuration space, BARs, and what /proc/interrupts counts.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::mapping::Mapping;

/// The command register; PCI Local Bus 3.0, 6.2.2.
const COMMAND: u64 = 4;
pub(crate) const MEMORY_DECODE: u16 = 1 << 1;
pub(crate) const BUS_MASTER: u16 = 1 << 2;
pub(crate) const INTX_DISABLE: u16 = 1 << 10;
/// The first capability's offset.
const CAPABILITIES: u64 = 0x34;
/// The capability of MSI.
const MSI: u8 = 5;
/// More capabilities than this do not fit into configuration space: a list that goes on is a loop.
const MOST_CAPABILITIES: usize = 48;

/// A function.
#[derive(Debug)]
pub(crate) struct Function {
    address: String,
    folder: PathBuf,
    config: File,
}

impl Function {
    /// The function at this address of bus 0: `8`, `08.0`, or a whole `0000:00:08.0`.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let address = full(name);
        let folder = PathBuf::from("/sys/bus/pci/devices").join(&address);
        let path = folder.join("config");
        let config = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self {
            address,
            folder,
            config,
        })
    }

    /// Its address, as the bus's files in sysfs take it.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A file of its folder in sysfs.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A whole memory BAR.
    pub(crate) fn bar(&self, index: usize) -> io::Result<Mapping> {
        let path = self.file(&format!("resource{index}"));
        let len = usize::try_from(fs::metadata(&path)?.len()).unwrap_or(0);
        Mapping::of(&path, 0, len)
    }

    /// Reads configuration space, in one access where it is 1, 2 or 4 bytes, aligned.
    pub(crate) fn read<const N: usize>(&self, offset: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.config.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Writes configuration space, in one access where it is 1, 2 or 4 bytes, aligned.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.config.write_all_at(bytes, offset)
    }

    /// How large its configuration space is here: 256 or 4096 bytes.
    pub(crate) fn config_len(&self) -> io::Result<u64> {
        Ok(fs::metadata(self.file("config"))?.len())
    }

    /// Sets and clears bits of the command register.
    pub(crate) fn command(&self, set: u16, clear: u16) -> io::Result<()> {
        let now = u16::from_le_bytes(self.read(COMMAND)?);
        self.write(COMMAND, &(now & !clear | set).to_le_bytes())
    }

    /// Where its MSI capability is.
    pub(crate) fn msi(&self) -> io::Result<u64> {
        let mut at = u64::from(self.read::<1>(CAPABILITIES)?[0] & !3);
        for _ in 0..MOST_CAPABILITIES {
            let [id, next] = self.read(at)?;
            match (at, id) {
                (0, _) => break,
                (_, MSI) => return Ok(at),
                _ => at = u64::from(next & !3),
            }
        }
        Err(io::Error::other("no MSI capability"))
    }

    /// The number of its interrupt line, as /proc/interrupts has it.
    pub(crate) fn irq(&self) -> io::Result<String> {
        Ok(fs::read_to_string(self.file("irq"))?.trim().to_owned())
    }
}

fn full(name: &str) -> String {
    let (slot, function) = name.split_once('.').unwrap_or((name, "0"));
    if name.contains(':') {
        name.to_owned()
    } else {
        format!("0000:00:{slot:0>2}.{function}")
    }
}

/// What all processors have counted in a line of /proc/interrupts.
pub(crate) fn counted(line: &str) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/interrupts")?;
    Ok(sum(&text, line))
}

fn sum(text: &str, line: &str) -> u64 {
    let counts = text.lines().find_map(|text| {
        let (name, counts) = text.trim().split_once(':')?;
        (name == line).then_some(counts)
    });
    let words = counts.unwrap_or_default().split_whitespace();
    words.map_while(|word| word.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_the_function_0_of_it_on_bus_0() {
        assert_eq!(full("8"), "0000:00:08.0");
        assert_eq!(full("1f.2"), "0000:00:1f.2");
        assert_eq!(full("0000:03:10.1"), "0000:03:10.1");
    }

    #[test]
    fn the_counts_of_all_processors_are_added() {
        let text = "      CPU0  CPU1\n 11:   5   7  IO-APIC 11-fasteoi  uio\nPIN:   1  2  Posted\n";
        assert_eq!(sum(text, "11"), 12);
        assert_eq!(sum(text, "PIN"), 3);
        assert_eq!(sum(text, "NMI"), 0);
    }
}
