//! `viaduct run`: devices taken, machine assembled and run, devices given back on every way out.

use std::{
    error::Error,
    fs,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use devices::pci::{Bdf, Slot, assign::AssignError};
use vfio::host::{BindOptions, Host, Mac, limits};

use crate::{
    binding::Ended,
    cli::{VfioArg, run::RunArgs},
    console::{RawTerminal, Serial},
    events::Events,
    input,
    machine::{Blueprint, Config, MachineError, Outcome},
    signals::Signals,
    stats,
};

/// The guest died: triple fault or panic.
const GUEST_DIED: u8 = 3;

/// Descriptors that a machine needs besides those of its vectors: KVM, VFIO, files, terminals, with room to spare.
const BASE_DESCRIPTORS: u64 = 256;
/// Vectors that most functions use, an eventfd each. One that uses more has them as far as the hard limit, which is asked for whole,
/// goes.
const USUAL_VECTORS: u64 = 64;

/// A wish that this host cannot fulfil, found before anything is changed.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("--serial\n  name a file that can be written, or stdio, or null")]
    Serial(#[source] io::Error),
    #[error("--stats {}\n  name a file that can be written", path.display())]
    Stats { path: PathBuf, source: io::Error },
    #[error(
        "{mib} MiB of memory are more than this host {has} ({has_mib} MiB)\n  give the guest less:  --memory {fits_mib}M"
    )]
    TooMuchMemory {
        mib: u64,
        has: &'static str,
        has_mib: u64,
        fits_mib: u64,
    },
    #[error(
        "slot {slot} is asked for twice\n  give each --vfio an addr= of its own, or leave it out"
    )]
    SlotTwice { slot: Slot },
    #[error("{device} is named twice\n  name each device once")]
    DeviceTwice { device: Bdf },
    #[error(
        "all 31 slots of the guest's bus are taken\n  put several into one:  addr=06.0, addr=06.1"
    )]
    NoSlot,
    #[error(
        "the terminal cannot be set to raw mode\n  leave it out:  viaduct run … < /dev/null, or --serial FILE"
    )]
    Terminal(#[source] io::Error),
    #[error("no thread to read standard input in\n  allow more:  ulimit -u")]
    Input(#[source] io::Error),
}

/// `viaduct run`
pub fn run(args: &RunArgs) -> Ended {
    let host = Host::new();
    let assigned = assign_slots(&host, &args.vfio)?;
    let config = config(args, &assigned);
    check_memory(&config)?;
    // From here on a signal waits until it can be answered in good order.
    let signals = Signals::block()?;
    let blueprint = Blueprint::draw(config.clone())?;
    let functions: Vec<Bdf> = assigned.iter().map(|(function, _)| *function).collect();
    let managed = managed(&args.vfio, &functions);
    let options = BindOptions {
        force: args.force,
        guest: None,
    };
    // All that can be refused is refused before anything is changed.
    host.check_take(&managed, &options)?;
    if args.dry_run {
        print_plan(&host, &managed, &config);
        return Ok(ExitCode::SUCCESS);
    }

    let sink = config.serial.sink().map_err(RunError::Serial)?;
    if let Some(path) = &config.stats {
        stats::check(path).map_err(|source| RunError::Stats {
            path: path.clone(),
            source,
        })?;
    }
    if !functions.is_empty() {
        limits::allow_locked(config.memory_bytes)?;
        limits::allow_open_files(BASE_DESCRIPTORS + USUAL_VECTORS * functions.len() as u64)?;
    }
    host.load_vfio(&managed)?;
    for (arg, &function) in args.vfio.iter().zip(&functions) {
        // Through the PF's driver, and before the VF leaves its own.
        host.prepare_function(function, arg.mac.map(Mac))?;
    }
    let taken = host.take(&managed, &options)?;
    // Whatever happens in there, the machine and with it every VFIO descriptor is gone when this returns.
    let outcome = run_machine(blueprint, sink, &config.serial, signals);
    let given_back = taken.give_back();
    if let (Err(_), Err(error)) = (&outcome, &given_back) {
        // The other error is the one that is returned.
        log::error!("{error}\n  what is left to be put back:  viaduct restore");
    }
    let outcome = outcome?;
    given_back?;
    Ok(report(&outcome))
}

/// The functions whose drivers are ours to displace.
fn managed(args: &[VfioArg], functions: &[Bdf]) -> Vec<Bdf> {
    let both = args.iter().zip(functions);
    both.filter(|(arg, _)| arg.managed)
        .map(|(_, function)| *function)
        .collect()
}

fn run_machine(
    blueprint: Blueprint,
    sink: Box<dyn Write + Send>,
    serial: &Serial,
    signals: Signals,
) -> Result<Outcome, Box<dyn Error>> {
    let mut events = Events::new(signals).map_err(MachineError::Events)?;
    let mut machine = blueprint.build(sink)?;
    if let Some(signal) = events.pending_signal() {
        return Ok(Outcome::Quit(signal));
    }
    let mut terminal = None;
    if *serial == Serial::Stdio {
        // Raw only now: an error of the assembly is printed to a terminal in its usual mode.
        terminal = RawTerminal::enter().map_err(RunError::Terminal)?;
        input::start(machine.uart(), events.mailbox(), terminal.is_some())
            .map_err(RunError::Input)?;
    }
    let outcome = machine.run(&mut events);
    drop(terminal);
    Ok(outcome?)
}

fn report(outcome: &Outcome) -> ExitCode {
    match outcome {
        Outcome::Shutdown => ExitCode::SUCCESS,
        Outcome::Quit(how) => {
            if io::stderr().is_terminal() {
                eprintln!("\nviaduct: ended by {how}");
            }
            ExitCode::SUCCESS
        }
        Outcome::Died(how) => {
            eprintln!("viaduct: the guest died: {how}");
            ExitCode::from(GUEST_DIED)
        }
        Outcome::Failed(how) => {
            eprintln!("viaduct: the guest cannot go on: {how}");
            ExitCode::FAILURE
        }
    }
}

fn config(args: &RunArgs, assigned: &[(Bdf, Slot)]) -> Config {
    Config {
        kernel: args.kernel.clone(),
        initrd: args.initrd.clone(),
        cmdline: args.cmdline.clone(),
        cpus: args.cpus.into(),
        memory_bytes: args.memory.size_bytes,
        pages: args.memory.pages,
        // The DMA map pins all of RAM one page after the other; populated by several threads first, that is several times faster.
        prefault: args.memory.prefault.unwrap_or(!assigned.is_empty()),
        assigned: assigned.to_vec(),
        serial: args.serial.clone(),
        no_reboot: args.no_reboot,
        stats: args.stats.clone(),
    }
}

/// Which function goes where: as asked, and the others into the first free slots.
fn assign_slots(host: &Host, args: &[VfioArg]) -> Result<Vec<(Bdf, Slot)>, Box<dyn Error>> {
    let mut taken: Vec<Slot> = Vec::new();
    for slot in args.iter().filter_map(|arg| arg.slot) {
        if taken.contains(&slot) {
            return Err(RunError::SlotTwice { slot }.into());
        }
        taken.push(slot);
    }
    let mut assigned: Vec<(Bdf, Slot)> = Vec::new();
    for arg in args {
        let device = host.resolve(&arg.device)?;
        if assigned.iter().any(|(other, _)| *other == device) {
            return Err(RunError::DeviceTwice { device }.into());
        }
        let slot = match arg.slot {
            Some(slot) => slot,
            None => first_free(&taken).ok_or(RunError::NoSlot)?,
        };
        taken.push(slot);
        assigned.push((device, slot));
    }
    let lone = |slot: &&Slot| {
        taken
            .iter()
            .all(|other| (other.device, other.function) != (slot.device, 0))
    };
    match taken.iter().find(lone) {
        Some(&slot) => Err(AssignError::NoFunctionZero(slot).into()),
        None => Ok(assigned),
    }
}

/// A slot none of whose functions is taken. Slot 0 is the host bridge.
fn first_free(taken: &[Slot]) -> Option<Slot> {
    let free = |device: &u8| taken.iter().all(|slot| slot.device != *device);
    (1..32).find(free).map(|device| Slot {
        device,
        function: 0,
    })
}

/// Whether the host can give `config` its memory. The kernel overcommits: it would not refuse, but run out and kill somebody, us
/// with devices in hand if need be. Pages from a pool are counted where they are reserved (`Ram::reserve`).
fn check_memory(config: &Config) -> Result<(), RunError> {
    if config.pages.pool_page().is_some() {
        return Ok(());
    }
    // No figures, no verdict.
    let Ok(meminfo) = fs::read_to_string("/proc/meminfo") else {
        return Ok(());
    };
    enough_memory(&meminfo, config.memory_bytes, config.prefault)
}

/// What is populated, and for devices pinned, has to be there now; the rest may yet be swapped out. From /proc/meminfo (proc(5)).
fn enough_memory(meminfo: &str, wanted: u64, populated: bool) -> Result<(), RunError> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':')
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    };
    let swap = field("SwapTotal").unwrap_or(0);
    let (kib, has) = if populated {
        (field("MemAvailable"), "has free")
    } else {
        (field("MemTotal").map(|ram| ram + swap), "has")
    };
    match kib.map(|kib| kib.saturating_mul(1024)) {
        Some(bytes) if wanted > bytes => Err(RunError::TooMuchMemory {
            mib: wanted >> 20,
            has,
            has_mib: bytes >> 20,
            fits_mib: (bytes / 2) >> 21 << 1,
        }),
        _ => Ok(()),
    }
}

