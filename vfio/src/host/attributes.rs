//! Attributes whose reading or writing may sleep in the kernel for ever: a driver that waits for the users of its device to let
//! go sleeps inside the write, with the device's lock held, and no signal wakes it or those who come to that lock.
//!
//! So it is done by a process of its own, this program once more, and we wait for its answer only so long. A thread would not
//! do: a process one of whose threads sleeps like that cannot end. The process holds the lock of the journal with us: should we be
//! killed while it is at it, nobody changes bindings before it is done.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// What this program is called with, alone, when it is to serve another one.
const SERVE: &str = "--serve-attributes";

/// One access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// Which attribute.
    pub(super) attribute: PathBuf,
    /// What to write to it, in one write; without, it is read.
    pub(super) text: Option<String>,
}

/// What the kernel answered.
#[derive(Serialize, Deserialize)]
struct Reply {
    /// Its error, if it refused.
    errno: Option<i32>,
    /// What was read.
    text: String,
}

/// What became of an access.
#[derive(Debug)]
pub(super) enum Answer {
    /// The kernel came back: with what was read, or with an error.
    Came(io::Result<String>),
    /// It did not, in the time that there was.
    Sleeps {
        /// The process that is in there.
        pid: u32,
    },
}

/// Whoever does it.
pub(super) trait Attributes: Send {
    /// Does it, waiting no longer than that.
    fn access(&mut self, request: Request, patience: Duration) -> Answer;
}

/// Done by this process itself: for a machine that was recorded as directories, where nothing sleeps.
pub(super) struct Recorded;

impl Attributes for Recorded {
    fn access(&mut self, request: Request, _: Duration) -> Answer {
        Answer::Came(carry_out(&request))
    }
}

/// Done by a process of its own.
pub(super) struct Server {
    child: Child,
    /// None once it did not answer: then it is left behind.
    stream: Option<BufReader<UnixStream>>,
}

impl Server {
    /// Starts it; it ends when this is dropped, or as soon as it can. `lock` is held by it as well.
    pub(super) fn start(lock: Option<&File>) -> io::Result<Self> {
        // Also where the program was replaced since it started.
        let mut command = Command::new("/proc/self/exe");
        command.arg(SERVE);
        Self::start_as(command, lock)
    }

