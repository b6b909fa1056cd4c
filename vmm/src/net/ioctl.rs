//! What a tap is asked for by ioctl, and packets in several pieces (Documentation/networking/tuntap.rst and include/uapi/linux/if_tun.h
//! of Linux).

use std::{
    ffi::c_char,
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
};

use vm_memory::VolatileSlice;

/// The most pieces of one call (IOV_MAX).
const MOST_PIECES: usize = 1024;

/// A name and flags, as most of these ioctls take them: `struct ifreq`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) flags: u16,
}

impl Interface {
    fn request(&self) -> Option<libc::ifreq> {
        // One byte is for the end.
        if self.name.len() >= libc::IFNAMSIZ {
            return None;
        }
        // SAFETY: zeroes are a value of every type in there.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let place = request.ifr_name.iter_mut();
        place
            .zip(self.name.bytes())
            .for_each(|(to, from)| *to = c_char::from_ne_bytes([from]));
        request.ifr_ifru.ifru_flags = i16::from_ne_bytes(self.flags.to_ne_bytes());
        Some(request)
    }
}

/// Makes `file`, of /dev/net/tun, a queue of this interface.
pub(super) fn set_interface(file: &File, interface: &Interface) -> io::Result<()> {
    let mut request = interface.request().ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads and writes a `struct ifreq` (TUNSETIFF), which this is.
    answer(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// What interface a descriptor is a queue of.
pub(super) fn interface(fd: RawFd) -> io::Result<Interface> {
    // SAFETY: zeroes are a value of every type in there.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a `struct ifreq` (TUNGETIFF), which this is.
    answer(unsafe { libc::ioctl(fd, libc::TUNGETIFF, &raw mut request) })?;
    let name = request.ifr_name.iter().map(|&c| c.to_ne_bytes()[0]);
    let name: Vec<u8> = name.take_while(|&byte| byte != 0).collect();
    // SAFETY: TUNGETIFF has just written the flags (tun_get_iff in drivers/net/tun.c), and any bits are flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(Interface {
        name: String::from_utf8_lossy(&name).into_owned(),
        flags: u16::from_ne_bytes(flags.to_ne_bytes()),
    })
}

/// How long the header before each packet is.
pub(super) fn set_header_len(file: &File, len: i32) -> io::Result<()> {
    // SAFETY: the kernel reads an int (TUNSETVNETHDRSZ), which this is.
    answer(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

/// What packets may be like that are read: TUN_F_….
pub(super) fn set_offload(file: &File, flags: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes no pointer.
    answer(unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(flags),
        )
    })
}

/// Whether packets are put into this queue.
pub(super) fn set_queue(file: &File, is_attached: bool) -> io::Result<()> {
    let flags = match is_attached {
        true => libc::IFF_ATTACH_QUEUE,
        false => libc::IFF_DETACH_QUEUE,
    };
    let interface = Interface {
        name: String::new(),
        flags: u16::try_from(flags).map_err(io::Error::other)?,
    };
    let request = interface.request().ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads a `struct ifreq` (TUNSETQUEUE), which this is.
    answer(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

/// Has reads and writes not wait, and no other program inherit it.
pub(super) fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    answer(flags)?;
    // SAFETY: F_SETFL takes an int.
    answer(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    // SAFETY: F_SETFD takes an int.
    answer(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })
}

/// Reads one packet into pieces.
pub(super) fn read(file: &File, pieces: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let guards: Vec<_> = pieces
        .iter()
        .take(MOST_PIECES)
        .map(|piece| (piece.ptr_guard_mut(), piece.len()))
        .collect();
    let vector: Vec<_> = guards
        .iter()
        .map(|(guard, len)| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: *len,
        })
        .collect();
    let count = i32::try_from(vector.len()).map_err(io::Error::other)?;
    // SAFETY: each piece is guest memory that its guard keeps mapped; nobody holds Rust references to it.
    let read = unsafe { libc::readv(file.as_raw_fd(), vector.as_ptr(), count) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes one packet that is in pieces.
pub(super) fn write(file: &File, pieces: &[VolatileSlice<'_>]) -> io::Result<()> {
    let guards: Vec<_> = pieces
        .iter()
        .map(|piece| (piece.ptr_guard(), piece.len()))
        .collect();
    let vector: Vec<_> = guards
        .iter()
        .map(|(guard, len)| libc::iovec {
            iov_base: guard.as_ptr().cast_mut().cast(),
            iov_len: *len,
        })
        .collect();
    let count = i32::try_from(vector.len()).map_err(io::Error::other)?;
    // SAFETY: each piece is guest memory that its guard keeps mapped, and the kernel only reads it.
    match unsafe { libc::writev(file.as_raw_fd(), vector.as_ptr(), count) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn answer(result: i32) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
