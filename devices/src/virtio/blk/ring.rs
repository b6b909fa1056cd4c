//! Many things done with a disk's file at once. The machine brings what does them; a host that has nothing for it does one after the other.

use std::{fs::File, io, os::fd::RawFd};

use super::super::Buffer;

/// How many may go on at the same time: as many as keep a host's fastest disks busy (NVMe, a thousand times what a thread that waits for
/// each would have), and few enough that a reset, which waits for all of them, is soon done.
pub const MOST_AT_ONCE: u16 = 128;

/// What is done with a file.
#[derive(Debug, Clone, Copy)]
pub enum Transfer<'a> {
    /// Fill these buffers.
    Read(&'a [Buffer]),
    /// Write them.
    Write {
        /// Which.
        buffers: &'a [Buffer],
        /// It is not over before it would survive.
        is_durable: bool,
    },
    /// Have what was written survive.
    Flush,
}

/// Does what is asked, and says when it is done. It has the guest's memory, and keeps it while anything goes on.
pub trait Ring: Send {
    /// What epoll finds readable when something has ended.
    fn source(&self) -> RawFd;

    /// Takes note of a transfer from `at` on, whose end will be told with `tag`, which none that goes on has. The file stays open until
    /// then. An error: it is not done, now or later.
    fn begin(&mut self, tag: u16, file: &File, at: u64, transfer: Transfer<'_>) -> io::Result<()>;

    /// Has what was noted start; whether some of it has to be submitted again, because the kernel is short of something.
    fn submit(&mut self) -> io::Result<bool>;

    /// One that has ended since: its tag, and how many bytes it came to.
    fn ended(&mut self) -> Option<(u16, io::Result<usize>)>;

    /// Has what was noted start, and waits until one has ended. Something has to be noted or going on.
    fn wait(&mut self) -> io::Result<()>;
}
