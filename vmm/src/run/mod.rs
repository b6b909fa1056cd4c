//! `viaduct run`: devices taken, machine assembled and run, devices given back on every way out.

mod balloon;
mod consoles;
mod memory;
mod plan;
mod slots;
mod smbios;

use std::{
    error::Error,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use devices::pci::{Bdf, Slot};
use vfio::{
    Assignable,
    host::{BindOptions, Host, Mac, limits},
};

use self::consoles::Consoles;
use crate::{
    binding::Ended,
    cli::{VfioArg, run::RunArgs},
    events::Events,
    machine::{Assignment, Blueprint, Config, MachineError, Outcome},
    output,
    processors::ProcessorsConfig,
    publish,
    ram::Backing,
    signals::Signals,
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
    #[error("--{option}\n  name a file that can be written, or stdio, pty or null")]
    Console {
        option: &'static str,
        source: io::Error,
    },
    #[error(
        "--serial and --console are both to be standard input and output, which one can be\n  \
         have the console there alone:  --console stdio --serial null\n  \
         or on a terminal of its own:   --console pty"
    )]
    TwoOnStdio,
    #[error("--credential {}\n  name a file that can be read", path.display())]
    Credential { path: PathBuf, source: io::Error },
    #[error("{option} {}\n  name a file that can be written", path.display())]
    File {
        option: &'static str,
        path: PathBuf,
        source: io::Error,
    },
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
        "--balloon together with {device}: the device may reach any of the guest's memory at any time, so all of it stays pinned. \
         What the guest gives up the host would not get, and a page that the guest takes back would not be the one the device knows\n  \
         leave --balloon out{less}",
        less = less(*fits_mib)
    )]
    BalloonWithDevice {
        device: Assignable,
        /// What the guest would have had left, where it was to give something up.
        fits_mib: Option<u64>,
    },
    #[error(
        "--balloon together with huge pages of a pool: a pool takes back whole ones only, and the guest gives pages of 4 KiB\n  \
         leave one of them out; with --memory SIZE,hugepages=thp the kernel makes huge pages of ordinary ones"
    )]
    BalloonOfPool,
    #[error(
        "--balloon {mib}M of {memory_mib} MiB leaves too little to live: {least_mib} MiB at least\n  take less:  --balloon {fits_mib}M"
    )]
    BalloonTooLarge {
        mib: u64,
        memory_mib: u64,
        least_mib: u64,
        fits_mib: u64,
    },
    #[error(
        "slot {slot} is asked for twice\n  give each device an addr= of its own, or leave it out"
    )]
    SlotTwice { slot: Slot },
    #[error("{tap} is named twice\n  give each --net a tap of its own")]
    TapTwice { tap: String },
    #[error(
        "{device} is a mediated device, whose MAC address only the driver that makes it can set\n  leave mac= out"
    )]
    NoMac { device: Assignable },
    #[error("{device} is named twice\n  name each device once")]
    DeviceTwice { device: Assignable },
    #[error(
        "vga=on for both {first} and {second}: the legacy VGA addresses are there once\n  \
         leave it out for one of them; its own memory and registers do not need it"
    )]
    VgaTwice {
        first: Assignable,
        second: Assignable,
    },
    #[error(
        "all 31 slots of the guest's bus are taken\n  put several into one:  addr=06.0, addr=06.1"
    )]
    NoSlot,
    #[error(
        "the terminal cannot be set to raw mode\n  leave it out:  viaduct run … < /dev/null, or --serial FILE"
    )]
    Terminal(#[source] io::Error),
    #[error("no thread to read in what is typed\n  allow more:  ulimit -u")]
    Input(#[source] io::Error),
}

/// The rest of advice to give a guest less memory.
fn less(fits_mib: Option<u64>) -> String {
    let advice = fits_mib.map(|mib| format!(", and give the guest less:  --memory {mib}M"));
    advice.unwrap_or_default()
}

/// `viaduct run`
pub fn run(args: &RunArgs) -> Ended {
    let host = Host::new();
    let asked = slots::asked(args)?;
    let assigned = slots::assign(&host, &args.vfio, &asked)?;
    let places = slots::place(args, &asked, &assigned)?;
    let node = memory::node(&host, &assigned);
    let config = config(args, assigned, places, node)?;
    consoles::check(&config)?;
    memory::check(&config)?;
    balloon::check(&config)?;
    // From here on a signal waits until it can be answered in good order.
    let signals = Signals::block()?;
    let blueprint = Blueprint::draw(config.clone())?;
    let managed = functions(&args.vfio, &config.assigned, true);
    let unmanaged = functions(&args.vfio, &config.assigned, false);
    let options = BindOptions {
        force: args.force,
        macs: macs(&args.vfio, &config.assigned, true),
        guest: args.name.clone(),
        ..BindOptions::default()
    };
    // All that can be refused is refused before anything is changed.
    host.check_take(&managed, &options)?;
    host.check_free(&unmanaged)?;
    for assignment in &config.assigned {
        if let Assignable::Mediated(uuid) = &assignment.device {
            host.check_mediated(uuid)?;
        }
    }
    if args.dry_run {
        output::print(&plan::text(&host, &managed, &config, &args.file))?;
        return Ok(ExitCode::SUCCESS);
    }

    let (consoles, sink) = Consoles::open(&config)?;
    for (option, path) in [("--stats", &config.stats), ("--core", &config.core)] {
        if let Some(path) = path {
            let path = path.clone();
            let failed = |source| RunError::File {
                option,
                path: path.clone(),
                source,
            };
            publish::check(&path).map_err(failed)?;
        }
    }
    if !config.assigned.is_empty() {
        let devices = config.assigned.len() as u64;
        limits::allow_locked(config.memory_bytes)?;
        limits::allow_open_files(BASE_DESCRIPTORS + USUAL_VECTORS * devices)?;
    }
    host.load_vfio(&managed)?;
    let asked = macs(&args.vfio, &config.assigned, false);
    for &function in &unmanaged {
        // Nobody notes the address that it had: what is bound by hand is put back by hand.
        let mac = asked.iter().find(|(of, _)| *of == function);
        host.prepare_function(function, mac.map(|(_, mac)| *mac))?;
    }
    let mut events = Events::new(signals).map_err(MachineError::Events)?;
    let taken = host.take(&managed, &options)?;
    watch_faults(&host, &config, &mut events);
    // Whatever happens in there, the machine and with it every VFIO descriptor is gone when this returns.
    let outcome = run_machine(blueprint, sink, &consoles, &mut events);
    let given_back = taken.give_back();
    if let (Err(_), Err(error)) = (&outcome, &given_back) {
        // The other error is the one that is returned.
        log::error!("{error}\n  what is left to be put back:  viaduct restore");
    }
    let outcome = outcome?;
    given_back?;
    Ok(report(&outcome))
}

/// The addresses that are asked for, of functions whose drivers are ours to displace, or of those whose are not.
fn macs(args: &[VfioArg], assigned: &[Assignment], managed: bool) -> Vec<(Bdf, Mac)> {
    let both = args.iter().zip(assigned);
    both.filter(|(arg, _)| arg.managed == managed)
        .filter_map(|(arg, assignment)| Some((assignment.device.function()?, Mac(arg.mac?))))
        .collect()
}

/// The functions whose drivers are ours to displace, or those whose are not.
fn functions(args: &[VfioArg], assigned: &[Assignment], managed: bool) -> Vec<Bdf> {
    let both = args.iter().zip(assigned);
    both.filter(|(arg, _)| arg.managed == managed)
        .filter_map(|(_, assignment)| assignment.device.function())
        .collect()
}

/// Listens to what the IOMMU refuses the devices, from before they can reach anything. A machine does without where the log is not ours
/// to read.
fn watch_faults(host: &Host, config: &Config, events: &mut Events) {
    let devices = config.assigned.iter();
    let devices: Vec<Bdf> = devices.filter_map(|one| one.device.function()).collect();
    if devices.is_empty() {
        return;
    }
    let log = host.fault_log(&devices);
    if let Err(error) = log.and_then(|log| events.watch_faults(log)) {
        log::debug!("/dev/kmsg: {error}: DMA that the IOMMU refuses will not be told of");
    }
}

fn run_machine(
    blueprint: Blueprint,
    sink: Box<dyn Write + Send>,
    consoles: &Consoles,
    events: &mut Events,
) -> Result<Outcome, Box<dyn Error>> {
    let mut machine = blueprint.build(sink, consoles.port())?;
    if let Some(signal) = events.pending_signal() {
        return Ok(Outcome::Quit(signal));
    }
    let terminal = consoles.connect(&machine, &events.mailbox())?;
    let outcome = machine.run(events);
    drop(terminal);
    let outcome = outcome?;
    if let Outcome::Died(_) = outcome
        && let Err(error) = machine.keep_remains(events)
    {
        // How it died is what is returned.
        log::error!("{error}");
    }
    Ok(outcome)
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

fn config(
    args: &RunArgs,
    assigned: Vec<Assignment>,
    places: slots::Places,
    node: Option<u32>,
) -> Result<Config, RunError> {
    Ok(Config {
        kernel: args.kernel.clone(),
        initrd: args.initrd.clone(),
        cmdline: args.cmdline.clone(),
        processors: ProcessorsConfig {
            topology: args.cpus.topology,
            model: args.cpus.model,
            pin: args.cpus.pin.clone(),
        },
        memory_bytes: args.memory.size_bytes,
        backing: Backing {
            pages: args.memory.pages,
            is_shared: args.memory.is_shared,
            node,
        },
        // The DMA map pins all of RAM one page after the other; populated by several threads first, that is several times faster.
        prefault: args.memory.prefault.unwrap_or(!assigned.is_empty()),
        assigned,
        disks: places.disks,
        networks: places.networks,
        rng: places.rng,
        smbios: smbios::config(args)?,
        console: places.console,
        vsock: places.vsock,
        balloon: places.balloon,
        interface: args.iommu_backend.0,
        serial: args.serial.clone(),
        no_reboot: args.no_reboot,
        core: args.core.clone(),
        stats: args.stats.clone(),
    })
}
