//! The machine: run until the guest or the person ends it, reset in between. How it is put together is in `blueprint`.

mod blueprint;
mod config;
mod display;
mod error;
mod refusals;
mod virtual_devices;

pub use blueprint::Blueprint;
pub use config::{
    Assignment, BalloonConfig, Config, ConsoleConfig, DiskConfig, NetConfig, VsockConfig,
};
pub use error::MachineError;
pub use refusals::Refused;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arch::{acpi::AcpiConfig, ram::RamRange, smbios};
use devices::{
    bus::Action,
    fw_cfg::FwCfg,
    pci::{Function, Slot, space::Windows},
    uart::Uart,
    virtio::{blk::Counters, console::Port},
};
use vfio::{
    Assignable,
    assigned::{self, AssignedFunction, Notice},
    kernel::Iommu,
};
use vm_memory::{Bytes, GuestAddress};

use self::refusals::Refusals;
use crate::{
    boot::{Boot, BootError},
    console::{self, Side},
    core_file::Remains,
    events::{Event, Events},
    kvm::{Vm, irqchip::IrqchipState},
    platform::Platform,
    processors::Processors,
    ram::Ram,
    stats::{self, DeviceReport, DiskReport, StartTimes},
    vcpu::Stop,
};

use self::display::Display;

/// How long whoever reads the serial port may take over the rest of it once the guest has ended.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

/// How the machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off, or rebooted under `no_reboot`.
    Shutdown,
    /// The person ended it; how.
    Quit(&'static str),
    /// The guest died; how.
    Died(String),
    /// The host could not run it any further; why.
    Failed(String),
}

/// A machine.
///
/// Fields are dropped in this order: the vCPUs stop; the devices leave the bus, stop their interrupts, KVM lets go of them and they
/// close; the IOMMU has KVM let go of the groups, since a group that anybody holds keeps its mappings, and lets go of the memory;
/// then the memory goes.
pub struct Machine {
    processors: Processors,
    assigned: Vec<(Slot, Arc<AssignedFunction>)>,
    virtual_devices: Vec<(Slot, Arc<dyn Function>)>,
    /// Of the configuration's disks, in their order.
    disk_counters: Vec<Arc<Counters>>,
    /// Where the guest's kernel says what it is, if that is of interest when it dies.
    fw_cfg: Option<Arc<FwCfg>>,
    /// How many pages are in the balloon.
    balloon: Option<Arc<AtomicU64>>,
    console: Option<Arc<Port>>,
    display: Option<Display>,
    platform: Platform,
    _iommu: Option<Arc<Iommu>>,
    boot: Boot,
    windows: Windows,
    irqchip: IrqchipState,
    vm: Vm,
    ram: Ram,
    ram_layout: Vec<RamRange>,
    config: Config,
    start: StartTimes,
    resets: u64,
    refusals: Refusals,
}

impl Machine {
    /// What firmware would do: addresses for the BARs, the kernel in memory, the boot CPU at its entry.
    fn power_on(&self) -> Result<(), MachineError> {
        self.platform.root.assign_bars(&self.windows)?;
        let acpi = AcpiConfig {
            topology: self.config.processors.topology,
            memory64: self.windows.memory64.clone(),
            has_vga: self.display.is_some(),
            has_fw_cfg: self.fw_cfg.is_some(),
        };
        let memory = self.ram.memory();
        let functions = self.assigned.iter().map(|(_, function)| &**function);
        display::describe_outputs(functions, memory).map_err(BootError::Memory)?;
        let screen = match &self.display {
            Some(display) => display.light(memory).map_err(BootError::Memory)?,
            None => None,
        };
        let registers = self
            .boot
            .load(&self.ram_layout, memory, &acpi, screen.as_ref())?;
        let tables = smbios::tables(&self.config.smbios, &self.ram_layout)?;
        for (address, table) in tables {
            let written = memory.write_slice(&table, GuestAddress(address));
            written.map_err(BootError::Memory)?;
        }
        self.processors.enter(&registers)?;
        Ok(())
    }

    /// The serial port, for whoever brings it input.
    pub fn uart(&self) -> Arc<Uart> {
        self.platform.uart.clone()
    }

    /// Runs the guest until something ends it.
    pub fn run(&mut self, events: &mut Events) -> Result<Outcome, MachineError> {
        if self.config.stats.is_some() {
            events.tick().map_err(MachineError::Events)?;
        }
        for (_, function) in &self.assigned {
            if let Err(error) = events.watch(function) {
                let name = function.name();
                log::warn!(
                    "{name}: the host cannot say when it wants it back or it fails: {error}"
                );
            }
        }
        self.start.mark("running");
        let ended = loop {
            self.processors.start(&events.mailbox())?;
            let ended = self.wait(events)?;
            self.processors.stop()?;
            match ended {
                Ended::Reset if self.config.no_reboot => break Outcome::Shutdown,
                Ended::Reset => self.reset(events)?,
                Ended::Outcome(outcome) => break outcome,
            }
        };
        self.refusals.note(&events.refused());
        self.write_stats();
        // What the guest printed last is often why it ended.
        self.platform.uart.finish(OUTPUT_PATIENCE);
        if let Some(console) = &self.console {
            console.finish(OUTPUT_PATIENCE);
        }
        Ok(ended)
    }

