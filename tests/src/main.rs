//! `cargo lab`: the simulated host, its scenarios and the whole test run. See README.md beside this crate.

#![allow(dead_code, reason = "the scenarios, which come next, use the rest")]

mod agent;
mod cards;
mod children;
mod error;
mod host;
mod image;
mod paths;
mod progress;
mod qemu;
mod sys;
mod terminal;

use std::io::Write;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};

use agent::Event;
use cards::{Cards, Machine};
use error::{Doing, Result};
use host::Host;
use image::Image;
use progress::{note, step};
use terminal::{Leave, Raw};

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
    Image,
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
    /// What runs in L1: not for typing.
    #[command(hide = true)]
    Agent,
}

/// How L1 is set up.
#[derive(Args)]
struct Options {
    /// Boot L1 without an IOMMU.
    #[arg(long)]
    no_iommu: bool,
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
        let machine = Machine::with_cards(cards.with_all(appended));
        if self.no_iommu {
            machine.without_iommu()
        } else {
            machine
        }
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
    let image = Image::ready()?;
    match command {
        Order::Image => {
            println!("kernel of L1 and L2: {}", image.kernel().display());
            println!("L1's initrd:         {}", image.l1_initrd().display());
            println!("L1's root disk:      {}", image.tree().disk().display());
            println!(
                "L2's initrd:         {}",
                image.l2().join("initrd").display()
            );
            Ok(0)
        }
        Order::Host { options, command } => in_host(&image, &options.machine(&[]), &command),
        Order::Shell { options, qemu } => shell(&image, &options.machine(&qemu)),
        Order::Agent => Ok(0),
    }
}

fn boot(image: &Image, machine: &Machine, name: &str) -> Result<Host> {
    let dir = paths::run(name);
    std::fs::create_dir_all(&dir).doing(|| format!("making {}", dir.display()))?;
    let engine = if qemu::has_nested_kvm() {
        "KVM"
    } else {
        "emulation"
    };
    let host = step(&format!("Booting L1 ({engine})"), || {
        Host::boot(image, machine, &dir)
    })?;
    note(&format!("its command line and logs: {}", dir.display()));
    Ok(host)
}

fn in_host(image: &Image, machine: &Machine, words: &[String]) -> Result<i32> {
    let host = boot(image, machine, "host")?;
    let command = if let [line] = words {
        line.clone()
    } else {
        quoted(words)
    };
    let job = host.start(&command, Duration::from_secs(3600))?;
    job.close_stdin()?;
    loop {
        let event = job.next(Instant::now() + Duration::from_secs(3600))?;
        let said = "writing on";
        match event {
            Some(Event::Stdout(bytes)) => {
                std::io::stdout()
                    .write_all(&bytes)
                    .doing(|| format!("{said} stdout"))?;
            }
            Some(Event::Stderr(bytes)) => {
                std::io::stderr()
                    .write_all(&bytes)
                    .doing(|| format!("{said} stderr"))?;
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

fn shell(image: &Image, machine: &Machine) -> Result<i32> {
    let mut host = boot(image, machine, "shell")?;
    note("A shell in L1. `exit` or Ctrl-A x ends it and the machine.");
    let console = host.console();
    let job = host.start_on_terminal(&format!(
        "stty sane {}; cd /root; exec bash -l",
        terminal::size_for_stty()
    ))?;
    let raw = Raw::enter();
    if let Some((input, output)) = console {
        terminal::connect(input, output, Leave::CtrlAX);
    }
    let output = job.wait();
    drop(raw);
    Ok(output?.code)
}