    fn start_as(mut command: Command, lock: Option<&File>) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let lock = lock.map(File::try_clone).transpose()?;
        let child = command
            .stdin(OwnedFd::from(theirs))
            .stdout(lock.map_or_else(Stdio::null, Stdio::from))
            // Nobody who reads what we say is to wait for a process that was left behind.
            .stderr(Stdio::null())
            // Ctrl-C is for us: in between two drivers it would leave a device nowhere.
            .process_group(0)
            .spawn()?;
        let stream = Some(BufReader::new(ours));
        Ok(Self { child, stream })
    }

    fn exchange(
        stream: &mut BufReader<UnixStream>,
        request: &Request,
        patience: Duration,
    ) -> io::Result<Reply> {
        stream.get_ref().set_read_timeout(Some(patience))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.get_mut().write_all(&line)?;
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::Error::other("the process that writes it was ended"));
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Attributes for Server {
    fn access(&mut self, request: Request, patience: Duration) -> Answer {
        let pid = self.child.id();
        let Some(stream) = &mut self.stream else {
            return Answer::Sleeps { pid };
        };
        let reply = Self::exchange(stream, &request, patience);
        // What SO_RCVTIMEO ends with, by socket(7).
        let is_late = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        match reply {
            Err(error) if is_late(&error) => {
                self.stream = None;
                Answer::Sleeps { pid }
            }
            Err(error) => Answer::Came(Err(error)),
            Ok(Reply { errno, text }) => Answer::Came(match errno {
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                None => Ok(text),
            }),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends when nobody asks any more; one that sleeps would keep us waiting.
        if self.stream.take().is_some() {
            let _its_status_says_nothing = self.child.wait();
        }
    }
}

/// For `main`, before anything else: does what [`Host`](super::Host) has a process of its own for, if this one was started for that.
pub fn serve_attributes() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != SERVE || arguments.next().is_some() {
        return None;
    }
    // Its name would be that of the link it was started by.
    let _is_for_people_only = fs::write("/proc/self/comm", "viaduct-sysfs");
    let stream = io::stdin().as_fd().try_clone_to_owned();
    let served = stream.and_then(|stream| serve(UnixStream::from(stream)));
    Some(served.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}

/// Until the other end is closed.
fn serve(stream: UnixStream) -> io::Result<()> {
    let mut requests = BufReader::new(stream);
    let mut line = String::new();
    while requests.read_line(&mut line)? > 0 {
        let answer = carry_out(&serde_json::from_str(&line)?);
        let mut reply = serde_json::to_vec(&Reply {
            // An error without a number is one of ours: there is no such thing as an attribute that is not text.
            errno: answer
                .as_ref()
                .err()
                .map(|error| error.raw_os_error().unwrap_or(libc::EIO)),
            text: answer.unwrap_or_default(),
        })?;
        reply.push(b'\n');
        requests.get_mut().write_all(&reply)?;
        line.clear();
    }
    Ok(())
}

fn carry_out(request: &Request) -> io::Result<String> {
    match &request.text {
        None => fs::read_to_string(&request.attribute),
        Some(text) => write(&request.attribute, text).map(|()| String::new()),
    }
}

fn write(attribute: &Path, text: &str) -> io::Result<()> {
    // Neither created nor truncated: an attribute that is not there is an error, not a new file. By one write, which is one value
    // to sysfs.
    let mut file = OpenOptions::new().write(true).open(attribute)?;
    let written = file.write(text.as_bytes())?;
    if written < text.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Instant};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn request(attribute: &Path, text: Option<&str>) -> Request {
        Request {
            attribute: attribute.to_owned(),
            text: text.map(str::to_owned),
        }
    }

    fn shell(script: &str) -> Server {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Server::start_as(command, None).unwrap()
    }

    #[test]
    fn what_is_served_reads_and_writes_and_tells_the_kernels_error() {
        let dir = tempfile::tempdir().unwrap();
        let attribute = dir.path().join("driver_override");
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(|| serve(theirs));
        let mut stream = BufReader::new(ours);
        let mut ask = |text| {
            Server::exchange(&mut stream, &request(&attribute, text), LONG)
                .map(|reply| (reply.errno, reply.text))
                .unwrap()
        };
        // Not made, either.
        assert_eq!(ask(Some("x")), (Some(libc::ENOENT), String::new()));
        assert_eq!(ask(None), (Some(libc::ENOENT), String::new()));
        fs::write(&attribute, "(null)\n").unwrap();
        assert_eq!(ask(None), (None, "(null)\n".into()));
        assert_eq!(ask(Some("vfio-pci\n")), (None, String::new()));
        assert_eq!(fs::read(&attribute).unwrap(), b"vfio-pci\n");
        drop(stream);
        server.join().unwrap().unwrap();
    }

    #[test]
    fn a_process_that_does_not_answer_is_left_behind() {
        let start = Instant::now();
        let mut server = shell("sleep 300");
        let moment = Duration::from_millis(50);
        let pid = server.child.id();
        for _ in 0..2 {
            let answer = server.access(request(Path::new("/x"), None), moment);
            assert!(
                matches!(answer, Answer::Sleeps { pid: who } if who == pid),
                "{answer:?}"
            );
        }
        server.child.kill().unwrap();
        drop(server);
        assert!(start.elapsed() < LONG);
    }

    #[test]
    fn a_process_that_was_killed_is_told_apart_from_one_that_sleeps() {
        let mut server = shell("read request");
        let answer = server.access(request(Path::new("/x"), None), LONG);
        let Answer::Came(Err(error)) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(error.to_string(), "the process that writes it was ended");
    }

    #[test]
    fn a_lock_is_held_for_as_long_as_the_process_lives_that_was_given_it() {
        let lock = tempfile::NamedTempFile::new().unwrap();
        let ours = lock.reopen().unwrap();
        ours.lock().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read request"]);
        let server = Server::start_as(command, Some(&ours)).unwrap();
        drop(ours);
        let others = lock.reopen().unwrap();
        assert!(others.try_lock().is_err());
        drop(server);
        assert!(others.try_lock().is_ok());
    }
}
