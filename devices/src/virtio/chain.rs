//! A request: the buffers that one chain of descriptors names, checked before anybody uses them (virtio 1.2 §2.7.5).
//!
//! virtio-queue walks chains and lets a broken one end early. Here that is not a short request but garbage: the walk broke off if the
//! last descriptor said that there is a next one.

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, desc::split::Descriptor};
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, Permissions,
    ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile,
};

/// What the driver put into a queue makes no sense. It costs the guest this device, until it is reset, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Garbage {
    /// The available ring's index, or the ring.
    #[error("its available ring says more than it holds")]
    Ring,
    /// A chain that loops, or goes on outside of its table, or has an indirect table that is none.
    #[error("a chain of descriptors is broken")]
    Chain,
    /// A buffer that is not in RAM.
    #[error("{len:#x} bytes at {address:#x} are not in memory")]
    Buffer {
        /// Where it was said to be.
        address: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// What the device reads has to come before what it writes.
    #[error("a buffer to be read comes after one to be written")]
    Order,
    /// The device knows no such request.
    #[error("a request has no room for its {0}")]
    Request(&'static str),
}

/// A range of RAM that the driver named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Where it starts.
    pub address: GuestAddress,
    /// How long it is, in bytes; not 0.
    pub len: usize,
}

impl Buffer {
    /// Fills it from `source`. An end of the source is an error (`UnexpectedEof`).
    pub fn fill(
        &self,
        memory: &GuestMemoryMmap,
        source: &mut impl ReadVolatile,
    ) -> Result<(), VolatileMemoryError> {
        // Slice by slice: a short read must not go on in another place.
        for slice in GuestMemoryBackend::get_slices(memory, self.address, self.len) {
            source.read_exact_volatile(&mut slice.map_err(gone)?)?;
        }
        Ok(())
    }

    /// Writes all of it to `sink`.
    pub fn drain(
        &self,
        memory: &GuestMemoryMmap,
        sink: &mut impl WriteVolatile,
    ) -> Result<(), VolatileMemoryError> {
        for slice in GuestMemoryBackend::get_slices(memory, self.address, self.len) {
            sink.write_all_volatile(&slice.map_err(gone)?)?;
        }
        Ok(())
    }
}

/// It was there when the chain was checked, and RAM does not change.
fn gone(_: vm_memory::GuestMemoryError) -> VolatileMemoryError {
    VolatileMemoryError::OutOfBounds { addr: 0 }
}

/// One request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    pub(super) head: u16,
    /// What the device is to read, in order.
    pub readable: Vec<Buffer>,
    /// What it may write, in order.
    pub writable: Vec<Buffer>,
}

impl Chain {
    /// The next request in `queue`, if there is one.
    pub(super) fn next(
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
    ) -> Result<Option<Self>, Garbage> {
        let next = queue.iter(memory).map_err(|_| Garbage::Ring)?.next();
        next.map(|chain| Self::check(chain, memory)).transpose()
    }

