//! The monitor of L1's QEMU, by which the lab does what a person at the machine would: looks at its screens, types, moves the
//! mouse, plugs and unplugs cards. Speaks QMP (QEMU's docs/interop/qmp-spec.rst): one JSON object a line, a greeting first,
//! events in between, which nobody here waits for.

mod input;
mod picture;

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Doing, Error, Result};
use crate::host::Host;

pub(crate) use picture::Picture;

/// What an answer may take. QEMU answers at once unless emulation holds its lock, so this is for one that hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The monitor's end of the lab.
#[derive(Debug)]
pub(crate) struct Monitor {
    line: Mutex<Line>,
}

/// The connection. Requests are numbered, so that an answer that came too late is not taken for that of the next request.
#[derive(Debug)]
struct Line {
    reader: BufReader<UnixStream>,
    requests: u64,
}

impl Monitor {
    /// Takes up a connection that QEMU has made.
    pub(crate) fn greet(stream: UnixStream) -> Result<Self> {
        stream
            .set_read_timeout(Some(ANSWER_LIMIT))
            .doing(|| "limiting the wait for QEMU's monitor".into())?;
        let line = Mutex::new(Line {
            reader: BufReader::new(stream),
            requests: 0,
        });
        let monitor = Self { line };
        // Until this was asked for, QEMU takes no other command.
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Has QEMU do something, and gives what it returns.
    pub(crate) fn execute(&self, command: &str, arguments: &Value) -> Result<Value> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.requests += 1;
        let request = line.requests;
        let text = json!({ "execute": command, "arguments": arguments, "id": request });
        line.reader
            .get_mut()
            .write_all(format!("{text}\n").as_bytes())
            .doing(|| format!("asking QEMU's monitor for `{command}`"))?;
        loop {
            let said = line.next(command)?;
            if said["id"] == request {
                return answer(command, said);
            }
        }
    }
}

impl Line {
    fn next(&mut self, command: &str) -> Result<Value> {
        let mut text = String::new();
        match self.reader.read_line(&mut text) {
            Ok(0) => Err(Error::Unexpected(format!(
                "QEMU ended instead of answering `{command}`"
            ))),
            Ok(_) => serde_json::from_str(&text)
                .map_err(|error| Error::Unexpected(format!("QEMU's monitor: {error}: {text}"))),
            // What a read past its timeout says (read(2), SO_RCVTIMEO in socket(7)).
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(Error::Deadline {
                what: format!("`{command}` of QEMU's monitor"),
                limit: ANSWER_LIMIT,
                tail: String::new(),
            }),
            Err(error) => Err(error).doing(|| format!("hearing QEMU answer `{command}`")),
        }
    }
}

fn answer(command: &str, mut said: Value) -> Result<Value> {
    if let Some(error) = said.get("error") {
        let why = error["desc"].as_str().unwrap_or_default();
        return Err(Error::Unexpected(format!(
            "QEMU refused `{command}`: {why}"
        )));
    }
    Ok(said["return"].take())
}

impl Host {
    /// Has L1's QEMU do something: a command of its QMP reference with its arguments.
    pub(crate) fn monitor(&self, command: &str, arguments: &Value) -> Result<Value> {
        self.log("L0", &format!("{command} {arguments}"));
        self.qemu_monitor().execute(command, arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// QEMU as the specification has it, which says these lines once it was asked something.
    fn qemu_that_says(lines: &'static str) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let capabilities = "{\"QMP\": {}}\n{\"return\": {}, \"id\": 1}\n";
            theirs.write_all(capabilities.as_bytes()).unwrap();
            let mut asked = BufReader::new(theirs.try_clone().unwrap()).lines();
            asked.nth(1);
            theirs.write_all(lines.as_bytes()).unwrap();
        });
        ours
    }

    #[test]
    fn events_and_late_answers_are_not_taken_for_the_answer() {
        let qemu = qemu_that_says(
            "{\"event\": \"RESET\"}\n{\"return\": 1, \"id\": 1}\n{\"return\": 7, \"id\": 2}\n",
        );
        let monitor = Monitor::greet(qemu).unwrap();
        assert_eq!(monitor.execute("query-x", &json!({})).unwrap(), 7);
    }

    #[test]
    fn a_refusal_is_an_error_with_qemus_words() {
        let qemu = qemu_that_says("{\"error\": {\"desc\": \"no such device\"}, \"id\": 2}\n");
        let monitor = Monitor::greet(qemu).unwrap();
        let error = monitor.execute("device_del", &json!({})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "QEMU refused `device_del`: no such device"
        );
    }

    #[test]
    fn a_qemu_that_ends_is_an_error() {
        let monitor = Monitor::greet(qemu_that_says("")).unwrap();
        let error = monitor.execute("stop", &json!({})).unwrap_err();
        assert!(error.to_string().starts_with("QEMU ended"));
    }
}
