//! L2, "the guest": a VMM's process in L1, and the guest's console.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::accident::Accident;
use crate::agent::{Event, Job};
use crate::error::{Doing, Error, Result, tail};
use crate::host::Host;
use crate::signs::Speaker;

/// The kernel's own limit (COMMAND_LINE_SIZE), with room for what a VMM adds.
const LONGEST_CMDLINE: usize = 1900;

/// Who runs the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Vmm {
    /// `viaduct` with these arguments.
    Viaduct(String),
    /// QEMU's microvm, what Viaduct is compared with: processors, memory, and devices that are on vfio-pci already.
    Reference {
        cpus: u32,
        memory: String,
        devices: Vec<String>,
        /// Further arguments of its.
        more: &'static str,
    },
}

impl Vmm {
    /// The command line in L1, given the guest's kernel, initial file system and kernel command line.
    fn command(&self, kernel: &str, initrd: &str, cmdline: &str) -> String {
        match self {
            Self::Viaduct(arguments) if arguments.starts_with("run") => {
                let rest = arguments.trim_start_matches("run");
                let boot = format!("--kernel {kernel} --initrd {initrd} --cmdline \"{cmdline}\"");
                format!("viaduct run {boot}{rest}")
            }
            Self::Viaduct(arguments) => format!("viaduct {arguments}"),
            Self::Reference {
                cpus,
                memory,
                devices,
                more,
            } => {
                let devices: String = devices
                    .iter()
                    .map(|device| format!(" -device vfio-pci,host={device}"))
                    .collect();
                format!(
                    "qemu-system-x86_64 -M microvm,pcie=on,acpi=on,rtc=on -accel kvm -cpu host \
                     -smp {cpus} -m {memory} -nodefaults -no-user-config -no-reboot -display none \
                     -serial stdio -kernel {kernel} -initrd {initrd} -append \"{cmdline}\"{devices} {more}"
                )
            }
        }
    }
}

/// The VMM's side of the guest's console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The lab's pipes.
    Pipes,
    /// A terminal that the VMM runs on.
    Terminal,
    /// A pseudoterminal that the VMM makes.
    OwnTerminal,
}

/// A guest that has not been started yet.
#[derive(Debug, Clone)]
pub(crate) struct Plan<'a> {
    host: &'a Host,
    vmm: Vmm,
    kernel: String,
    initrd: String,
    script: Option<String>,
    words: String,
    tracer: &'static str,
    redirections: String,
    place: Place,
    limit: Duration,
    silence: Duration,
    shown: bool,
    panics: bool,
}

impl<'a> Plan<'a> {
    /// A guest of this VMM.
    pub(crate) fn new(host: &'a Host, vmm: Vmm) -> Self {
        let words = "console=ttyS0 quiet".to_owned();
        let folder = host.image().guest_folder_in_l1();
        let path = |name| folder.join(name).display().to_string();
        Self {
            host,
            vmm,
            kernel: path("vmlinuz"),
            initrd: path("initrd"),
            script: None,
            words,
            tracer: "",
            redirections: String::new(),
            place: Place::Pipes,
            limit: Duration::from_secs(120),
            silence: SILENCE,
            shown: false,
            panics: false,
        }
    }

    /// The reference VMM with these arguments as well.
    pub(crate) fn reference_words(mut self, words: &'static str) -> Self {
        if let Vmm::Reference { more, .. } = &mut self.vmm {
            *more = words;
        }
        self
    }

    /// Another kernel than the usual one.
    pub(crate) fn kernel(mut self, path: &str) -> Self {
        self.kernel = path.to_owned();
        self
    }

    /// What the guest's init runs. The guest powers off afterwards.
    pub(crate) fn script(mut self, script: &str) -> Self {
        self.script = Some(script.to_owned());
        self
    }

    /// Further words of the guest's kernel command line.
    pub(crate) fn kernel_words(mut self, words: &str) -> Self {
        self.words = format!("{} {words}", self.words);
        self
    }

    /// Bash redirections for the VMM: stdin, which otherwise is what the lab types, or further descriptors.
    pub(crate) fn redirect(mut self, redirections: &str) -> Self {
        redirections.clone_into(&mut self.redirections);
        self
    }

    /// Runs the VMM under a tracer: a program and its arguments.
    pub(crate) fn under(mut self, tracer: &'static str) -> Self {
        self.tracer = tracer;
        self
    }

    /// The VMM runs on a terminal of its own, which is what is typed on. The terminal's settings are said before and after it,
    /// each on a line with `settings`, then the VMM's exit status on one with `status`.
    pub(crate) fn on_terminal(mut self) -> Self {
        self.place = Place::Terminal;
        self
    }

