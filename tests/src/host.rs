//! L1, "the host": the simulated machine that runs `viaduct`, with its cards, its logs and the agent in it.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::accident::{Accident, Watch};
use crate::agent::{Agent, Job, Output, Request};
use crate::cards::{Iommu, Machine, Places};
use crate::children::Owned;
use crate::effort::Effort;
use crate::error::{Doing, Error, Result, tail, tail_of};
use crate::guest::{self, Plan, Vmm};
use crate::image::Image;
use crate::log::Log;
use crate::monitor::Monitor;
use crate::progress::note;
use crate::signs::Speaker;
use crate::{paths, qemu, sys};

/// An idle machine boots an L1 in 10 s and a busy one in 40. One that takes longer hangs in the emulator, and is booted once more.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// How many boots there were; names their sockets.
static BOOTS: AtomicU32 = AtomicU32::new(0);

/// A running L1. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Host {
    agent: Agent,
    monitor: Monitor,
    qemu: Owned,
    dir: PathBuf,
    serial_log: PathBuf,
    backend: Option<&'static str>,
    iommu: Iommu,
    image: Image,
    scenario: Option<Scene>,
    /// Why it took a second boot.
    first_boot: Option<Error>,
    /// How many files it was asked for; numbers them.
    files: AtomicU32,
}

/// The scenario that has the machine at present.
#[derive(Debug)]
struct Scene {
    log: Log,
    end: Instant,
    effort: Effort,
    seed: u64,
    /// The number of its first file.
    first_file: u32,
}

impl Host {
    /// Boots L1 and waits until its agent answers. Logs and the share are kept in `dir`.
    pub(crate) fn boot(image: &Image, machine: &Machine, dir: &Path) -> Result<Self> {
        match Self::boot_once(image, machine, dir, 1) {
            Err(error @ Error::Host { .. }) => {
                note(&format!("{error}"));
                note("booting it once more");
                let mut host = Self::boot_once(image, machine, dir, 2)?;
                host.first_boot = Some(error);
                Ok(host)
            }
            result => result,
        }
    }

    fn boot_once(image: &Image, machine: &Machine, dir: &Path, attempt: u32) -> Result<Self> {
        let places = Places::of(dir, BOOTS.fetch_add(1, Ordering::Relaxed), attempt);
        fill_share(&places.share())?;
        for disk in machine.cards.disks(dir) {
            disk.make()?;
        }
        let sockets = [
            listen(&places, qemu::MONITOR)?,
            listen(&places, qemu::AGENT)?,
        ];
        let qemu = start(image, machine, &places)?;
        let failed = |what: &str| Error::Host {
            what: what.to_owned(),
            log: places.serial_log().display().to_string(),
            tail: format!(
                "{}\n{}",
                tail_of(&places.qemu_log(), 5),
                tail_of(&places.serial_log(), 10)
            ),
        };
        let [monitor, agent] = sockets.map(accept);
        let ended = || failed("did not start: QEMU ended at once");
        let (monitor, agent) = (monitor.ok_or_else(ended)?, agent.ok_or_else(ended)?);
        let monitor = Monitor::greet(monitor)?;
        let agent = Agent::greet(agent, BOOT_LIMIT)?
            .ok_or_else(|| failed(&format!("was not up within {} s", BOOT_LIMIT.as_secs())))?;
        Ok(Self {
            agent,
            monitor,
            qemu,
            dir: dir.to_owned(),
            serial_log: places.serial_log(),
            backend: machine.backend,
            iommu: machine.iommu,
            image: image.clone(),
            scenario: None,
            first_boot: None,
            files: AtomicU32::new(0),
        })
    }

    /// Its IOMMU.
    pub(crate) fn iommu(&self) -> Iommu {
        self.iommu
    }

    /// What it was booted from, and what guests are booted from.
    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    /// Looks for a lost timer.
    pub(crate) fn watch(&self) -> Watch {
        Watch {
            serial_log: self.serial_log.clone(),
            qemu: self.qemu.pid(),
        }
    }

