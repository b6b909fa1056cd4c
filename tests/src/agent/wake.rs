//! Has L1's processors interrupt each other now and then.
//!
//! QEMU's emulator loses an interrupt where one thread sets its bit of a processor's `interrupt_request` while that processor leaves a
//! nested guest, which clears another bit of the same word (do_vmexit in target/i386/tcg/system/svm_helper.c). The interrupt stays
//! requested in the local APIC, and comes with the next one, whatever that is. After a timer's there may be no next one.

use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use crate::sys;

/// A timer that is late by so much disturbs nobody, and a wake-up is some 20 µs of work.
const EVERY: Duration = Duration::from_millis(100);

/// For as long as this process lives: each processor is woken by the one before it.
pub(super) fn each_other() -> io::Result<()> {
    let count = thread::available_parallelism()?.get();
    for sleeper in 0..count {
        let waker = (sleeper + 1) % count;
        if waker == sleeper {
            return Ok(());
        }
        let (wake, woken) = mpsc::sync_channel(1);
        pinned("sleeper", sleeper, move || sleep(&woken))?;
        pinned("waker", waker, move || wake_up(&wake))?;
    }
    Ok(())
}

fn pinned(name: &str, cpu: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(format!("{name}{cpu}"));
    let started = thread.spawn(move || match sys::pin(cpu) {
        Ok(()) => work(),
        Err(error) => eprintln!("the agent is not on processor {cpu}: {error}"),
    });
    started.map(drop)
}

fn sleep(woken: &Receiver<()>) {
    while woken.recv().is_ok() {}
}

fn wake_up(wake: &SyncSender<()>) {
    loop {
        thread::sleep(EVERY);
        // Full: it is to wake up already.
        if let Err(mpsc::TrySendError::Disconnected(())) = wake.try_send(()) {
            return;
        }
    }
}
