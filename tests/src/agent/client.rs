//! The lab's end of the line to its agent.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::wire::{Frame, Kind, Request, TIMED_OUT};
use crate::error::{Doing, Error, Result};
use crate::signs::{Search, Speaker};

/// How much longer than the agent the lab waits for a job's end: the agent is the one that ends it.
const GRACE: Duration = Duration::from_secs(15);

/// What a job did.
#[derive(Debug)]
pub(crate) enum Event {
    /// It said this on stdout.
    Stdout(Vec<u8>),
    /// It said this on stderr.
    Stderr(Vec<u8>),
    /// It ended with this code.
    Exit(i32),
}

/// All that a job said, and how it ended.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// What it said on stdout.
    pub(crate) stdout: String,
    /// What it said on stderr.
    pub(crate) stderr: String,
    /// Its exit code, 128 + signal, or 124 for its deadline.
    pub(crate) code: i32,
}

/// Where a job's events go, and the searches of its stdout and stderr.
#[derive(Debug)]
struct Listener {
    events: Sender<Event>,
    stdout: Search,
    stderr: Search,
}

impl Listener {
    /// Lines of an event with a sign of a failure.
    fn search(&mut self, event: &Event) -> Vec<String> {
        match event {
            Event::Stdout(bytes) => self.stdout.take(bytes),
            Event::Stderr(bytes) => self.stderr.take(bytes),
            Event::Exit(_) => {
                let ends = [self.stdout.end(), self.stderr.end()];
                ends.into_iter().flatten().collect()
            }
        }
    }
}

type Listeners = Arc<Mutex<HashMap<u32, Listener>>>;
/// Lines with a sign of a failure.
type Signs = Arc<Mutex<Vec<String>>>;

/// The line to an L1.
#[derive(Debug)]
pub(crate) struct Agent {
    line: Mutex<UnixStream>,
    listeners: Listeners,
    signs: Signs,
    next: Mutex<u32>,
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Waits for the agent's hello on a fresh line, then reads it for ever. `None` when it does not come in time.
    pub(crate) fn greet(mut stream: UnixStream, limit: Duration) -> Result<Option<Self>> {
        stream
            .set_read_timeout(Some(limit))
            .doing(|| "setting up the agent's socket".into())?;
        match Frame::receive(&mut stream) {
            Ok(frame) if frame.kind == Kind::Hello => {}
            _ => return Ok(None),
        }
        stream
            .set_read_timeout(None)
            .doing(|| "setting up the agent's socket".into())?;
        let reader = stream
            .try_clone()
            .doing(|| "setting up the agent's socket".into())?;
        let listeners = Listeners::default();
        let signs = Signs::default();
        let (heard, found) = (Arc::clone(&listeners), Arc::clone(&signs));
        thread::spawn(move || listen(reader, &heard, &found));
        Ok(Some(Self {
            line: Mutex::new(stream),
            listeners,
            signs,
            next: Mutex::new(1),
        }))
    }

    /// Takes the lines with signs of a failure that any job has printed since the last call, also jobs that nobody waits for.
    pub(crate) fn take_signs(&self) -> Vec<String> {
        std::mem::take(&mut *held(&self.signs))
    }

    /// Starts a job.
    pub(crate) fn start(&self, request: &Request, speaker: Speaker) -> Result<Job<'_>> {
        let number = {
            let mut next = held(&self.next);
            *next += 1;
            *next
        };
        let (sender, events) = mpsc::channel();
        let listener = Listener {
            events: sender,
            stdout: Search::new(speaker, true),
            stderr: Search::new(speaker, false),
        };
        held(&self.listeners).insert(number, listener);
        let limit = Duration::from_millis(request.deadline_ms);
        let end = Instant::now() + limit + GRACE;
        let job = Job {
            agent: self,
            number,
            events,
            limit,
            end,
            command: request.command.clone(),
            has_ended: Cell::new(false),
        };
        self.send(Kind::Run, number, request.encode())?;
        Ok(job)
    }

    fn send(&self, kind: Kind, job: u32, bytes: Vec<u8>) -> Result<()> {
        let mut line = held(&self.line);
        Frame { kind, job, bytes }
            .send(&mut *line)
            .doing(|| "talking to L1".into())
    }
}

/// Hands each frame to its job; when the line ends, every job hears of it by its channel's end.
fn listen(mut line: UnixStream, listeners: &Listeners, signs: &Signs) {
    while let Ok(frame) = Frame::receive(&mut line) {
        let mut listeners = held(listeners);
        let event = match frame.kind {
            Kind::Stdout => Event::Stdout(frame.bytes),
            Kind::Stderr => Event::Stderr(frame.bytes),
            Kind::Exit => Event::Exit(frame.bytes.try_into().map_or(127, i32::from_le_bytes)),
            _ => continue,
        };
        let ended = matches!(event, Event::Exit(_));
        if let Some(listener) = listeners.get_mut(&frame.job) {
            // Before the event: a caller that has seen a job's end has its signs.
            held(signs).extend(listener.search(&event));
            let _ = listener.events.send(event);
        }
        if ended {
            listeners.remove(&frame.job);
        }
    }
    held(listeners).clear();
}

/// A job that runs in L1. Killed when it is dropped before its end.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    agent: &'a Agent,
    number: u32,
    events: Receiver<Event>,
    limit: Duration,
    end: Instant,
    command: String,
    has_ended: Cell<bool>,
}

impl Job<'_> {
    /// The next thing it does; `None` when `until` comes first.
    pub(crate) fn next(&self, until: Instant) -> Result<Option<Event>> {
        let wait = until
            .min(self.end)
            .saturating_duration_since(Instant::now());
        match self.events.recv_timeout(wait) {
            Ok(event) => {
                let is_end = matches!(event, Event::Exit(_));
                self.has_ended.set(self.has_ended.get() || is_end);
                Ok(Some(event))
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() < self.end => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(self.late()),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Unexpected(format!(
                "L1 ended while it ran `{}`",
                self.command
            ))),
        }
    }

    /// Waits for its end and gathers what it says.
    pub(crate) fn wait(&self) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next(self.end)? {
                Some(Event::Stdout(bytes)) => stdout.extend(bytes),
                Some(Event::Stderr(bytes)) => stderr.extend(bytes),
                Some(Event::Exit(TIMED_OUT)) if self.limit_passed() => return Err(self.late()),
                Some(Event::Exit(code)) => {
                    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                    return Ok(Output {
                        stdout: text(stdout),
                        stderr: text(stderr),
                        code,
                    });
                }
                None => {}
            }
        }
    }

    /// Types into its stdin.
    pub(crate) fn type_in(&self, text: &str) -> Result<()> {
        self.agent
            .send(Kind::Stdin, self.number, text.as_bytes().to_vec())
    }

    /// Ends its stdin.
    pub(crate) fn close_stdin(&self) -> Result<()> {
        self.agent.send(Kind::Stdin, self.number, Vec::new())
    }

    /// Sends its process group a signal.
    pub(crate) fn signal(&self, number: u8) -> Result<()> {
        self.agent.send(Kind::Signal, self.number, vec![number])
    }

    fn limit_passed(&self) -> bool {
        Instant::now() + GRACE >= self.end
    }

    fn late(&self) -> Error {
        let what = format!("`{}` in L1", self.command);
        Error::Deadline {
            what,
            limit: self.limit,
            tail: String::new(),
        }
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        if !self.has_ended.get() {
            // Without a line there is no L1 and no job.
            let _ = self.signal(9);
        }
    }
}
