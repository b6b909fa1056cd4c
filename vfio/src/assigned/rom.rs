//! The expansion ROM (PCI 3.0 §6.2.5.2; what is in one, §6.3): the device's own or one from a file, read once, at the guest's first
//! access. No guest writes to it: a card's flash is programmed through its registers.
//!
//! Trapped and not mapped: a guest reads a ROM once if ever, and vfio-pci offers no mapping of it.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use devices::{
    bus::{Action, BusDevice},
    pci::{
        bar::{BarKind, BarSpec, ROM_INDEX},
        registers::VENDOR_ID,
        space::Region,
    },
};

use super::{failures::Failures, options::Rom};
use crate::{
    Assignable,
    kernel::{HostFunction, RegionIndex, RegionInfo},
};

/// The most that a device may ask for (PCI 3.0 §6.2.5.2).
const LARGEST: u64 = 16 << 20;
/// The least that the register can express: bits 10:0 are not of the address.
const SMALLEST: u64 = 1 << 11;
/// How every image in a ROM begins.
const SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// A file cannot be a ROM.
#[derive(Debug, thiserror::Error)]
pub enum RomFileError {
    /// It cannot be read.
    #[error("rom={}\n  name a file that can be read, or rom=on for the device's own, or rom=off", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nothing in it, or more than a ROM can be.
    #[error(
        "rom={}: an expansion ROM has up to 16 MiB, this file has {what}\n  name a ROM image, or write rom=off",
        path.display()
    )]
    Size {
        /// Its path.
        path: PathBuf,
        /// How many bytes it has, in words.
        what: &'static str,
    },
}

/// What is in the file that is to be a ROM.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, RomFileError> {
    let failed = |source| RomFileError::Read {
        path: path.to_owned(),
        source,
    };
    // One byte more than there may be tells of those that are too long, without reading all of /dev/zero.
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let what = match bytes.len() as u64 {
        0 => "none",
        len if len > LARGEST => "more",
        _ => return Ok(bytes),
    };
    Err(RomFileError::Size {
        path: path.to_owned(),
        what,
    })
}

/// Says so if what is in a file does not begin like a ROM. Not an error: a guest's driver may know what to do with it.
pub(super) fn doubt(path: &Path, bytes: &[u8]) {
    if !bytes.starts_with(&SIGNATURE) {
        log::warn!(
            "rom={}: it does not begin with 55 aa, as expansion ROMs do; the guest gets it all the same",
            path.display()
        );
    }
}

/// The expansion ROM of a function.
pub(super) struct ExpansionRom {
    /// Size of its BAR in bytes; a power of two.
    size: u64,
    host: Arc<dyn HostFunction>,
    region: RegionInfo,
    /// Vendor and device, as configuration space has them.
    ids: [u8; 4],
    /// What is in it, once somebody has asked.
    content: OnceLock<Vec<u8>>,
    failures: Failures,
}

impl ExpansionRom {
    /// The ROM that `wanted` asks for, if there is one. `config` is the function's configuration space.
    pub(super) fn find(
        host: &Arc<dyn HostFunction>,
        function: &Assignable,
        config: &[u8],
        wanted: &Rom,
    ) -> Result<Option<Arc<Self>>, RomFileError> {
        let nothing = RegionInfo::nothing(RegionIndex::ROM);
        let (region, content) = match wanted {
            // Not even asked whether it has one: the kernel would have to read it, and there are cards that hang on that.
            Rom::Off => return Ok(None),
            Rom::File(path) => (nothing, Some(read_file(path)?)),
            Rom::On => (own(&**host, function), None),
        };
        let bytes = content
            .as_ref()
            .map_or(region.size, |bytes| bytes.len() as u64);
        if bytes == 0 {
            return Ok(None);
        }
        let mut ids = [0; 4];
        if let Some(found) = config.get(VENDOR_ID..VENDOR_ID + 4) {
            ids.copy_from_slice(found);
        }
        Ok(Some(Arc::new(Self {
            size: bytes.next_power_of_two().max(SMALLEST),
            host: host.clone(),
            region,
            ids,
            content: content.map_or_else(OnceLock::new, OnceLock::from),
            failures: Failures::default(),
        })))
    }

