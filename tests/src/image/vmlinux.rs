//! The ELF kernel within a bzImage, found by the setup header (Documentation/arch/x86/boot.rst of the kernel: setup_sects,
//! payload_offset, payload_length) and unpacked by the tree's tools.

use std::fs::{self, File};
use std::path::Path;

use super::{Tree, succeed};
use crate::error::{Doing, Error, Result};

const SETUP_SECTS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: usize = 512;
/// What the kernel's build appends to the payload for its own decompressor: the size of what is in it.
const APPENDED_BYTES: usize = 4;
/// What a payload starts with, and the program that unpacks it.
const PACKERS: [(&[u8], &str); 2] = [
    (b"\x28\xb5\x2f\xfd", "/usr/bin/zstd"),
    (b"\xfd7zXZ\0", "/usr/bin/xz"),
];

/// Writes the ELF file that is in the bzImage `kernel` to `to`.
pub(super) fn extract(tree: &Tree, kernel: &Path, to: &Path) -> Result<()> {
    let image = fs::read(kernel).doing(|| format!("reading {}", kernel.display()))?;
    let payload = payload(&image);
    let packer = payload.and_then(|payload| {
        let known = |(magic, _): &&(&[u8], &str)| payload.starts_with(magic);
        Some((payload, PACKERS.iter().find(known)?.1))
    });
    let Some((payload, program)) = packer else {
        let what = format!("no kernel packed by zstd or xz in {}", kernel.display());
        return Err(Error::Unexpected(what));
    };
    let packed = to.with_extension("packed");
    fs::write(&packed, payload).doing(|| format!("writing {}", packed.display()))?;
    let mut unpack = tree.program(program);
    let output = File::create(to).doing(|| format!("writing {}", to.display()))?;
    unpack.arg("-dc").arg(&packed).stdout(output);
    succeed(unpack)?;
    fs::remove_file(&packed).doing(|| format!("removing {}", packed.display()))
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let field = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let sectors = usize::from(*image.get(SETUP_SECTS)?);
    let start = (sectors + 1) * SECTOR_BYTES + field(PAYLOAD_OFFSET)?;
    let length = field(PAYLOAD_LENGTH)?.checked_sub(APPENDED_BYTES)?;
    image.get(start..start.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_where_the_setup_header_says() {
        let mut image = vec![0; 3 * SECTOR_BYTES];
        image[SETUP_SECTS] = 1;
        image[PAYLOAD_OFFSET] = 8;
        image[PAYLOAD_LENGTH] = 7;
        image[2 * SECTOR_BYTES + 8..][..7].copy_from_slice(b"elf\x03\0\0\0");
        assert_eq!(payload(&image), Some(b"elf".as_slice()));
        image[PAYLOAD_LENGTH + 3] = 0xff;
        assert_eq!(payload(&image), None);
    }
}
