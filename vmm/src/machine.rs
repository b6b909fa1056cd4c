//! The machine: assembled in the order it boots in, run until the guest or the person ends it, reset in between.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use arch::{
    acpi::AcpiConfig,
    cpuid::{self, Leaf},
    layout,
    ram::{self as plan, RamRange},
};
use devices::{
    bus::Action,
    mapping::Memslots,
    pci::{
        Bdf, Slot,
        assign::AssignError as BarAssignError,
        root::SlotError,
        space::{PciSpace, Windows},
    },
    uart::Uart,
};
use vfio::{
    assigned::{self, AssignedFunction},
    kernel::{DmaError, DmaTarget, Iommu, IommuError},
};

use crate::{
    boot::{Boot, BootError},
    console::Serial,
    events::{Event, Events},
    kvm::{
        KvmError, Vm, irqchip::IrqchipState, memslots::SlotTable, msi::MsiController,
        routes::Routes,
    },
    platform::{Platform, PlatformError},
    processors::{Processors, ProcessorsError},
    ram::{Pages, Ram, RamError},
    stats::{self, DeviceReport, StartTimes},
    vcpu::{Shared, Stop},
};

/// How long whoever reads the serial port may take over the rest of it once the guest has ended.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

/// What the machine is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// vCPUs.
    pub cpus: u32,
    /// RAM, bytes.
    pub memory_bytes: u64,
    /// What RAM is made of.
    pub pages: Pages,
    /// Populate RAM before the guest starts.
    pub prefault: bool,
    /// Host functions and where they go in the guest.
    pub assigned: Vec<(Bdf, Slot)>,
    /// Where the serial port goes.
    pub serial: Serial,
    /// End at the guest's reboot.
    pub no_reboot: bool,
    /// Where the counters go.
    pub stats: Option<PathBuf>,
}

/// How the machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off, or rebooted under `no_reboot`.
    Shutdown,
    /// The person ended it; how.
    Quit(&'static str),
    /// The guest died; how.
    Died(String),
}

