//! The agent's own end, in L1. One thread reads frames; each job has a thread for what it says on stdout, one for stderr and
//! one that waits for its end.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::PORT;
use super::wire::{Frame, Kind, Request, TIMED_OUT};
use crate::sys;

/// How long a job that has ended may still be read from: a process it left behind may hold its pipes for ever.
const LAST_WORDS: Duration = Duration::from_secs(2);

type Line = Arc<Mutex<File>>;

struct Running {
    group: i32,
    stdin: Option<ChildStdin>,
}

type Jobs = Arc<Mutex<HashMap<u32, Running>>>;

/// Serves the port until it is closed.
pub(crate) fn serve() -> io::Result<()> {
    let path = port()?;
    let mut from_lab = OpenOptions::new().read(true).write(true).open(path)?;
    let line = Arc::new(Mutex::new(from_lab.try_clone()?));
    send(&line, Kind::Hello, 0, Vec::new());
    let jobs = Jobs::default();
    loop {
        let frame = Frame::receive(&mut from_lab)?;
        match frame.kind {
            Kind::Run => start(&line, &jobs, frame),
            Kind::Stdin => type_in(&jobs, &frame),
            Kind::Signal => signal(&jobs, &frame),
            _ => {}
        }
    }
}

/// The character device of the port with our name.
fn port() -> io::Result<String> {
    for entry in fs::read_dir("/sys/class/virtio-ports")?.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT {
            return Ok(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "no virtio-serial port of the lab's",
    ))
}

fn send(line: &Line, kind: Kind, job: u32, bytes: Vec<u8>) {
    let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
    // If the lab is gone there is nobody to tell; the reading thread sees it too and ends the agent.
    let _ = Frame { kind, job, bytes }.send(&mut *line);
}

fn start(line: &Line, jobs: &Jobs, frame: Frame) {
    let job = frame.job;
    let Some(request) = Request::decode(&frame.bytes) else {
        return;
    };
    match command(&request).spawn() {
        Ok(child) => {
            let (line, jobs) = (Arc::clone(line), Arc::clone(jobs));
            register(&jobs, job, &request, child).follow(line, jobs, job, request.deadline_ms);
        }
        Err(error) => {
            send(
                line,
                Kind::Stderr,
                job,
                format!("lab agent: {error}\n").into_bytes(),
            );
            send(line, Kind::Exit, job, 127_i32.to_le_bytes().to_vec());
        }
    }
}

fn command(request: &Request) -> Command {
    let mut command = Command::new("bash");
    command.process_group(0);
    if let Some(terminal) = &request.terminal {
        // A session of its own with the terminal as its controlling one, so that ^C and job control work there.
        command.arg("-c").arg(format!(
            "exec setsid --ctty --wait bash -c \"$0\" <>{terminal} >&0 2>&1"
        ));
    } else {
        command.arg("-c");
    }
    let piped = |on: bool| if on { Stdio::piped() } else { Stdio::null() };
    command
        .arg(&request.command)
        .current_dir("/root")
        .stdin(piped(request.has_stdin));
    command
        .stdout(piped(request.terminal.is_none()))
        .stderr(piped(request.terminal.is_none()));
    command
}

struct Started(Child);

fn register(jobs: &Jobs, job: u32, request: &Request, mut child: Child) -> Started {
    let stdin = child.stdin.take().filter(|_| request.has_stdin);
    let running = Running {
        group: child.id().cast_signed(),
        stdin,
    };
    jobs.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(job, running);
    Started(child)
}

impl Started {
    fn follow(self, line: Line, jobs: Jobs, job: u32, deadline_ms: u64) {
        let mut child = self.0;
        let group = child.id().cast_signed();
        let (done, silent) = mpsc::channel();
        relay(child.stdout.take(), &line, Kind::Stdout, job, done.clone());
        relay(child.stderr.take(), &line, Kind::Stderr, job, done);
        let (ended, end) = mpsc::channel();
        thread::spawn(move || ended.send(child.wait()));
        thread::spawn(move || {
            let code = match end.recv_timeout(Duration::from_millis(deadline_ms)) {
                Err(RecvTimeoutError::Timeout) => {
                    sys::signal(-group, libc::SIGKILL);
                    TIMED_OUT
                }
                Ok(Ok(status)) => code(status),
                _ => 127,
            };
            // Both relays gone means both senders dropped: the error is the good case.
            while silent.recv_timeout(LAST_WORDS).is_ok() {}
            jobs.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&job);
            send(&line, Kind::Exit, job, code.to_le_bytes().to_vec());
        });
    }
}

fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(127)
}

/// Sends on what a pipe says. `_done` is dropped at its end, which is how the end is told.
fn relay(
    pipe: Option<impl Read + Send + 'static>,
    line: &Line,
    kind: Kind,
    job: u32,
    _done: Sender<()>,
) {
    let Some(mut pipe) = pipe else { return };
    let line = Arc::clone(line);
    thread::spawn(move || {
        let _done = _done;
        let mut bytes = [0; 16384];
        while let Ok(count @ 1..) = pipe.read(&mut bytes) {
            send(&line, kind, job, bytes[..count].to_vec());
        }
    });
}

fn type_in(jobs: &Jobs, frame: &Frame) {
    let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(running) = jobs.get_mut(&frame.job) else {
        return;
    };
    if frame.bytes.is_empty() {
        running.stdin = None;
    } else if let Some(stdin) = &mut running.stdin {
        let _ = stdin.write_all(&frame.bytes).and_then(|()| stdin.flush());
    }
}

fn signal(jobs: &Jobs, frame: &Frame) {
    let jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
    if let (Some(running), Some(number)) = (jobs.get(&frame.job), frame.bytes.first()) {
        sys::signal(-running.group, i32::from(*number));
    }
}
