//! Host memory that a guest may reach without an exit: the directly mapped part of a BAR. And the guest's own, for devices of ours.

use std::{io, sync::Arc};

use vm_memory::{GuestAddress, GuestMemoryMmap};

/// A range of this process's memory that stays mapped for as long as the value lives.
///
/// # Safety
/// `address()..address() + len()` is mapped, page-aligned, at least readable (and writable unless `is_read_only`), until the value
/// is dropped; and what a guest writes there can do no harm to this process: it is no memory that Rust code holds references to.
#[expect(
    unsafe_code,
    reason = "the promise above is one that only the implementer can keep"
)]
pub unsafe trait HostMapping: Send + Sync {
    /// Where it is in this process, in bytes.
    fn address(&self) -> usize;
    /// How long it is, in bytes; a multiple of the page size.
    fn len(&self) -> usize;
    /// Whether the guest may only read it.
    fn is_read_only(&self) -> bool {
        false
    }
    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Follows a mapping through the guest's address space.
pub trait Follower: Send + Sync {
    /// It appeared at `guest`.
    fn appeared(&self, guest: u64);
    /// It is about to leave `guest`, where it had appeared.
    fn leaves(&self, guest: u64);
}

/// Guest-physical address space that host memory can be made to appear in.
pub trait Memslots: Send + Sync {
    /// Makes `memory` appear at `guest` (page-aligned) and keeps it alive until `unmap`. Returns the slot's name.
    fn map(&self, guest: u64, memory: Arc<dyn HostMapping>) -> io::Result<u32>;
    /// Takes it away again. When this returns no vCPU can reach it.
    fn unmap(&self, slot: u32);
}

/// The guest's RAM, for a device that reads and writes it. It stays mapped for as long as the value lives.
pub trait GuestRam: Send + Sync {
    /// All of it, by guest-physical address. It can change under any reader: what matters is read once.
    fn memory(&self) -> &GuestMemoryMmap;
}

/// RAM whose pages can go back to the host.
pub trait Discard: Send + Sync {
    /// Gives the host back the whole pages within this range of the guest's memory. They read as zeroes afterwards, and the guest may
    /// use them again at any time. What is not wholly RAM stays as it is, and is an error.
    fn discard(&self, at: GuestAddress, len: u64) -> io::Result<()>;
}