    fn check(
        descriptors: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<Self, Garbage> {
        let head = descriptors.head_index();
        let mut chain = Self {
            head,
            ..Self::default()
        };
        let mut has_end = false;
        for descriptor in descriptors {
            has_end = !descriptor.has_next();
            chain.add(&descriptor, memory)?;
        }
        if has_end {
            Ok(chain)
        } else {
            Err(Garbage::Chain)
        }
    }

    fn add(&mut self, descriptor: &Descriptor, memory: &GuestMemoryMmap) -> Result<(), Garbage> {
        let (address, len) = (descriptor.addr(), descriptor.len());
        let (access, list) = match descriptor.is_write_only() {
            true => (Permissions::Write, &mut self.writable),
            false if !self.writable.is_empty() => return Err(Garbage::Order),
            false => (Permissions::Read, &mut self.readable),
        };
        let wrong = Garbage::Buffer {
            address: address.0,
            len,
        };
        let len = usize::try_from(len).map_err(|_| wrong)?;
        if !GuestMemory::check_range(memory, address, len, access) {
            return Err(wrong);
        }
        // A buffer without length is not forbidden, and nothing.
        if len > 0 {
            list.push(Buffer { address, len });
        }
        Ok(())
    }

    /// Takes the first `N` bytes of what is to be read off it, however they are cut into buffers.
    pub fn take_header<const N: usize>(
        &mut self,
        memory: &GuestMemoryMmap,
    ) -> Result<[u8; N], Garbage> {
        let (mut header, mut done) = ([0; N], 0);
        while done < N {
            let missing = Garbage::Request("header");
            let buffer = self.readable.first_mut().ok_or(missing)?;
            let part = buffer.len.min(N - done);
            memory
                .read_slice(&mut header[done..done + part], buffer.address)
                .map_err(|_| missing)?;
            done += part;
            if part == buffer.len {
                self.readable.remove(0);
            } else {
                // Inside of a buffer that is in memory: nothing overflows.
                buffer.address = GuestAddress(buffer.address.0 + part as u64);
                buffer.len -= part;
            }
        }
        Ok(header)
    }

    /// How many bytes may be written.
    pub(super) fn writable_len(&self) -> usize {
        self.writable.iter().map(|buffer| buffer.len).sum()
    }

    /// Takes the last byte of what may be written off it: where some devices want their status.
    pub fn take_last_byte(&mut self) -> Result<GuestAddress, Garbage> {
        let last = self.writable.last_mut();
        let last = last.ok_or(Garbage::Request("status"))?;
        last.len -= 1;
        let at = GuestAddress(last.address.0 + last.len as u64);
        if last.len == 0 {
            self.writable.pop();
        }
        Ok(at)
    }
}

/// The memory behind `buffers`, in order, for who reads or writes all of it at once.
pub(super) fn slices<'a>(
    buffers: &[Buffer],
    memory: &'a GuestMemoryMmap,
) -> Result<Vec<VolatileSlice<'a>>, Garbage> {
    let slices = buffers.iter().flat_map(|buffer| {
        let wrong = Garbage::Buffer {
            address: buffer.address.0,
            len: u32::try_from(buffer.len).unwrap_or(u32::MAX),
        };
        let slices = GuestMemoryBackend::get_slices(memory, buffer.address, buffer.len);
        slices.map(move |slice| slice.map_err(|_| wrong))
    });
    slices.collect()
}

/// The first `len` bytes of what `buffers` hold together; `missing` if that is less.
pub(super) fn gather(
    buffers: &[Buffer],
    len: usize,
    memory: &GuestMemoryMmap,
    missing: Garbage,
) -> Result<Vec<u8>, Garbage> {
    let mut data = vec![0; len];
    let mut rest = data.as_mut_slice();
    for buffer in buffers {
        let (part, after) = rest.split_at_mut(rest.len().min(buffer.len));
        memory
            .read_slice(part, buffer.address)
            .map_err(|_| missing)?;
        rest = after;
    }
    rest.is_empty().then_some(data).ok_or(missing)
}

/// Writes `value` at an offset into what `buffers` are together, however it is cut.
pub(super) fn put<const N: usize>(
    buffers: &[Buffer],
    offset: usize,
    value: [u8; N],
    memory: &GuestMemoryMmap,
) -> Result<(), Garbage> {
    let (mut skip, mut left) = (offset, &value[..]);
    for buffer in buffers {
        if skip >= buffer.len {
            skip -= buffer.len;
            continue;
        }
        let (now, later) = left.split_at(left.len().min(buffer.len - skip));
        // Inside of a buffer that is in memory: nothing overflows.
        let at = GuestAddress(buffer.address.0 + skip as u64);
        let missing = Garbage::Request("header");
        memory.write_slice(now, at).map_err(|_| missing)?;
        (skip, left) = (0, later);
        if left.is_empty() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
