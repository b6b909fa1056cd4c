//! Reading and writing past the host's page cache (O_DIRECT of open(2)): places, lengths and buffers have to be multiples of what
//! the file system says. A guest's places and lengths are, for it is told of them as its disk's blocks; its buffers may be anywhere.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use vm_memory::{
    ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile, bitmap::BitmapSlice,
};

/// The alignments there are: sectors of 512 bytes up to pages, which every file system is content with.
const ALIGNMENTS: [usize; 4] = [512, 1024, 2048, 4096];
/// How much goes through our own memory at once where a guest's is not aligned.
const ROOM: usize = 256 << 10;

/// What a file that is open with O_DIRECT wants, found by trying: statx(2) knows of some file systems only, and of none before
/// Linux 6.1.
pub(super) fn alignment(file: &File) -> io::Result<usize> {
    let mut last = None;
    for align in ALIGNMENTS {
        match file.read_at(Aligned::new(align, align).bytes(), 0) {
            Ok(_) => return Ok(align),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)))
}

/// Zeroed memory whose address is a multiple of something.
#[derive(Debug)]
pub(super) struct Aligned {
    all: Vec<u8>,
    range: Range<usize>,
}

impl Aligned {
    /// `len` bytes.
    pub(super) fn new(align: usize, len: usize) -> Self {
        let all = vec![0; len + align];
        // Less than `align`: for bytes every address can be reached.
        let start = all.as_ptr().align_offset(align).min(align);
        Self {
            all,
            range: start..start + len,
        }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.all[self.range.clone()]
    }
}

/// A part of a file, read or written from its start on through memory of ours.
#[derive(Debug)]
pub(super) struct Bounced<'a> {
    file: &'a File,
    /// What of the file has not been read or written yet.
    left: Range<u64>,
    room: Aligned,
    /// What of the room was read and not yet taken, or given and not yet written.
    held: Range<usize>,
}

impl<'a> Bounced<'a> {
    pub(super) fn new(file: &'a File, align: usize, part: Range<u64>) -> Self {
        Self {
            file,
            left: part,
            room: Aligned::new(align, ROOM),
            held: 0..0,
        }
    }

    /// As much of what is left as there is room for.
    fn next(&self) -> usize {
        usize::try_from(self.left.end - self.left.start).map_or(ROOM, |left| left.min(ROOM))
    }

    fn refill(&mut self) -> io::Result<()> {
        let len = self.next();
        let room = &mut self.room.bytes()[..len];
        self.file.read_exact_at(room, self.left.start)?;
        self.left.start += len as u64;
        self.held = 0..len;
        Ok(())
    }

    /// Writes what was given and is not written yet.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        let held = &self.room.bytes()[self.held.clone()];
        self.file.write_all_at(held, self.left.start)?;
        self.left.start += held.len() as u64;
        self.held = 0..0;
        Ok(())
    }
}

impl ReadVolatile for Bounced<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        if self.held.is_empty() {
            self.refill().map_err(VolatileMemoryError::IOError)?;
        }
        let mut held: &[u8] = &self.room.bytes()[self.held.clone()];
        let read = held.read_volatile(buffer)?;
        self.held.start += read;
        Ok(read)
    }
}

impl WriteVolatile for Bounced<'_> {
    fn write_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        if self.held.end == ROOM {
            self.finish().map_err(VolatileMemoryError::IOError)?;
        }
        let mut free: &mut [u8] = &mut self.room.bytes()[self.held.end..];
        let written = free.write_volatile(buffer)?;
        self.held.end += written;
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::{
        super::super::{Buffer, testing::ram},
        *,
    };

    #[test]
    fn memory_for_direct_reads_is_aligned() {
        for align in ALIGNMENTS {
            let mut memory = Aligned::new(align, 4096);
            let bytes = memory.bytes();
            assert_eq!(bytes.len(), 4096);
            assert!(bytes.as_ptr().addr().is_multiple_of(align));
        }
    }

    #[test]
    fn what_goes_through_our_memory_arrives_whole_and_in_place() {
        let file = tempfile::tempfile().unwrap();
        let memory = ram().0.clone();
        // More than the room, in buffers that begin and end anywhere.
        let lens = [1, 511, 300_000, 4096, 3, 221_677];
        let total: usize = lens.iter().sum();
        let content: Vec<u8> = (0..total)
            .map(|at| (at * 7 % 251).to_le_bytes()[0])
            .collect();
        let mut at = 0x1003;
        let buffers = lens.map(|len| {
            let address = GuestAddress(at);
            at += len as u64 + 5;
            Buffer { address, len }
        });
        let mut from = content.as_slice();
        for buffer in &buffers {
            let (part, rest) = from.split_at(buffer.len);
            memory.write_slice(part, buffer.address).unwrap();
            from = rest;
        }
        let part = 8192..8192 + total as u64;
        let mut bounced = Bounced::new(&file, 512, part.clone());
        for buffer in &buffers {
            buffer.drain(&memory, &mut bounced).unwrap();
        }
        bounced.finish().unwrap();
        let mut stored = vec![0; total];
        file.read_exact_at(&mut stored, 8192).unwrap();
        assert!(stored == content, "what was written is in the file");
        memory
            .write_slice(&vec![0; at.try_into().unwrap()], GuestAddress(0))
            .unwrap();
        let mut bounced = Bounced::new(&file, 512, part);
        for (buffer, expected) in buffers.iter().zip([0, 1, 512, 300_512, 304_608, 304_611]) {
            buffer.fill(&memory, &mut bounced).unwrap();
            let mut read = vec![0; buffer.len];
            memory.read_slice(&mut read, buffer.address).unwrap();
            assert!(
                read == content[expected..expected + buffer.len],
                "{buffer:?}"
            );
        }
    }
}
