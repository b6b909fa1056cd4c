//! Queues that the host's kernel serves by itself, with no exit and no thread of this process on the way: vhost.
//!
//! It reads and writes the guest's queues, wakes when their driver rings and signals their vectors' eventfds. It is told of the
//! guest's RAM and nothing else of this process. What is in a queue it looks up in that; where the queue itself is it believes us, so
//! that is checked here.

mod net;
mod vsock;

pub use net::VhostNet;
pub use vsock::VhostVsock;

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, RawFd},
};

use devices::virtio::Ring;
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData, vhost_kern::VhostKernBackend,
};
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The kernel does not serve a device's queues.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// Its device cannot be opened.
    #[error("{} cannot be opened\n  {}, or {}", .kind.path, advice(.kind, .source), .kind.instead)]
    Open {
        /// Which.
        kind: &'static Kind,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is too old.
    #[error("{} lacks features {lacking:#x}\n  {}", .kind.path, .kind.instead)]
    Features {
        /// Which.
        kind: &'static Kind,
        /// What it should offer and does not.
        lacking: u64,
    },
    /// Another guest's sockets have the number.
    #[error(
        "the number {0} is another guest's on this host\n  choose another one, such as --vsock {next}",
        next = .0.wrapping_add(1).max(3)
    )]
    CidInUse(u32),
    /// It fails.
    #[error("{} cannot be set up\n  {}", .kind.path, .kind.instead)]
    SetUp {
        /// Which.
        kind: &'static Kind,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// One of the kernel's kinds of vhost.
#[derive(Debug)]
pub struct Kind {
    path: &'static str,
    module: &'static str,
    /// How to do without.
    instead: &'static str,
    /// What the device offers to its driver and the kernel has to know of: it must have these, …
    features: u64,
    /// … and may have these.
    options: u64,
}

/// What to do about a device that cannot be opened.
fn advice(kind: &Kind, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            format!("add yourself to the group that may:  ls -l {}", kind.path)
        }
        _ => format!("load it:  modprobe {}", kind.module),
    }
}

impl Kind {
    fn opened<T>(&'static self, opened: vhost::Result<T>) -> Result<T, VhostError> {
        opened.map_err(|error| VhostError::Open {
            kind: self,
            source: plain(error),
        })
    }

    fn failed(&'static self, source: io::Error) -> VhostError {
        VhostError::SetUp { kind: self, source }
    }

    /// Makes an instance this process's, and tells it of the guest's RAM.
    fn own(
        &'static self,
        kernel: &impl VhostBackend,
        memory: &GuestMemoryMmap,
    ) -> Result<(), VhostError> {
        let failed = |error| self.failed(plain(error));
        kernel.set_owner().map_err(failed)?;
        let lacking = self.features & !kernel.get_features().map_err(failed)?;
        if lacking != 0 {
            return Err(VhostError::Features {
                kind: self,
                lacking,
            });
        }
        let regions: io::Result<Vec<_>> = memory.iter().map(region).collect();
        let regions = regions.map_err(|error| self.failed(error))?;
        kernel.set_mem_table(&regions).map(drop).map_err(failed)
    }

    fn agree(&self, kernel: &impl VhostBackend, features: u64) -> io::Result<()> {
        let known = self.features | self.options;
        kernel.set_features(features & known).map_err(plain)
    }
}

/// What is signalled for a queue without a vector: nobody hears it.
fn nobody() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// Has an instance know of a queue, its `index`th, which was checked.
fn set_ring(
    kernel: &impl VhostKernBackend,
    index: usize,
    ring: &Ring<'_>,
    nobody: &EventFd,
) -> io::Result<()> {
    let kernel = &Checked(kernel);
    let places = VringConfigData {
        queue_max_size: ring.max,
        queue_size: ring.size,
        desc_table_addr: ring.descriptors,
        avail_ring_addr: ring.available,
        used_ring_addr: ring.used,
        ..VringConfigData::default()
    };
    kernel.set_vring_num(index, ring.size).map_err(plain)?;
    kernel.set_vring_base(index, 0).map_err(plain)?;
    kernel.set_vring_addr(index, &places).map_err(plain)?;
    kernel.set_vring_kick(index, ring.bell).map_err(plain)?;
    set_line(kernel, index, ring.line, nobody)
}

/// An instance whose rings are known to be in memory. The crate's own look takes none that ends where a range of RAM does.
struct Checked<'a, K>(&'a K);

impl<K: VhostKernBackend> VhostKernBackend for Checked<'_, K> {
    type AS = K::AS;

    fn mem(&self) -> &Self::AS {
        self.0.mem()
    }

    fn is_valid(&self, _ring: &VringConfigData) -> bool {
        true
    }
}

impl<K: AsRawFd> AsRawFd for Checked<'_, K> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Has a queue's driver be interrupted by this from now on.
fn set_line(
    kernel: &impl VhostBackend,
    index: usize,
    line: Option<BorrowedFd<'_>>,
    nobody: &EventFd,
) -> io::Result<()> {
    let own = line.map(eventfd).transpose()?;
    let line = own.as_ref().unwrap_or(nobody);
    kernel.set_vring_call(index, line).map_err(plain)
}

/// Each part of a ring is in one piece in this process: the kernel goes on from its start, whatever is there.
fn check(ring: &Ring<'_>, memory: &GuestMemoryMmap) -> io::Result<()> {
    let size = usize::from(ring.size);
    let parts = [
        (ring.descriptors, 16 * size),
        (ring.available, 6 + 2 * size),
        (ring.used, 6 + 8 * size),
    ];
    for (at, len) in parts {
        let slice = memory.get_slice(GuestAddress(at), len);
        slice.map_err(|error| io::Error::other(format!("queue {}: {error}", ring.queue)))?;
    }
    Ok(())
}

/// Where a range of RAM is, for the guest and in this process.
fn region(region: &impl GuestMemoryRegion) -> io::Result<VhostUserMemoryRegionInfo> {
    let start = region.get_host_address(MemoryRegionAddress(0));
    let start = start.map_err(io::Error::other)?;
    Ok(VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: start as u64,
        ..VhostUserMemoryRegionInfo::default()
    })
}

/// What the kernel said, without the crate's words around it.
fn plain(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::VhostOpen(error)
        | vhost::Error::IoctlError(error)
        | vhost::Error::IOError(error) => error,
        other => io::Error::other(other),
    }
}

/// The same eventfd as the type that the crate wants.
fn eventfd(line: BorrowedFd<'_>) -> io::Result<EventFd> {
    let own = line.try_clone_to_owned()?.into_raw_fd();
    // SAFETY: the descriptor was made a line above and given up there: it is open and nobody else's.
    Ok(unsafe { EventFd::from_raw_fd(own) })
}

#[cfg(test)]
mod tests;
