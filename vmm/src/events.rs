//! What the main thread waits for while the vCPUs run: one of them stopping, a signal, what the host has to say of a device, DMA that
//! the IOMMU refused, the next second of `--stats`.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    time::Duration,
};

use vfio::host::{DmaFault, FaultLog};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::EventFd,
    timerfd::TimerFd,
};

use vfio::{
    Assignable,
    assigned::{AssignedFunction, Notice},
};

use crate::{
    kvm::eventfd::borrowed,
    signals::{Signal, Signals},
    vcpu::Stop,
};

/// Something that the machine has to act on.
#[derive(Debug)]
pub enum Event {
    /// A vCPU stopped.
    Stopped {
        /// Which.
        vcpu: u32,
        /// Why.
        stop: Stop,
    },
    /// The person wants out: a signal's name, or the keys.
    Quit(&'static str),
    /// The terminal has another size.
    Resized,
    /// The host has something to say of a device.
    Host {
        /// Which device.
        device: Assignable,
        /// What.
        notice: Notice,
    },
    /// Time to write the statistics.
    Stats,
    /// The IOMMU refused DMA of the machine's devices; at least one.
    Refused(Vec<DmaFault>),
}

/// Where vCPU threads say that they stopped.
#[derive(Clone)]
pub struct Mailbox {
    sender: Sender<Event>,
    bell: Arc<EventFd>,
}

impl Mailbox {
    /// Leaves an event for the main thread.
    pub fn post(&self, event: Event) {
        // Nobody listens any more when the machine is being torn down, and then nothing is lost.
        let _ = self.sender.send(event);
        let _ = self.bell.write(1);
    }
}

/// What the main thread waits on.
pub struct Events {
    epoll: Epoll,
    signals: Signals,
    mailbox: Mailbox,
    posted: Receiver<Event>,
    stats_timer: Option<TimerFd>,
    notices: Vec<(EventFd, Assignable, Notice)>,
    fault_log: Option<FaultLog>,
}

/// Tells the descriptors apart in the epoll set.
mod token {
    pub(super) const SIGNALS: u64 = 0;
    pub(super) const POSTED: u64 = 1;
    pub(super) const STATS: u64 = 2;
    pub(super) const FAULTS: u64 = 3;
    /// The first of `Events::notices`.
    pub(super) const NOTICES: u64 = 4;
}

const STATS_PERIOD: Duration = Duration::from_secs(1);

impl Events {
    /// Waits for `signals` and for what is posted; more is added by the other methods.
    pub fn new(signals: Signals) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        watch(&epoll, signals.as_raw_fd(), token::SIGNALS)?;
        watch(&epoll, bell.as_raw_fd(), token::POSTED)?;
        let (sender, posted) = mpsc::channel();
        let mailbox = Mailbox { sender, bell };
        Ok(Self {
            epoll,
            signals,
            mailbox,
            posted,
            stats_timer: None,
            notices: Vec::new(),
            fault_log: None,
        })
    }

    /// Where to post events.
    pub fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    /// Asks for `Event::Stats` every second.
    pub fn tick(&mut self) -> io::Result<()> {
        let error = |errno: vmm_sys_util::errno::Error| io::Error::from_raw_os_error(errno.errno());
        let mut timer = TimerFd::new().map_err(error)?;
        timer
            .reset(STATS_PERIOD, Some(STATS_PERIOD))
            .map_err(error)?;
        watch(&self.epoll, timer.as_raw_fd(), token::STATS)?;
        self.stats_timer = Some(timer);
        Ok(())
    }

    /// Asks for what the host has to say of `function`.
    pub fn watch(&mut self, function: &AssignedFunction) -> io::Result<()> {
        for notice in Notice::ALL {
            let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
            if function.notify(notice, borrowed(&bell))? {
                self.watch_bell(bell, function.name().clone(), notice)?;
            }
        }
        Ok(())
    }

    fn watch_bell(&mut self, bell: EventFd, device: Assignable, notice: Notice) -> io::Result<()> {
        let token = token::NOTICES + self.notices.len() as u64;
        watch(&self.epoll, bell.as_raw_fd(), token)?;
        self.notices.push((bell, device, notice));
        Ok(())
    }