    /// For how long threads of its QEMU have waited for a processor of the runner; 0 where the kernel does not count that.
    pub(crate) fn waited(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.qemu.pid()));
        let waits = tasks.into_iter().flatten().flatten().filter_map(|task| {
            // Documentation/scheduler/sched-stats.rst: time it ran and time it waited, both in ns, and how often it ran.
            let counted = fs::read_to_string(task.path().join("schedstat")).ok()?;
            counted.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        Duration::from_nanos(waits.sum())
    }

    /// Why it took a second boot, if it did.
    pub(crate) fn first_boot(&self) -> Option<&Error> {
        self.first_boot.as_ref()
    }

    /// What the emulator did to it, or to a guest of the scenario.
    pub(crate) fn accident(&self) -> Option<Accident> {
        self.watch().seen().or_else(|| {
            let first = self.scenario.as_ref().map_or(0, |scene| scene.first_file);
            let guests = (first..self.files.load(Ordering::Relaxed))
                .map(|number| self.file(guest::LOG, number, "log"));
            guests
                .filter_map(|path| fs::read(path).ok())
                .find_map(|said| Accident::in_console(&String::from_utf8_lossy(&said)))
        })
    }

    /// Whether QEMU still runs.
    pub(crate) fn is_up(&self) -> bool {
        !sys::has_ended(self.qemu.pid(), false)
    }

    /// Cuts L1's power: kills QEMU, whose disk files keep what L1 has written to its disks. The next scenario boots another L1.
    pub(crate) fn cut_power(&self) {
        self.log("L0", "the power is cut");
        sys::signal(self.qemu.pid(), libc::SIGKILL);
        sys::has_ended(self.qemu.pid(), true);
    }

    /// A scenario begins: its log takes all that is done from here on, and nothing may take longer than it.
    pub(crate) fn begin(&mut self, log: Log, limit: Duration, effort: Effort, seed: u64) {
        self.scenario = Some(Scene {
            log,
            end: Instant::now() + effort.limit(limit),
            effort,
            seed,
            first_file: self.files.load(Ordering::Relaxed),
        });
    }

    /// The result of the scenario that has just ended: a failure where a program printed a sign of one (see `signs`), whatever the
    /// scenario itself found.
    pub(crate) fn judge(&self, result: Result<()>) -> Result<()> {
        let signs = self.agent.take_signs();
        if signs.is_empty() {
            return result;
        }
        let found = match result {
            Err(error) if !error.is_skip() => format!("{error}\n"),
            _ => String::new(),
        };
        let signs = signs.join("\n");
        Err(Error::Defect(format!("{found}printed:\n{signs}")))
    }

    /// Of a usual and a thorough number of rounds the one that this run is for.
    pub(crate) fn amount<T>(&self, usual: T, thorough: T) -> T {
        let effort = self.scenario.as_ref().map(|scene| scene.effort);
        effort.unwrap_or(Effort::Usual).amount(usual, thorough)
    }

    /// What the scenario's random points are drawn from: the same at its second try, and in a run with the same `--seed`.
    pub(crate) fn seed(&self) -> u64 {
        self.scenario.as_ref().map_or(0, |scene| scene.seed)
    }

    /// Adds to the scenario's log.
    pub(crate) fn log(&self, who: &str, text: &str) {
        if let Some(scene) = &self.scenario {
            scene.log.add(who, text);
        }
    }

    /// A guest of Viaduct's. Arguments that begin with `run` get the guest's kernel, initrd and command line, and the backend that
    /// this host is for.
    pub(crate) fn viaduct(&self, arguments: &str) -> Plan<'_> {
        let arguments = match (self.backend, arguments.strip_prefix("run ")) {
            (Some(backend), Some(rest)) => format!("run --iommu-backend {backend} {rest}"),
            _ => arguments.to_owned(),
        };
        Plan::new(self, Vmm::Viaduct(arguments))
    }

    /// A guest of the reference VMM, with devices that `bind_to_vfio` has taken.
    pub(crate) fn reference(&self, cpus: u32, memory: &str, devices: &[&str]) -> Plan<'_> {
        let devices = devices.iter().map(|device| (*device).to_owned()).collect();
        Plan::new(
            self,
            Vmm::Reference {
                cpus,
                memory: memory.to_owned(),
                devices,
                more: "",
            },
        )
    }

    /// A whole Debian's root disk at `path` in L1, to be written to. A minute's work where the cache has none yet.
    pub(crate) fn debian(&self, path: &str) -> Result<()> {
        self.image.with_debian()?;
        self.sh(&format!("cp --sparse=always /lab/l2/debian.img {path}"))
            .map(drop)
    }

    /// Runs a shell command to its end, whatever that is.
    pub(crate) fn output(&self, command: &str, limit: Duration) -> Result<Output> {
        self.log("L1", &format!("$ {command}"));
        let job = self.job(command, limit)?;
        job.close_stdin()?;
        let output = job.wait()?;
        self.log(
            "L1",
            &format!("{}{}exit {}", output.stdout, output.stderr, output.code),
        );
        Ok(output)
    }

    /// Runs a shell command that has to succeed, and gives what it said on stdout.
    pub(crate) fn sh(&self, command: &str) -> Result<String> {
        let output = self.output(command, Duration::from_secs(60))?;
        if output.code == 0 {
            return Ok(output.stdout);
        }
        let said = tail(&[output.stdout, output.stderr].concat(), 15);
        Err(Error::Program {
            command: command.into(),
            status: output.code.to_string(),
            tail: said,
        })
    }

    /// Starts a shell command in the background. It ends with the scenario at the latest, and when the job is dropped.
    pub(crate) fn job(&self, command: &str, limit: Duration) -> Result<Job<'_>> {
        self.job_of(Speaker::Command, command, limit)
    }

    /// Starts a VMM or another command in the background.
    pub(crate) fn job_of(
        &self,
        speaker: Speaker,
        command: &str,
        limit: Duration,
    ) -> Result<Job<'_>> {
        let left = self
            .scenario
            .as_ref()
            .map(|scene| scene.end.duration_since(Instant::now()));
        let limit = left.map_or(limit, |left| left.min(limit));
        let request = Request {
            command: command.to_owned(),
            deadline_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            has_stdin: true,
            terminal: None,
        };
        self.agent.start(&request, speaker)
    }

    /// Runs a shell command on L1's terminal hvc0, which `console` is the other end of.
    pub(crate) fn start_on_terminal(&self, command: &str) -> Result<Job<'_>> {
        let day_ms = 24 * 60 * 60 * 1000;
        let request = Request {
            command: command.to_owned(),
            deadline_ms: day_ms,
            has_stdin: false,
            terminal: Some("/dev/hvc0".into()),
        };
        self.agent.start(&request, Speaker::Command)
    }

    /// Both ends of L1's terminal hvc0. They can be taken once.
    pub(crate) fn console(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        let child = self.qemu.child();
        Some((child.stdin.take()?, child.stdout.take()?))
    }

    /// The monitor of its QEMU.
    pub(crate) fn qemu_monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// The run's folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A fresh file among the logs, which L1 sees as /lab/logs.
    pub(crate) fn new_file(&self, name: &str, extension: &str) -> PathBuf {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        self.file(name, number, extension)
    }

    fn file(&self, name: &str, number: u32, extension: &str) -> PathBuf {
        let file = format!("{name}-{number}.{extension}");
        self.dir.join("share/logs").join(file)
    }
}