    /// Reads and types the console on the pseudoterminal that the VMM makes. The kernel may drop unread output when the VMM ends.
    pub(crate) fn on_its_own_terminal(mut self) -> Self {
        self.place = Place::OwnTerminal;
        self
    }

    /// How long the guest may run.
    pub(crate) fn deadline_s(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// How long the guest may print nothing.
    pub(crate) fn silent_s(mut self, seconds: u64) -> Self {
        self.silence = Duration::from_secs(seconds);
        self
    }

    /// Its console is shown on the lab's stdout as well.
    pub(crate) fn shown(mut self) -> Self {
        self.shown = true;
        self
    }

    /// Its kernel is meant to panic, which fails a scenario otherwise.
    pub(crate) fn panics(mut self) -> Self {
        self.panics = true;
        self
    }

    /// The command that starts it, as it would be typed in L1.
    pub(crate) fn command(&self) -> Result<String> {
        let mut cmdline = self.words.clone();
        if let Some(script) = &self.script {
            cmdline = format!("{cmdline} lab.script={}", BASE64_STANDARD.encode(script));
        }
        if cmdline.len() > LONGEST_CMDLINE {
            let what = format!("a guest's command line of {} bytes", cmdline.len());
            return Err(Error::Unexpected(format!(
                "{what}: its script is too long, shorten it"
            )));
        }
        Ok(self.vmm.command(&self.kernel, &self.initrd, &cmdline))
    }

    fn wrapped(&self, command: &str) -> String {
        // Statistics that an earlier guest has left are not this one's.
        let stats = command.split_once("--stats ");
        let stats = stats.and_then(|(_, rest)| rest.split_whitespace().next());
        let fresh = stats.map_or(String::new(), |path| format!("rm -f {path}; "));
        let (tracer, redirections) = (self.tracer, &self.redirections);
        match self.place {
            // exec: a signal to the job is one to the VMM, and its exit code is the VMM's.
            Place::Pipes => format!("{fresh}exec {tracer} {command} {redirections}"),
            Place::Terminal => {
                let stty = "echo settings $(stty -g)";
                let whole = format!("{fresh}{stty}; {command}; code=$?; {stty}; echo status $code");
                format!("exec script -qec {} /dev/null", quoted(&whole))
            }
            // socat ends with the pseudoterminal, when the VMM ends. The VMM's stderr names it, and is passed on.
            Place::OwnTerminal => format!(
                "{fresh}exec 3< <(exec {command} {redirections} < /dev/null 2>&1); vmm=$!; \
                 while read -r said <&3; do echo \"$said\" >&2; [[ $said != *' is at '/dev/pts/* ]] || break; done; \
                 socat - \"${{said##* is at }}\" 2> /dev/null; cat <&3 >&2; wait $vmm"
            ),
        }
    }

    /// Starts it.
    pub(crate) fn start(self) -> Result<Guest<'a>> {
        let command = self.command()?;
        let path = self.host.new_file(LOG, "log");
        let file = File::create(&path).doing(|| format!("making {}", path.display()))?;
        self.host.log("L1", &format!("$ {command}"));
        let speaker = if self.panics {
            Speaker::PanickingGuest
        } else {
            Speaker::Guest
        };
        let job = (self.host).job_of(speaker, &self.wrapped(&command), self.limit)?;
        let said = String::new();
        Ok(Guest {
            plan: self,
            job,
            console: said.clone(),
            errors: said,
            file,
            seen: 0,
            logged: 0,
            code: None,
        })
    }
}

/// A word for the shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A guest of a usual run prints another word within this time, in emulation, on a processor of the runner's own. One that does
/// not is given up as an accident, so this is well above what a slow guest was seen to need (its boot, 35 s on a busy machine).
const SILENCE: Duration = Duration::from_secs(120);

/// What Linux says every minute when one of its processors stands still. Once it may be an emulator that is slow.
const STALL: &str = "rcu: INFO: rcu_preempt detected stalls";

/// What the file of a guest's console is called, before its number.
pub(crate) const LOG: &str = "guest";

/// A guest that has been started. Killed when it is dropped before its end.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    plan: Plan<'a>,
    job: Job<'a>,
    console: String,
    errors: String,
    file: File,
    /// How much of the console `wait_for` is past, and how much is in the log.
    seen: usize,
    logged: usize,
    code: Option<i32>,
}