    /// Asks for `Event::Refused`.
    pub fn watch_faults(&mut self, log: FaultLog) -> io::Result<()> {
        watch(&self.epoll, log.as_raw_fd(), token::FAULTS)?;
        self.fault_log = Some(log);
        Ok(())
    }

    /// DMA that was refused until now and nobody has heard of.
    pub fn refused(&mut self) -> Vec<DmaFault> {
        let log = self.fault_log.as_mut();
        log.map(FaultLog::take).unwrap_or_default()
    }

    /// Forgets which vCPUs stopped: several can for one and the same reset. What a person wants is not forgotten.
    pub fn forget_stops(&self) {
        let wanted = |event: &Event| !matches!(event, Event::Stopped { .. });
        let kept: Vec<_> = self.posted.try_iter().filter(wanted).collect();
        kept.into_iter().for_each(|event| self.mailbox.post(event));
    }

    /// A signal to end that came before anybody waited.
    pub fn pending_signal(&mut self) -> Option<&'static str> {
        let mut came = std::iter::from_fn(|| self.signals.take());
        came.find_map(|signal| match signal {
            Signal::End(name) => Some(name),
            Signal::Resized => None,
        })
    }

    /// Waits for the next event.
    pub fn wait(&mut self) -> io::Result<Event> {
        let mut ready = [EpollEvent::default(); 8];
        loop {
            if let Ok(event) = self.posted.try_recv() {
                return Ok(event);
            }
            let count = match self.epoll.wait(-1, &mut ready) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            for event in ready.iter().take(count) {
                if let Some(event) = self.on_ready(event.data()) {
                    return Ok(event);
                }
            }
        }
    }

    fn on_ready(&mut self, token: u64) -> Option<Event> {
        match token {
            token::SIGNALS => {
                return Some(match self.signals.take()? {
                    Signal::End(name) => Event::Quit(name),
                    Signal::Resized => Event::Resized,
                });
            }
            token::STATS => {
                if let Some(timer) = &mut self.stats_timer {
                    // Ready, so this does not block; how many periods passed does not matter.
                    let _ = timer.wait();
                }
                return Some(Event::Stats);
            }
            token::FAULTS => {
                let faults = self.refused();
                return (!faults.is_empty()).then_some(Event::Refused(faults));
            }
            // The bell only wakes; what was posted is in the channel.
            token::POSTED => drop(self.mailbox.bell.read()),
            notice => return self.on_notice(notice),
        }
        None
    }

    fn on_notice(&self, token: u64) -> Option<Event> {
        let number = usize::try_from(token.checked_sub(token::NOTICES)?).ok()?;
        let (bell, device, notice) = self.notices.get(number)?;
        bell.read().ok()?;
        Some(Event::Host {
            device: device.clone(),
            notice: *notice,
        })
    }
}

fn watch(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    epoll.ctl(
        ControlOperation::Add,
        fd,
        EpollEvent::new(EventSet::IN, token),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_persons_wish_to_quit_outlives_a_reset() {
        let mut events = Events::new(Signals::block().unwrap()).unwrap();
        let mailbox = events.mailbox();
        let stop = Stop::Asked;
        mailbox.post(Event::Stopped { vcpu: 0, stop });
        mailbox.post(Event::Quit("Ctrl-A x"));
        events.forget_stops();
        mailbox.post(Event::Stats);
        assert!(matches!(events.wait().unwrap(), Event::Quit("Ctrl-A x")));
    }

    #[test]
    fn what_the_host_says_of_a_device_is_an_event_that_names_both() {
        let mut events = Events::new(Signals::block().unwrap()).unwrap();
        let bells: [EventFd; 2] = [(); 2].map(|()| EventFd::new(libc::EFD_NONBLOCK).unwrap());
        for (bell, name) in bells.iter().zip(["03:10.1", "03:10.3"]) {
            let device = Assignable::Function(name.parse().unwrap());
            let bell = bell.try_clone().unwrap();
            events.watch_bell(bell, device, Notice::Wanted).unwrap();
        }
        bells[1].write(1).unwrap();
        let Event::Host { device, notice } = events.wait().unwrap() else {
            panic!("another event");
        };
        assert_eq!(device.to_string(), "0000:03:10.3");
        assert_eq!(notice, Notice::Wanted);
        assert!(bells[1].read().is_err(), "it is said once");
    }
}
