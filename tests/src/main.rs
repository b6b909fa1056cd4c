//! `cargo lab`: the simulated host, its scenarios and the whole test run. See README.md beside this crate.

mod accident;
mod agent;
mod bench;
mod binding;
mod capacity;
mod cards;
mod checks;
mod children;
mod demo;
mod disks;
mod effort;
mod engine;
mod error;
mod guest;
mod host;
mod image;
mod log;
mod monitor;
mod paths;
mod progress;
mod qemu;
mod report;
mod scenarios;
mod signs;
mod space;
mod state;
mod sys;
mod terminal;

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, Parser, Subcommand};

use agent::Event;
use cards::{Cards, DebianKernel, HostKernel, Iommu, Machine};
use effort::Effort;
use error::{Doing, Error, Result};
use host::Host;
use image::Image;
use progress::{note, step};
use report::Tally;
use scenarios::Way;
use terminal::Leave;

/// A machine with an IOMMU and SR-IOV cards, where there is none.
#[derive(Parser)]
#[command(name = "cargo lab")]
struct CommandLine {
    #[command(subcommand)]
    command: Order,
}

#[derive(Subcommand)]
enum Order {
    /// Builds the image of the simulated host, if it is not in the cache.
    Image {
        #[command(flatten)]
        kernel: KernelOption,
        /// The disk of a whole Debian for guests as well; a scenario that wants it has it made otherwise.
        #[arg(long)]
        debian: bool,
        /// Install Debian's packages again, as the archive has them now. Otherwise they stay as they were first installed.
        #[arg(long)]
        refresh: bool,
    },
    /// Runs one command in L1 and leaves with its exit code.
    Host {
        #[command(flatten)]
        options: Options,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// A shell in L1.
    Shell {
        #[command(flatten)]
        options: Options,
        /// Arguments appended to QEMU's command line.
        #[arg(last = true)]
        qemu: Vec<String>,
    },
    /// From nothing to a guest's console with an assigned VF that has an address; without a terminal it pings and ends.
    Demo {
        #[command(flatten)]
        options: Options,
    },
    /// Formatting, lints, unit tests, then the scenarios.
    Test {
        /// Only what contains this in its name, in whatever case.
        #[arg(default_value = "")]
        filter: String,
        /// Say what would run, and run nothing.
        #[arg(long)]
        list: bool,
        /// As many rounds and random points as are worth anything, not as CI has time for.
        #[arg(long)]
        thorough: bool,
        /// How many simulated hosts run side by side.
        #[arg(long, value_name = "N", default_value_t = Way::usual_machines())]
        jobs: usize,
        /// The IOMMU of L1, where a scenario wants one that is in use: intel or amd.
        #[arg(long, value_enum, default_value_t)]
        iommu: Iommu,
        /// What random points are drawn from, to draw those of an earlier run again; the clock says it otherwise.
        #[arg(long, value_name = "N")]
        seed: Option<u64>,
    },
    /// Viaduct beside QEMU's microvm: time to the guest's init, exits, memory.
    Bench {
        /// What is measured.
        #[arg(value_enum, default_value_t = Benchmark::Start)]
        what: Benchmark,
    },
    /// What runs in L1: not for typing.
    #[command(hide = true)]
    Agent,
}

/// What `bench` measures.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Benchmark {
    /// The start of a guest with one VF.
    Start,
    /// Binding devices and putting them back, beside the same writes by hand.
    Bind,
    /// The start of a Debian on a virtio disk, until it asks who is there.
    Login,
    /// A virtio disk: requests a second, bandwidth, exits for a request.
    Disk,
    /// A virtio interface over a tap, by vhost and by a thread: bandwidth, round trips, exits for each.
    Net,
    /// Each card of the scenarios: works, interrupts, exits for an operation, and what it adds to the start.
    Cards,
}

/// What L1 boots.
#[derive(Args)]
struct KernelOption {
    /// L1's kernel: Debian's, one that the lab builds, with iommufd, or another of Debian's.
    #[arg(long, value_enum, default_value_t)]
    kernel: HostKernel,
    /// Another kernel of Debian's for guests, where the lab starts them; L1 has it in /lab/l2/kernel-RELEASE.
    #[arg(long, value_enum)]
    guest_kernel: Option<DebianKernel>,
}

/// How L1 is set up.
#[derive(Args)]
struct Options {
    #[command(flatten)]
    kernel: KernelOption,
    /// L1's IOMMU.
    #[arg(long, value_enum, default_value_t)]
    iommu: Iommu,
    /// How many processors L1 has. In emulation a guest hangs more often where L1 has more than one.
    #[arg(long, value_name = "N", default_value_t = 1)]
    processors: u32,
    /// QEMU arguments for further cards, as one string; repeatable.
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    cards: Vec<String>,
}

impl Options {
    fn machine(&self, appended: &[String]) -> Machine {
        let cards = self
            .cards
            .iter()
            .fold(Cards::sriov(), |cards, more| cards.with(more));
        let machine = Machine::with_cards(cards.with_all(appended))
            .kernel(self.kernel.kernel)
            .iommu(self.iommu)
            .processors(self.processors);
        let guest = self.kernel.guest_kernel;
        guest.map_or(machine.clone(), |kernel| machine.guest_kernel(kernel))
    }
}

fn main() {
    let command = CommandLine::parse().command;
    if matches!(command, Order::Agent) {
        let error = agent::serve().err();
        eprintln!("lab agent: {error:?}");
        return;
    }
    children::end_on_signals();
    match obey(command) {
        Ok(status) => children::leave(status),
        Err(error) => {
            terminal::restore();
            eprintln!("lab: {error}");
            children::leave(1);
        }
    }
}

