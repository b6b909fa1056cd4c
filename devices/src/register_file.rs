//! Registers as bytes: an image, which bits of it software may write, and which are cleared by writing one.
//!
//! Every emulated register map that has no side effects of its own is one of these, so that a dword access is the four byte accesses
//! it stands for, everywhere and by construction.

/// Little-endian registers with write masks.
///
/// Offsets count bytes from the start of the file. What lies past its end reads as all-ones, and writes there are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterFile {
    bytes: Vec<u8>,
    writable: Vec<u8>,
    // Empty until something is RW1C: most files have no such bit.
    cleared_by_one: Vec<u8>,
}

impl RegisterFile {
    /// `len` bytes of zero that nobody may write.
    pub fn new(len: usize) -> Self {
        Self::with_image(vec![0; len])
    }

    /// Registers that read as `bytes` and that nobody may write.
    pub fn with_image(bytes: Vec<u8>) -> Self {
        let writable = vec![0; bytes.len()];
        Self {
            bytes,
            writable,
            cleared_by_one: Vec::new(),
        }
    }

    /// The registers as they read now.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Lets software write the bits of `mask` (little-endian bytes, from `offset` on) and no others there.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        overlay(&mut self.writable, offset, mask);
    }

    /// Makes the bits of `mask` (from `offset` on) such that writing one clears them.
    pub fn clear_by_one(&mut self, offset: usize, mask: &[u8]) {
        self.cleared_by_one.resize(self.bytes.len(), 0);
        overlay(&mut self.cleared_by_one, offset, mask);
    }

    /// Sets registers from the hardware's side: no mask applies.
    pub fn set(&mut self, offset: usize, value: &[u8]) {
        overlay(&mut self.bytes, offset, value);
    }

    /// The dword at `offset`; all-ones past the end.
    pub fn dword(&self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// The word at `offset`; all-ones past the end.
    pub fn word(&self, offset: usize) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Reads as software does, any width at any offset.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0xff);
        let stored = self.bytes.iter().skip(offset);
        data.iter_mut()
            .zip(stored)
            .for_each(|(to, from)| *to = *from);
    }

    /// Writes as software does, any width at any offset: the masks apply.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, &new) in (offset..self.bytes.len()).zip(data) {
            let writable = self.writable[at];
            let cleared = new & self.cleared_by_one.get(at).copied().unwrap_or(0);
            self.bytes[at] = (self.bytes[at] & !writable | new & writable) & !cleared;
        }
    }
}

fn overlay(image: &mut [u8], offset: usize, data: &[u8]) {
    let place = image.iter_mut().skip(offset);
    place.zip(data).for_each(|(to, from)| *to = *from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writable_bits_change() {
        let mut file = RegisterFile::with_image(vec![0x12, 0x34, 0x56, 0x78]);
        file.allow(1, &[0x0f, 0xff]);
        file.write(0, &[0xff; 4]);
        assert_eq!(file.dword(0), 0x78ff_3f12);
    }

    #[test]
    fn writing_one_clears_and_writing_zero_keeps() {
        let mut file = RegisterFile::with_image(vec![0xff, 0xff]);
        file.clear_by_one(0, &[0x00, 0xf0]);
        file.write(0, &[0xff, 0x30]);
        assert_eq!(file.word(0), 0xcfff);
    }

    #[test]
    fn past_the_end_reads_all_ones_and_ignores_writes() {
        let mut file = RegisterFile::new(2);
        file.allow(0, &[0xff; 8]);
        file.write(1, &[0xaa; 4]);
        file.write(usize::MAX, &[0xaa; 4]);
        assert_eq!(file.dword(0), 0xffff_aa00);
        assert_eq!(file.dword(usize::MAX), 0xffff_ffff);
    }
}