    /// Keeps what is left of a guest that died, if that is wanted. It may take a while: who ends viaduct meanwhile does not get it.
    pub fn keep_remains(&self, events: &mut Events) -> Result<(), MachineError> {
        let Some(path) = &self.config.core else {
            return Ok(());
        };
        let mib = self.ram.len_bytes() >> 20;
        eprintln!(
            "viaduct: the guest died: writing its {mib} MiB of memory to {}",
            path.display()
        );
        let remains = Remains {
            memory: self.ram.memory(),
            ranges: &self.ram_layout,
            cpus: self.processors.registers()?,
            note: self.fw_cfg.as_ref().and_then(|fw_cfg| fw_cfg.note()),
        };
        Ok(remains.write(path, || events.pending_signal())?)
    }

    /// Waits, with the vCPUs running, for what stops them.
    fn wait(&mut self, events: &mut Events) -> Result<Ended, MachineError> {
        loop {
            return Ok(match events.wait().map_err(MachineError::Events)? {
                Event::Stats => {
                    self.write_stats();
                    continue;
                }
                Event::Refused(faults) => {
                    self.refusals.note(&faults);
                    continue;
                }
                Event::Resized => {
                    self.resize_console();
                    continue;
                }
                Event::Quit(how) => Ended::Outcome(Outcome::Quit(how)),
                Event::Host { device, notice } => failed(told(&device, notice)),
                Event::Stopped { vcpu, stop } => match stop {
                    Stop::Asked | Stop::Guest(Action::None) => continue,
                    Stop::Guest(Action::PowerOff) => Ended::Outcome(Outcome::Shutdown),
                    Stop::Guest(Action::Reset) => Ended::Reset,
                    Stop::Guest(Action::Panicked) => died("it panicked".to_owned()),
                    Stop::TripleFault(at) => {
                        let at = at.map(|at| format!(" at {at:#x}")).unwrap_or_default();
                        died(format!("CPU {vcpu} triple-faulted{at}"))
                    }
                    Stop::Failed(how) => failed(format!("CPU {vcpu}: {how}")),
                },
            });
        }
    }

    /// Tells the guest of its terminal's size.
    fn resize_console(&self) {
        let wanted = self.config.console.as_ref();
        let is_on_terminal = wanted.is_some_and(|console| console.side == Side::Stdio);
        if let (true, Some(port), Some(size)) =
            (is_on_terminal, &self.console, console::terminal_size())
        {
            port.resize(size);
        }
    }

    /// Back to power-on, with the vCPUs stopped.
    fn reset(&mut self, events: &Events) -> Result<(), MachineError> {
        // Several vCPUs can have stopped for this one reset.
        events.forget_stops();
        // The devices first: from here on none of them writes to memory or interrupts.
        self.platform.root.reset();
        assigned::reset_devices(&self.functions());
        self.platform.uart.reset();
        if let Some(fw_cfg) = &self.fw_cfg {
            fw_cfg.reset();
        }
        self.irqchip.restore(&self.vm.fd)?;
        self.processors.reset()?;
        self.resets += 1;
        self.power_on()
    }

    /// The host's functions that are in the guest.
    fn functions(&self) -> Vec<Arc<AssignedFunction>> {
        let functions = self.assigned.iter();
        functions.map(|(_, function)| function.clone()).collect()
    }

    fn write_stats(&self) {
        let Some(path) = &self.config.stats else {
            return;
        };
        let devices = self.assigned.iter().zip(&self.config.assigned);
        let devices = devices.map(|((slot, function), config)| DeviceReport {
            slot: slot.to_string(),
            id: config.id.clone(),
            stats: function.stats(),
            refused_dma: self.refusals.of(function.name().function()),
        });
        let disks = self.config.disks.iter().zip(&self.disk_counters);
        let disks = disks.map(|(disk, counters)| DiskReport {
            slot: disk.slot.to_string(),
            path: disk.path.clone(),
            counts: counters.counts(),
        });
        let (devices, disks) = (devices.collect(), disks.collect());
        let given = self.balloon.as_ref();
        let balloon_bytes = given.map(|pages| pages.load(Ordering::Relaxed) << 12);
        let vcpus = self.processors.counters();
        if let Err(error) = stats::write(
            path,
            &self.start,
            self.resets,
            vcpus,
            devices,
            disks,
            balloon_bytes,
        ) {
            log::warn!("--stats {}: {error}", path.display());
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A function knows the buses, which know the root, which knows the function: taking it off the root is what lets it go.
        // The vCPUs are stopped by then, so nobody is inside it.
        if let Err(error) = self.processors.stop() {
            log::error!("{error}");
        }
        self.display = None;
        for (slot, _) in self.virtual_devices.drain(..) {
            self.platform.root.remove(slot);
        }
        for (slot, function) in self.assigned.drain(..) {
            self.platform.root.remove(slot);
            debug_assert_eq!(
                Arc::strong_count(&function),
                1,
                "somebody keeps {slot} open"
            );
        }
    }
}

/// Why the vCPUs stopped, for the machine.
enum Ended {
    Reset,
    Outcome(Outcome),
}

fn died(how: String) -> Ended {
    Ended::Outcome(Outcome::Died(how))
}

fn failed(how: String) -> Ended {
    Ended::Outcome(Outcome::Failed(how))
}

/// Why the guest has to end, since a device cannot be taken from it while it runs.
fn told(device: &Assignable, notice: Notice) -> String {
    match notice {
        Notice::Wanted => format!("the host wants {device} back"),
        Notice::Failed => format!(
            "{device} reported an error that it cannot correct\n  see which:  dmesg | grep -e AER -e {device}"
        ),
    }
}
