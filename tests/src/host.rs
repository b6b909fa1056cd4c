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

use crate::agent::{Agent, Job, Output, Request};
use crate::cards::{Machine, Places};
use crate::children::Owned;
use crate::error::{Doing, Error, Result, tail, tail_of};
use crate::guest::{Plan, Vmm};
use crate::image::Image;
use crate::log::Log;
use crate::progress::note;
use crate::{paths, qemu, sys};

/// What an L1 may take to come up; after that it is the emulator that hangs, and it is booted once more.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// How many boots there were; names their sockets.
static BOOTS: AtomicU32 = AtomicU32::new(0);

/// A running L1. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Host {
    agent: Agent,
    qemu: Owned,
    dir: PathBuf,
    scenario: Option<Scene>,
    guests: AtomicU32,
}

/// The scenario that has the machine at present.
#[derive(Debug)]
struct Scene {
    log: Log,
    end: Instant,
}

impl Host {
    /// Boots L1 and waits until its agent answers. Logs and the share are kept in `dir`.
    pub(crate) fn boot(image: &Image, machine: &Machine, dir: &Path) -> Result<Self> {
        match Self::boot_once(image, machine, dir, 1) {
            Err(error @ Error::Host { .. }) => {
                note(&format!("{error}"));
                note("booting it once more");
                Self::boot_once(image, machine, dir, 2)
            }
            result => result,
        }
    }

    fn boot_once(image: &Image, machine: &Machine, dir: &Path, attempt: u32) -> Result<Self> {
        let share = dir.join("share");
        fill_share(&share)?;
        let places = Places {
            share,
            socket: format!(
                "viaduct-lab-{}-{}",
                std::process::id(),
                BOOTS.fetch_add(1, Ordering::Relaxed)
            ),
            serial_log: dir.join(format!("l1-serial-{attempt}.log")),
        };
        let listener = SocketAddr::from_abstract_name(&places.socket)
            .and_then(|address| UnixListener::bind_addr(&address))
            .doing(|| format!("listening on the socket @{}", places.socket))?;
        let mut command = qemu::command(image, machine, &places);
        write(
            &dir.join("l1-command"),
            &format!("{}\n", qemu::shown(&command)),
        )?;
        write(
            &dir.join("l1-by-hand"),
            &qemu::by_hand(image, machine, &places),
        )?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let said = dir.join(format!("l1-qemu-{attempt}.log"));
        let log = fs::File::create(&said).doing(|| format!("making {}", said.display()))?;
        command.stderr(log);
        // In its own process group: Ctrl-C at the terminal is for the lab, which then ends QEMU.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        sys::die_with_parent(&mut command);
        let child = command.spawn().doing(|| "starting QEMU".into())?;
        let qemu = Owned::new(child);
        let failed = |what: &str| Error::Host {
            what: what.to_owned(),
            log: places.serial_log.display().to_string(),
            tail: format!("{}\n{}", tail_of(&said, 5), tail_of(&places.serial_log, 10)),
        };
        let stream = accept(listener).ok_or_else(|| failed("did not start: QEMU ended at once"))?;
        let agent = Agent::greet(stream, BOOT_LIMIT)?
            .ok_or_else(|| failed(&format!("was not up within {} s", BOOT_LIMIT.as_secs())))?;
        let dir = dir.to_owned();
        Ok(Self {
            agent,
            qemu,
            dir,
            scenario: None,
            guests: AtomicU32::new(0),
        })
    }

    /// A scenario begins: its log takes all that is done from here on, and nothing may take longer than it.
    pub(crate) fn begin(&mut self, log: Log, limit: Duration) {
        self.scenario = Some(Scene {
            log,
            end: Instant::now() + limit,
        });
    }

    /// Adds to the scenario's log.
    pub(crate) fn log(&self, who: &str, text: &str) {
        if let Some(scene) = &self.scenario {
            scene.log.add(who, text);
        }
    }

    /// A guest of Viaduct's. Arguments that begin with `run` get the guest's kernel, initrd and command line.
    pub(crate) fn viaduct(&self, arguments: &str) -> Plan<'_> {
        Plan::new(self, Vmm::Viaduct(arguments.to_owned()))
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
            },
        )
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

    /// Starts a shell command in the background. It ends with the scenario at the latest.
    pub(crate) fn job(&self, command: &str, limit: Duration) -> Result<Job<'_>> {
        let left = self
            .scenario
            .as_ref()
            .map(|scene| scene.end.duration_since(Instant::now()));
        let limit = left.map_or(limit, |left| left.min(limit));
        self.agent.start(&Request {
            command: command.to_owned(),
            deadline_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            has_stdin: true,
            terminal: None,
        })
    }

    /// Runs a shell command on L1's terminal hvc0, which `console` is the other end of.
    pub(crate) fn start_on_terminal(&self, command: &str) -> Result<Job<'_>> {
        let day_ms = 24 * 60 * 60 * 1000;
        self.agent.start(&Request {
            command: command.to_owned(),
            deadline_ms: day_ms,
            has_stdin: false,
            terminal: Some("/dev/hvc0".into()),
        })
    }

    /// Both ends of L1's terminal hvc0. They can be taken once.
    pub(crate) fn console(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        let child = self.qemu.child();
        Some((child.stdin.take()?, child.stdout.take()?))
    }

    /// A fresh file for a guest's console, on the share.
    pub(crate) fn guest_log(&self) -> PathBuf {
        let number = self.guests.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("share/logs/guest-{number}.log"))
    }
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
