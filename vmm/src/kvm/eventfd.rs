//! Eventfds, lent to whoever signals them.

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// The descriptor of `eventfd`, for as long as that lives.
pub fn borrowed(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the `EventFd`, which outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}