fn listen(places: &Places, whose: &str) -> Result<UnixListener> {
    let name = places.socket(whose);
    SocketAddr::from_abstract_name(&name)
        .and_then(|address| UnixListener::bind_addr(&address))
        .doing(|| format!("listening on the socket @{name}"))
}

/// Starts QEMU, and leaves its command line for whoever wants to do the same by hand.
fn start(image: &Image, machine: &Machine, places: &Places) -> Result<Owned> {
    let mut command = qemu::command(image, machine, places)?;
    let shown = format!("{}\n", qemu::shown(&command));
    write(&places.dir.join("l1-command"), &shown)?;
    let by_hand = qemu::by_hand(image, machine, places)?;
    write(&places.dir.join("l1-by-hand"), &by_hand)?;
    let said = places.qemu_log();
    let log = fs::File::create(&said).doing(|| format!("making {}", said.display()))?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.stderr(log);
    // In its own process group: Ctrl-C at the terminal is for the lab, which then ends QEMU.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    sys::die_with_parent(&mut command);
    let child = command.spawn().doing(|| "starting QEMU".into())?;
    Ok(Owned::new(child))
}

/// Waits for QEMU to connect, which it does before it runs anything; QEMU's failing shows as nobody coming.
fn accept(listener: UnixListener) -> Option<UnixStream> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(listener.accept().map(|(stream, _)| stream)));
    receiver.recv_timeout(Duration::from_secs(10)).ok()?.ok()
}

/// What L1 sees as /lab: this program (its agent), `viaduct` if it is built, and room for logs.
fn fill_share(share: &Path) -> Result<()> {
    let bin = share.join("bin");
    fs::create_dir_all(&bin).doing(|| format!("making {}", bin.display()))?;
    for folder in ["l2", "logs"] {
        let path = share.join(folder);
        fs::create_dir_all(&path).doing(|| format!("making {}", path.display()))?;
    }
    let program = std::env::current_exe().doing(|| "finding this program".into())?;
    place(&program, &bin.join("lab"))?;
    let viaduct = paths::target().join("release/viaduct");
    if viaduct.exists() {
        place(&viaduct, &bin.join("viaduct"))?;
    }
    Ok(())
}

/// A copy, not a link: the next build must not change what a running L1 executes.
fn place(from: &Path, to: &Path) -> Result<()> {
    let _ = fs::remove_file(to);
    fs::copy(from, to)
        .map(drop)
        .doing(|| format!("copying {} to {}", from.display(), to.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).doing(|| format!("writing {}", path.display()))
}