impl Guest<'_> {
    /// Waits until the console says `text`, after what was waited for before. Gives the console up to there.
    pub(crate) fn wait_for(&mut self, text: &str) -> Result<String> {
        let end = Instant::now() + self.plan.limit;
        loop {
            if let Some(at) = self.console[self.seen..].find(text) {
                let start = self.seen;
                self.seen += at + text.len();
                return Ok(self.console[start..self.seen].to_owned());
            }
            if self.code.is_some() {
                return Err(self.silent(&format!("the guest ended without \"{text}\"")));
            }
            if self.console.matches(STALL).count() > 1 {
                return Err(self.silent("a processor of the guest stands still"));
            }
            if !self.turn(end)? {
                return Err(self.silent(&format!("the guest did not say \"{text}\"")));
            }
        }
    }

    /// Waits until the VMM ends, and gives its exit status.
    pub(crate) fn wait_for_end(&mut self) -> Result<i32> {
        let end = Instant::now() + self.plan.limit;
        loop {
            if let Some(code) = self.code {
                return Ok(code);
            }
            if !self.turn(end)? {
                return Err(self.silent("the guest did not end"));
            }
        }
    }

    /// Waits for the script to succeed and the VMM to end with status 0; gives all of the console.
    pub(crate) fn succeeds(mut self) -> Result<String> {
        self.wait_for("LAB-L2 exit 0")?;
        match self.wait_for_end()? {
            0 => Ok(self.console.clone()),
            code => Err(self.silent(&format!("the VMM ended with status {code}"))),
        }
    }

    /// What the console said so far.
    pub(crate) fn console(&self) -> &str {
        &self.console
    }

    /// What the VMM said on stderr so far.
    pub(crate) fn errors(&self) -> &str {
        &self.errors
    }

    /// Types on the console.
    pub(crate) fn type_in(&self, text: &str) -> Result<()> {
        self.job.type_in(text)
    }

    /// Sends the VMM a signal.
    pub(crate) fn signal(&self, number: i32) -> Result<()> {
        self.job.signal(u8::try_from(number).unwrap_or(0))
    }

    /// Sends the VMM a signal and gives the exit status it ends with.
    pub(crate) fn ended_by(mut self, number: i32) -> Result<i32> {
        self.signal(number)?;
        self.wait_for_end()
    }

    /// Takes one event; false when `end` came first, or nothing for so long that nothing will. Time for which L1 waited for a
    /// processor does not count: on a busy machine a guest is silent for longer.
    fn turn(&mut self, end: Instant) -> Result<bool> {
        let host = self.plan.host;
        let silence = host.amount(self.plan.silence, self.plan.limit);
        let (start, waited) = (Instant::now(), host.waited());
        let patience = || silence + host.waited().saturating_sub(waited);
        loop {
            if let Some(event) = self.job.next(end.min(start + patience()))? {
                self.take(event);
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            if Instant::now() >= start + patience() {
                let error = self.silent("the guest prints nothing any more");
                return Err(error.beside(Some(Accident::Silence)));
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Exit(code) => {
                self.plan
                    .host
                    .log("L1", &format!("the VMM ended with status {code}"));
                self.code = Some(code);
            }
            Event::Stdout(bytes) => self.hear(&bytes),
            Event::Stderr(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                self.plan.host.log("vmm", &text);
                if self.plan.shown {
                    eprint!("{text}");
                }
                self.errors.push_str(&text);
            }
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).replace('\r', "");
        // The record is for reading afterwards; what is asserted on is in memory.
        let _ = self.file.write_all(text.as_bytes());
        if self.plan.shown {
            print!("{text}");
            let _ = std::io::stdout().flush();
        }
        self.console.push_str(&text);
        // The log has whole lines, each with the time at which it was complete.
        if let Some(end) = self.console[self.logged..].rfind('\n') {
            let end = self.logged + end + 1;
            self.plan.host.log("guest", &self.console[self.logged..end]);
            self.logged = end;
        }
    }

    fn silent(&self, what: &str) -> Error {
        let said = format!("{}\n{}", tail(&self.console, 15), tail(&self.errors, 5));
        Error::Unexpected(format!(
            "{what}; the end of its console and of the VMM's stderr:\n{said}"
        ))
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        // By SIGTERM the VMM gives its devices back. What it prints until its end is part of the record.
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            if self.code.is_some() || self.signal(signal).is_err() {
                return;
            }
            let end = Instant::now() + Duration::from_secs(10);
            while self.code.is_none() {
                match self.job.next(end) {
                    Ok(Some(event)) => self.take(event),
                    Ok(None) | Err(_) => break,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viaduct_gets_kernel_and_command_line_before_the_scenarios_arguments() {
        let vmm = Vmm::Viaduct("run --cpus 2".into());
        let expected = "viaduct run --kernel /k --initrd /i --cmdline \"a b\" --cpus 2";
        assert_eq!(vmm.command("/k", "/i", "a b"), expected);
        let list = Vmm::Viaduct("list".into());
        assert_eq!(list.command("/k", "/i", "a b"), "viaduct list");
    }
}
