//! A device that has to wait: for the host, or for what comes by another queue.

use std::{
    os::fd::RawFd,
    sync::mpsc::{self, Receiver, Sender},
};

use super::{
    super::{
        Config, Kind,
        registers::F_VERSION_1,
        testing::{Driver, FakeMsi, WRITE, ram},
    },
    *,
};
use crate::interrupt::MsiSource;

/// Queue 0 hands out letters, which come from the host (the source's count) or by requests in queue 1.
struct Letters {
    source: EventFd,
    letters: u32,
    /// What was asked for in vain.
    refused: Sender<()>,
}

impl Backend for Letters {
    fn kind(&self) -> Kind {
        Kind {
            name: "letters0".into(),
            device_type: 63,
            class: 0xff_00_00,
            features: 0,
            queues: vec![Driver::SIZE; 2],
            config: Config::default(),
        }
    }

    fn agree(&mut self, _features: u64) {}

    fn serve(&mut self, queue: usize, _: Chain, _: &GuestMemoryMmap) -> Result<Answer, Garbage> {
        if queue == 1 {
            self.letters += 1;
        } else if self.letters == 0 {
            let _ = self.refused.send(());
            return Ok(Answer::NotYet);
        } else {
            self.letters -= 1;
        }
        Ok(Answer::Done(1))
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.source.as_raw_fd())
    }

    fn stirred(&mut self) -> bool {
        // A ten in it is a change of the configuration.
        let came = self.source.read().unwrap_or(0);
        self.letters += u32::try_from(came % 10).unwrap();
        came >= 10
    }
}

struct Table {
    host: EventFd,
    msi: FakeMsi,
    drivers: [Driver; 2],
    bells: Vec<Arc<EventFd>>,
    refused: Receiver<()>,
    _worker: Worker,
}

fn table() -> Table {
    let (ram, msi) = (ram(), FakeMsi::default());
    let drivers = [0x1000, 0x4000].map(|base| Driver::new(ram.clone(), base));
    let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
    let bells: Vec<_> = drivers.iter().map(|_| Arc::new(eventfd())).collect();
    let interrupts = Interrupts::new(msi.vectors(3).unwrap(), 3, 2);
    for (cause, vector) in [
        (Cause::Config, 0),
        (Cause::Queue(0), 1),
        (Cause::Queue(1), 2),
    ] {
        assert!(interrupts.assign(cause, vector));
    }
    let served = drivers.iter().zip(&bells).enumerate();
    let queues = served.map(|(index, (driver, bell))| Served {
        index,
        queue: driver.registers().queue(&ram.0, F_VERSION_1).unwrap(),
        bell: bell.clone(),
        has_rung: false,
        is_waiting: false,
    });
    let (refused, heard) = mpsc::channel();
    let host = eventfd();
    let letters = Letters {
        source: host.try_clone().unwrap(),
        letters: 0,
        refused,
    };
    let work = Work {
        name: "letters0".into(),
        backend: Arc::new(Mutex::new(Box::new(letters))),
        queues: queues.collect(),
        ram,
        interrupts: Arc::new(interrupts),
        at_start: Arc::new(|| {}),
    };
    Table {
        host,
        msi,
        drivers,
        bells,
        refused: heard,
        _worker: Worker::start(work).unwrap(),
    }
}

impl Table {
    fn ask(&mut self, queue: usize, buffer: u64) {
        self.drivers[queue].request(&[(buffer, 16, WRITE)]);
        self.bells[queue].write(1).unwrap();
    }
}

#[test]
fn a_request_that_waits_for_the_host_is_served_once_and_when_the_host_has_something() {
    let mut table = table();
    table.ask(0, 0x10000);
    table.refused.recv().unwrap();
    assert_eq!(table.drivers[0].used(), None);
    table.host.write(1).unwrap();
    table.msi.wait(1);
    assert_eq!(table.drivers[0].used(), Some((0, 1)));
    assert_eq!(table.drivers[0].used(), None);
}

#[test]
fn a_request_that_waits_is_served_after_what_another_queue_brought() {
    let mut table = table();
    table.ask(0, 0x10000);
    table.refused.recv().unwrap();
    table.ask(1, 0x11000);
    table.msi.wait(1);
    assert_eq!(table.drivers[0].used(), Some((0, 1)));
    assert_eq!(table.drivers[1].used(), Some((0, 1)));
}

#[test]
fn what_the_host_has_before_anybody_asks_is_there_when_they_do_and_keeps_nobody_busy() {
    let mut table = table();
    table.host.write(12).unwrap();
    table.msi.wait(0);
    for _ in 0..2 {
        table.ask(0, 0x10000);
        table.msi.wait(1);
        assert_eq!(table.drivers[0].used(), Some((0, 1)));
    }
    table.ask(0, 0x10000);
    table.refused.recv().unwrap();
    let Table {
        refused, _worker, ..
    } = table;
    drop(_worker);
    // Once for each time that a driver rang, at most, and once for being seen before that.
    assert!(refused.iter().count() <= 3, "nobody goes on asking");
}

#[test]
fn a_worker_ends_while_a_request_waits() {
    let mut table = table();
    table.ask(0, 0x10000);
    table.refused.recv().unwrap();
    drop(table._worker);
    // Its thread has ended, and the device is gone with it.
    assert_eq!(table.refused.iter().count(), 0);
}
