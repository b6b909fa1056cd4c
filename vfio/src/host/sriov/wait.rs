//! Waiting until new virtual functions are there, and on their drivers.
//!
//! Most drivers make them before the write to `sriov_numvfs` returns, some afterwards; and where their driver is a module, the system's
//! device manager has it loaded when it hears of them. Both are told as events of the kernel's (`kobject_uevent`).

use std::{
    io,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The kernel's own announcements; group 2 is the device manager's.
const KERNEL_GROUP: u32 = 1;

/// What the kernel announces, from the moment that this was opened.
pub(super) struct Announcements {
    socket: Socket,
    epoll: Epoll,
}

impl Announcements {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT)?;
        socket.bind(&SocketAddr::new(0, KERNEL_GROUP))?;
        socket.set_non_blocking(true)?;
        let epoll = Epoll::new()?;
        let readable = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, socket.as_raw_fd(), readable)?;
        Ok(Self { socket, epoll })
    }

    /// Waits until `holds`, which is asked anew whenever something was announced. Whether it does, by then or at `end`.
    pub(super) fn wait_until(&self, end: Instant, mut holds: impl FnMut() -> bool) -> bool {
        loop {
            if holds() {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.next(left).is_err() {
                return holds();
            }
        }
    }

    /// Takes what was announced, or waits for it.
    fn next(&self, left: Duration) -> io::Result<()> {
        let mut events = [EpollEvent::default()];
        // Rounded up, not to ask in a circle during the last millisecond.
        let timeout_ms = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
        match self.epoll.wait(timeout_ms, &mut events) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        // What they say does not matter: sysfs is asked. One that was lost (ENOBUFS) is as good as one that came.
        while self.socket.recv_from_full().is_ok() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_already_is_not_waited_for_and_what_never_does_ends_in_time() {
        let announcements = match Announcements::open() {
            Ok(announcements) => announcements,
            Err(error) => {
                let absent = [libc::EPERM, libc::EACCES, libc::EPROTONOSUPPORT];
                let number = error.raw_os_error();
                assert!(
                    number.is_some_and(|number| absent.contains(&number)),
                    "{error}"
                );
                return println!("SKIPPED (uevents of the kernel: {error})");
            }
        };
        let now = Instant::now();
        assert!(announcements.wait_until(now, || true));
        let soon = now + Duration::from_millis(20);
        assert!(!announcements.wait_until(soon, || false));
        assert!(Instant::now() >= soon);
    }
}