fn obey(command: Order) -> Result<i32> {
    match command {
        Order::Image {
            kernel,
            debian,
            refresh,
        } => {
            if refresh {
                Image::refresh()?;
            }
            let image = Image::ready(kernel.kernel, kernel.guest_kernel)?;
            if debian {
                image.with_debian()?;
            }
            show_image(&image)
        }
        Order::Host { options, command } => in_host(&options.machine(&[]), &command),
        Order::Shell { options, qemu } => shell(&options.machine(&qemu)),
        Order::Demo { options } => demo::run(boot(&options.machine(&[]), "demo")?),
        Order::Test {
            filter,
            list,
            thorough,
            jobs,
            iommu,
            seed,
        } => {
            let filter = filter.to_lowercase();
            let effort = Effort::of(thorough);
            let names = [checks::names(&filter), scenarios::names(&filter, effort)].concat();
            if names.is_empty() {
                return Err(Error::Missing {
                    what: format!("no test has \"{filter}\" in its name"),
                    fix: "see their names:  cargo lab test --list".into(),
                });
            }
            if list {
                println!("{}", names.join("\n"));
                return Ok(0);
            }
            let way = Way {
                effort,
                machines: jobs,
                iommu,
                seed: seed.unwrap_or_else(clock_s),
                everything: filter.is_empty(),
            };
            test(&filter, way)
        }
        Order::Bench { what } => match what {
            Benchmark::Start => {
                bench::start::run(&boot(&Machine::with_cards(Cards::sriov()), "bench")?)
            }
            Benchmark::Bind => bench::bind::run(&boot(&Machine::example(), "bench")?),
            Benchmark::Login => bench::login::run(&boot(&Machine::example(), "bench")?),
            Benchmark::Disk => bench::disk::run(&boot(&Machine::example(), "bench")?),
            Benchmark::Net => bench::net::run(&boot(&Machine::example(), "bench")?),
            Benchmark::Cards => bench::cards::run(&boot(&scenarios::cards::machine(), "bench")?),
        },
        Order::Agent => Ok(0),
    }
}

fn show_image(image: &Image) -> Result<i32> {
    let (l2, guest) = (image.l2(), image.guest_folder());
    for (what, path) in [
        ("L1's kernel:   ", image.l1_kernel()),
        ("L1's initrd:   ", image.l1_initrd()),
        ("L1's root disk:", image.tree().disk()),
        ("L2's kernel:   ", guest.join("vmlinuz")),
        ("L2's initrd:   ", guest.join("initrd")),
        ("L2's Debian:   ", l2.join("debian.img")),
    ] {
        if path.exists() {
            println!("{what} {}", path.display());
        }
    }
    Ok(0)
}

/// The checks that need no L1 run beside the scenarios, which leave the processors idle now and then.
fn test(filter: &str, way: Way) -> Result<i32> {
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let checks = scope.spawn(|| {
            sys::lower_priority();
            checks::run(filter)
        });
        if scenarios::any(filter, way.effort) {
            println!(
                "seed {0}: `--seed {0}` draws the same random points",
                way.seed
            );
            match checks::build_viaduct().and_then(|()| scenarios::run(filter, way)) {
                Ok(more) => tally.add(more),
                Err(error) => tally.count("the lab", Duration::ZERO, &Err(error)),
            }
        }
        match checks.join() {
            Ok(more) => tally.add(more),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    println!("{}", tally.sum());
    Ok(i32::from(tally.failed > 0))
}

/// Seconds since 1970.
fn clock_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs())
}

/// Boots an L1 with everything at hand, building what is not there yet.
fn boot(machine: &Machine, name: &str) -> Result<Host> {
    checks::build_viaduct()?;
    let image = Image::ready(machine.kernel, machine.guest_kernel)?;
    let dir = paths::run(name)?;
    image.announce(&dir)?;
    let what = format!(
        "Booting L1 in QEMU; its command line and logs: {}",
        dir.display()
    );
    step(&what, || Host::boot(&image, machine, &dir))
}

fn in_host(machine: &Machine, words: &[String]) -> Result<i32> {
    let host = boot(machine, "host")?;
    let command = if let [line] = words {
        line.clone()
    } else {
        quoted(words)
    };
    relay(&host, &command, "")
}

/// Runs a command in L1 with this input, passing on what it says as it says it.
fn relay(host: &Host, command: &str, input: &str) -> Result<i32> {
    let hour = Duration::from_secs(3600);
    let job = host.job(command, hour)?;
    if !input.is_empty() {
        job.type_in(input)?;
    }
    job.close_stdin()?;
    loop {
        match job.next(Instant::now() + hour)? {
            Some(Event::Stdout(bytes)) => {
                std::io::stdout()
                    .write_all(&bytes)
                    .doing(|| "writing on stdout".into())?;
            }
            Some(Event::Stderr(bytes)) => {
                std::io::stderr()
                    .write_all(&bytes)
                    .doing(|| "writing on stderr".into())?;
            }
            Some(Event::Exit(code)) => return Ok(code),
            None => {}
        }
    }
}

fn quoted(words: &[String]) -> String {
    let quote = |word: &String| format!("'{}'", word.replace('\'', "'\\''"));
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// With a terminal a person is at the shell; otherwise it reads its commands from stdin.
fn shell(machine: &Machine) -> Result<i32> {
    let mut host = boot(machine, "shell")?;
    if terminal::is_interactive() {
        note(
            "A shell in L1; the files of this run are in /lab. `exit` or Ctrl-A x ends it and the machine.",
        );
        return terminal::run_on(&mut host, "cd /root; exec bash -l", Leave::CtrlAX);
    }
    let commands = std::io::read_to_string(std::io::stdin()).doing(|| "reading stdin".into())?;
    relay(&host, "bash -l", &commands)
}