/// What would happen, for `--dry-run`.
fn print_plan(host: &Host, managed: &[Bdf], config: &Config) {
    println!(
        "guest: {} vCPU, {} MiB of RAM",
        config.cpus,
        config.memory_bytes >> 20
    );
    println!("  kernel   {}", config.kernel.display());
    if let Some(initrd) = &config.initrd {
        println!("  initrd   {}", initrd.display());
    }
    println!("  cmdline  {}", config.cmdline);
    for (function, slot) in &config.assigned {
        println!("  00:{slot}  is the host's {function}");
    }
    for step in host.plan(managed) {
        println!("host: {step}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_devices_pin_has_to_be_free_and_other_memory_only_there() {
        let meminfo = "MemTotal: 4194304 kB\nMemFree: 1 kB\nMemAvailable: 2097152 kB\nSwapTotal: 1048576 kB\n";
        let gib = 1 << 30;
        assert!(enough_memory(meminfo, 5 * gib, false).is_ok());
        assert!(enough_memory(meminfo, 5 * gib + 1, false).is_err());
        assert!(enough_memory(meminfo, 2 * gib, true).is_ok());
        let error = enough_memory(meminfo, 3 * gib, true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "3072 MiB of memory are more than this host has free (2048 MiB)\n  give the guest less:  --memory 1024M"
        );
        assert!(enough_memory("", u64::MAX, true).is_ok());
    }
}
