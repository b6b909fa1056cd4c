//! Unmasks a device's pin where the kernel cannot do it upon an eventfd.
//!
//! vfio-pci does it by itself. Drivers of mediated devices need not be able to (ENOTTY); for their pins a thread waits for the
//! eventfd and asks. These devices are software anyway: their every register access comes through this process.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
    thread::{self, JoinHandle},
};

use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::EventFd,
};

/// A thread that does something whenever an eventfd is signalled, until this is dropped.
pub(super) struct Unmasker {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// Which descriptor is ready.
const SIGNALLED: u64 = 0;
const STOP: u64 = 1;

impl Unmasker {
    /// Does `unmask` at each signal of `eventfd`.
    pub(super) fn start(
        eventfd: BorrowedFd<'_>,
        unmask: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let eventfd = File::from(eventfd.try_clone_to_owned()?);
        let stop = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let epoll = Epoll::new()?;
        let watch = |fd, token| {
            let event = EpollEvent::new(EventSet::IN, token);
            epoll.ctl(ControlOperation::Add, fd, event)
        };
        watch(eventfd.as_raw_fd(), SIGNALLED)?;
        watch(stop.as_raw_fd(), STOP)?;
        let held = stop.clone();
        let worker = move || {
            // The descriptor is open for as long as it is waited for.
            let _held = held;
            relay(&epoll, eventfd, unmask);
        };
        let thread = thread::Builder::new()
            .name("unmasker".into())
            .spawn(worker)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

fn relay(epoll: &Epoll, mut eventfd: File, unmask: impl Fn()) {
    let mut ready = [EpollEvent::default(); 2];
    loop {
        let count = match epoll.wait(-1, &mut ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return log::error!("a device's pin stays masked: {error}"),
            Ok(count) => count,
        };
        for event in ready.iter().take(count) {
            if event.data() == STOP {
                return;
            }
            // How often it was signalled does not matter, nor that somebody else may have read it: the pin is looked at again.
            let _count = eventfd.read(&mut [0; 8]);
            unmask();
        }
    }
}

impl Drop for Unmasker {
    fn drop(&mut self) {
        // It cannot be full: this is the only signal that it ever gets.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that unmasks a device's pin died");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::AsFd, sync::mpsc, time::Duration};

    use super::*;

    #[test]
    fn each_signal_unmasks_and_none_does_once_it_is_dropped() {
        // A pipe, eight bytes at a time, is ready and read as an eventfd is.
        let (eventfd, mut signal) = io::pipe().unwrap();
        let (sender, unmasked) = mpsc::channel();
        let unmasker = Unmasker::start(eventfd.as_fd(), move || {
            let _ = sender.send(());
        });
        for _ in 0..3 {
            signal.write_all(&[1; 8]).unwrap();
            unmasked.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        drop(unmasker.unwrap());
        signal.write_all(&[1; 8]).unwrap();
        // The thread is gone, and its end of the channel with it.
        assert_eq!(unmasked.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }
}