    /// Its register.
    pub(super) fn spec(&self) -> BarSpec {
        BarSpec {
            index: ROM_INDEX,
            kind: BarKind::Memory32 {
                prefetchable: false,
            },
            size: self.size,
        }
    }

    /// What that register decodes to.
    pub(super) fn placed(self: Arc<Self>) -> Region {
        Region {
            len: self.size,
            device: self,
            direct: Vec::new(),
        }
    }

    /// What is in it, if that is a ROM and can be read.
    pub(super) fn image(&self) -> Option<Vec<u8>> {
        let content = self.content().ok()?;
        content.starts_with(&SIGNATURE).then(|| content.to_vec())
    }

    /// What is in it. Two vCPUs that are the first together both read it, to the same end. A failure is not remembered: the device
    /// may have been asleep.
    fn content(&self) -> io::Result<&[u8]> {
        if let Some(content) = self.content.get() {
            return Ok(content);
        }
        let len = usize::try_from(self.region.size).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut content = vec![0xff; len];
        self.host.read(&self.region, 0, &mut content)?;
        name_device(&mut content, self.ids);
        Ok(self.content.get_or_init(|| content))
    }
}

/// The region of the device's own ROM: of size 0 if it has none, or one that no device can have.
fn own(host: &dyn HostFunction, function: &Assignable) -> RegionInfo {
    let nothing = RegionInfo::nothing(RegionIndex::ROM);
    match host.region(RegionIndex::ROM) {
        Ok(region) if region.size > LARGEST => {
            let size = region.size;
            log::warn!("{function}: no device can have a ROM of {size} bytes: the guest sees none");
            nothing
        }
        Ok(region) => region,
        Err(error) => {
            log::warn!(
                "{function}: whether it has a ROM cannot be told, the guest sees none: {error}"
            );
            nothing
        }
    }
}

/// Where the first image keeps its PCI data structure, if it is an image and has one (PCI 3.0 §6.3.1.1, as `pci_get_rom_size` in
/// Linux's drivers/pci/rom.c finds it).
fn data_structure(rom: &[u8]) -> Option<usize> {
    let pointer: [u8; 2] = *rom.get(0x18..)?.first_chunk()?;
    let at = usize::from(u16::from_le_bytes(pointer));
    let starts = rom.starts_with(&SIGNATURE) && rom.get(at..)?.starts_with(b"PCIR");
    // Up to the code type, all of which is looked at below.
    (starts && rom.len() > at + 0x14).then_some(at)
}

/// Makes a ROM of this vendor's be for this device.
///
/// A ROM names its device, and is not believed by those who compare; ones that serve a family of chips, such as Intel's graphics,
/// name another member of it. A ROM that names the device is left alone to the last byte, its checksum right or wrong.
fn name_device(rom: &mut [u8], ids: [u8; 4]) {
    let Some(at) = data_structure(rom) else {
        return;
    };
    let named = &mut rom[at + 4..at + 8];
    if named == ids || named[..2] != ids[..2] {
        return;
    }
    named.copy_from_slice(&ids);
    // Only PC-compatible code (type 0) has a checksum: all bytes of the image, as many as byte 2 says in units of 512, add up to 0
    // (§6.3.3.1). Byte 6 is the image's own to use, and is what others correct it by, too.
    let len = usize::from(rom[2]) * 512;
    if let (0, Some(image)) = (rom[at + 0x14], rom.get_mut(..len))
        && image.len() > 6
    {
        image[6] = 0;
        image[6] = image
            .iter()
            .fold(0, |rest: u8, byte| rest.wrapping_sub(*byte));
    }
}

impl BusDevice for ExpansionRom {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // What is behind the end of the content reads like erased flash.
        data.fill(0xff);
        match self.content() {
            Ok(content) => {
                let at = usize::try_from(offset).unwrap_or(usize::MAX);
                let found = content.get(at..).unwrap_or_default();
                for (byte, found) in data.iter_mut().zip(found) {
                    *byte = *found;
                }
            }
            Err(error) => {
                if let Some(number) = self.failures.count() {
                    log::debug!("expansion ROM: failed read number {number}: {error}");
                }
            }
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Action {
        Action::None
    }
}

#[cfg(test)]
mod tests;
