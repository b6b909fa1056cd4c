//! The frames between the lab and its agent: a kind, the job's number, a length (little-endian u32s), and the bytes.

use std::io::{self, Read, Write};

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To the agent: start a job. The bytes are a `Request`.
    Run,
    /// To the agent: bytes for the job's stdin; none means its end.
    Stdin,
    /// To the agent: send the job's process group the signal whose number is the first byte.
    Signal,
    /// From the agent: ready. Job number 0.
    Hello,
    /// From the agent: what the job said on stdout.
    Stdout,
    /// From the agent: what the job said on stderr.
    Stderr,
    /// From the agent: the job ended. A little-endian i32, 128 + signal where one ended it, `TIMED_OUT` for its deadline.
    Exit,
}

const KINDS: [(Kind, u8); 7] = [
    (Kind::Run, b'R'),
    (Kind::Stdin, b'I'),
    (Kind::Signal, b'K'),
    (Kind::Hello, b'H'),
    (Kind::Stdout, b'O'),
    (Kind::Stderr, b'E'),
    (Kind::Exit, b'X'),
];

/// The exit code of a job that its deadline ended.
pub(crate) const TIMED_OUT: i32 = 124;
/// More than this in one frame is not a frame: the two ends have lost each other.
const LONGEST_BYTES: u32 = 1 << 20;

/// A frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What it is.
    pub(crate) kind: Kind,
    /// Which job it is about.
    pub(crate) job: u32,
    /// Its content.
    pub(crate) bytes: Vec<u8>,
}

impl Frame {
    /// Sends it in one write, so that frames of several threads do not mix.
    pub(crate) fn send(&self, to: &mut impl Write) -> io::Result<()> {
        let kind = KINDS
            .iter()
            .find(|(kind, _)| *kind == self.kind)
            .map_or(0, |(_, byte)| *byte);
        let length = u32::try_from(self.bytes.len()).map_err(io::Error::other)?;
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&self.job.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&self.bytes);
        to.write_all(&bytes)
    }

    /// Waits for the next one.
    pub(crate) fn receive(from: &mut impl Read) -> io::Result<Self> {
        let (mut kind, mut job, mut length) = ([0; 1], [0; 4], [0; 4]);
        from.read_exact(&mut kind)?;
        from.read_exact(&mut job)?;
        from.read_exact(&mut length)?;
        let known = KINDS.iter().find(|(_, byte)| *byte == kind[0]);
        let (kind, _) = known.ok_or_else(|| io::Error::other("not a frame of the lab's"))?;
        let length = u32::from_le_bytes(length);
        if length > LONGEST_BYTES {
            return Err(io::Error::other("a frame longer than any"));
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        from.read_exact(&mut bytes)?;
        Ok(Self {
            kind: *kind,
            job: u32::from_le_bytes(job),
            bytes,
        })
    }
}

/// A job to start: a shell command and where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// For bash -c.
    pub(crate) command: String,
    /// When it is killed, with its whole process group.
    pub(crate) deadline_ms: u64,
    /// Its stdin stays open for `Stdin` frames; otherwise it is /dev/null.
    pub(crate) has_stdin: bool,
    /// It gets this terminal for its own, and nothing of what it says comes back.
    pub(crate) terminal: Option<String>,
}

impl Request {
    /// Its bytes: a line of facts, then the command.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let terminal = self.terminal.as_deref().unwrap_or("-");
        let stdin = u8::from(self.has_stdin);
        format!("{} {stdin} {terminal}\n{}", self.deadline_ms, self.command).into_bytes()
    }

    /// The request in a frame's bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (facts, command) = text.split_once('\n')?;
        let mut facts = facts.split(' ');
        Some(Self {
            deadline_ms: facts.next()?.parse().ok()?,
            has_stdin: facts.next()? == "1",
            terminal: facts.next().filter(|path| *path != "-").map(str::to_owned),
            command: command.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_arrives_as_it_was_sent() {
        let frame = Frame {
            kind: Kind::Stderr,
            job: 7,
            bytes: vec![0, 255, 10],
        };
        let mut line = Vec::new();
        frame.send(&mut line).unwrap();
        assert_eq!(Frame::receive(&mut line.as_slice()).unwrap(), frame);
    }

    #[test]
    fn noise_on_the_line_is_an_error_and_not_an_allocation() {
        assert!(Frame::receive(&mut [0; 9].as_slice()).is_err());
        assert!(Frame::receive(&mut b"O\0\0\0\0\xff\xff\xff\xff".as_slice()).is_err());
    }

    #[test]
    fn a_request_survives_the_line() {
        let request = Request {
            command: "echo a\necho b".into(),
            deadline_ms: 1500,
            has_stdin: true,
            terminal: Some("/dev/hvc0".into()),
        };
        assert_eq!(Request::decode(&request.encode()), Some(request));
    }
}