/// The machine cannot be put together, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The kernel image, the initrd or the command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The vCPUs.
    #[error(transparent)]
    Processors(#[from] ProcessorsError),
    /// RAM cannot be laid out.
    #[error(transparent)]
    Plan(#[from] plan::RamError),
    /// RAM cannot be had.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The emulated hardware.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// KVM does not take the RAM.
    #[error("guest memory at {guest:#x}")]
    RamSlot {
        /// Where in the guest.
        guest: u64,
        /// What KVM said.
        source: io::Error,
    },
    /// The serial port's output.
    #[error("--serial")]
    Serial(#[source] io::Error),
    /// What the main thread waits on.
    #[error("waiting for events")]
    Events(#[source] io::Error),
    /// The IOMMU.
    #[error(transparent)]
    Iommu(#[from] IommuError),
    /// RAM cannot be mapped for DMA.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// A host function cannot be opened.
    #[error(transparent)]
    Assign(#[from] assigned::AssignError),
    /// A function cannot be where it was asked for.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The BARs do not fit.
    #[error(transparent)]
    Bars(#[from] BarAssignError),
}

/// A machine.
///
/// Fields are dropped in this order: the vCPUs stop; the devices leave the bus, stop their interrupts and close; the IOMMU lets go
/// of the memory; then the memory goes.
pub struct Machine {
    processors: Processors,
    assigned: Vec<(Slot, Arc<AssignedFunction>)>,
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
}

impl Machine {
    /// Puts the machine together, ready to start. The functions are bound to vfio-pci by now.
    pub fn assemble(config: Config) -> Result<Self, MachineError> {
        let mut start = StartTimes::begin();
        // What can be wrong with the files is said before anything that takes time.
        let boot = Boot::open(&config.kernel, config.initrd.as_deref(), &config.cmdline)?;
        let vm = Vm::create()?;
        let supported = vm.supported_cpuid()?;
        let iommu = open_iommu(&config)?;

        let reserved: Vec<_> = iommu
            .iter()
            .flat_map(|iommu| iommu.reserved())
            .map(|range| range.first..=range.last)
            .collect();
        let ram_layout = plan::plan(config.memory_bytes, &reserved)?;
        plan::check_reach(&ram_layout, cpuid::phys_bits(&supported))?;
        let ram = Ram::reserve(&ram_layout, config.pages)?;
        // Zeroing pages takes longer than everything else together: it goes on beside what follows.
        let populating = config.prefault.then(|| ram.populate());
        start.mark("ram_reserved");

        let memslots = Arc::new(SlotTable::new(vm.fd.clone()));
        for (guest, range) in ram.ranges() {
            memslots
                .map(guest, range)
                .map_err(|source| MachineError::RamSlot { guest, source })?;
        }
        let serial = config.serial.sink().map_err(MachineError::Serial)?;
        let routes = Arc::new(Routes::new(vm.fd.clone()));
        let platform = Platform::assemble(&routes, serial)?;
        let shared = Arc::new(Shared::new(platform.io.clone(), platform.memory.clone()));
        let processors = Processors::create(&vm, config.cpus, &supported, shared)?;
        let irqchip = IrqchipState::read(&vm.fd)?;
        start.mark("processors_made");

        let windows = windows(&ram_layout, &supported);
        let mut machine = Self {
            processors,
            assigned: Vec::new(),
            platform,
            _iommu: iommu.clone(),
            boot,
            windows,
            irqchip,
            vm,
            ram,
            ram_layout,
            config,
            start,
            resets: 0,
        };
        if let Some(iommu) = &iommu {
            machine.assign(iommu, memslots, &MsiController(routes))?;
            machine.start.mark("devices_opened");
        }
        if let Some(populating) = populating {
            populating.wait()?;
            machine.start.mark("ram_populated");
        }
        // After the devices: opening one stops the DMA that its last driver may have left running. Before the guest: no device may
        // be let go with half of the memory in its view.
        if let Some(iommu) = &iommu {
            machine
                .ram
                .ranges()
                .try_for_each(|(guest, range)| iommu.map(guest, range))?;
            machine.start.mark("ram_mapped");
        }
        machine.power_on()?;
        machine.start.mark("loaded");
        Ok(machine)
    }

    /// What can be found wrong with `config` without changing anything.
    pub fn check(config: &Config) -> Result<(), MachineError> {
        Boot::open(&config.kernel, config.initrd.as_deref(), &config.cmdline)?;
        Vm::create()?;
        plan::plan(config.memory_bytes, &[])?;
        Ok(())
    }

    /// Opens the host's functions and puts them on the guest's bus.
    fn assign(
        &mut self,
        iommu: &Arc<Iommu>,
        memslots: Arc<SlotTable>,
        msi: &MsiController,
    ) -> Result<(), MachineError> {
        let space = PciSpace {
            memory: self.platform.memory.clone(),
            io: self.platform.io.clone(),
            memslots,
            windows: self.windows.clone(),
        };
        for &(function, slot) in &self.config.assigned {
            let options = assigned::Options { mmap: true };
            let opened = AssignedFunction::open(iommu, function, options, space.clone(), msi)?;
            self.platform.root.add(slot, opened.clone())?;
            self.assigned.push((slot, opened));
        }
        Ok(())
    }

    /// What firmware would do: addresses for the BARs, the kernel in memory, the boot CPU at its entry.
    fn power_on(&self) -> Result<(), MachineError> {
        self.platform.root.assign_bars(&self.windows)?;
        let acpi = AcpiConfig {
            cpus: self.config.cpus,
            memory64: self.windows.memory64.clone(),
        };
        let registers = self.boot.load(&self.ram_layout, self.ram.memory(), &acpi)?;
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
        self.write_stats();
        // What the guest printed last is often why it ended.
        self.platform.uart.finish(OUTPUT_PATIENCE);
        Ok(ended)
    }

    /// Waits, with the vCPUs running, for what stops them.
    fn wait(&self, events: &mut Events) -> Result<Ended, MachineError> {
        loop {
            return Ok(match events.wait().map_err(MachineError::Events)? {
                Event::Stats => {
                    self.write_stats();
                    continue;
                }
                Event::Quit(how) => Ended::Outcome(Outcome::Quit(how)),
                Event::Stopped { vcpu, stop } => match stop {
                    Stop::Asked | Stop::Guest(Action::None) => continue,
                    Stop::Guest(Action::PowerOff) => Ended::Outcome(Outcome::Shutdown),
                    Stop::Guest(Action::Reset) => Ended::Reset,
                    Stop::Guest(Action::Panicked) => died("it panicked".to_owned()),
                    Stop::TripleFault => died(format!("CPU {vcpu} triple-faulted")),
                    Stop::Failed(how) => died(format!("CPU {vcpu}: {how}")),
                },
            });
        }
    }

    /// Back to power-on, with the vCPUs stopped.
    fn reset(&mut self, events: &Events) -> Result<(), MachineError> {
        // Several vCPUs can have stopped for this one reset.
        events.forget_posted();
        // The devices first: from here on none of them writes to memory or interrupts.
        self.platform.root.reset();
        self.platform.uart.reset();
        self.irqchip.restore(&self.vm.fd)?;
        self.processors.reset()?;
        self.resets += 1;
        self.power_on()
    }

    fn write_stats(&self) {
        let Some(path) = &self.config.stats else {
            return;
        };
        let devices = self.assigned.iter().map(|(slot, function)| DeviceReport {
            host: function.stats().function,
            slot: slot.to_string(),
            trapped_accesses: function.stats().trapped_accesses.to_vec(),
        });
        let vcpus = self.processors.counters();
        if let Err(error) = stats::write(path, &self.start, self.resets, vcpus, devices.collect()) {
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

fn open_iommu(config: &Config) -> Result<Option<Arc<Iommu>>, MachineError> {
    let functions: Vec<Bdf> = config
        .assigned
        .iter()
        .map(|(function, _)| *function)
        .collect();
    if functions.is_empty() {
        Ok(None)
    } else {
        Ok(Some(Iommu::open(&functions)?))
    }
}

/// What the host bridge forwards, as the ACPI tables say it too.
fn windows(ram: &[RamRange], supported: &[Leaf]) -> Windows {
    let io = layout::PCI_IO;
    Windows {
        io: io.start.into()..io.end.into(),
        memory32: layout::PCI_MMIO32,
        memory64: layout::high_window(plan::end(ram), cpuid::phys_bits(supported)),
    }
}
