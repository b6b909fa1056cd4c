//! From what the machine is to be to a machine, in two steps: what can be found wrong before any device is touched, and the rest.

use std::{io::Write, sync::Arc};

use arch::{
    cpuid::{self, Leaf},
    layout,
    ram::{self as plan, RamRange},
    smbios,
};
use devices::{
    mapping::Memslots,
    pci::space::{PciSpace, Windows},
    virtio::console::Port,
};
use vfio::{
    Assignable,
    assigned::{self, AssignedFunction, Wiring},
    kernel::{DmaTarget, GuestLink, Interface, Iommu},
};

use super::{
    Config, Machine, MachineError,
    display::Display,
    refusals::Refusals,
    virtual_devices::{Opened, find_taps, open_sockets},
};
use crate::{
    boot::Boot,
    kvm::{
        Vm, intx::SlotPins, irqchip::IrqchipState, memslots::SlotTable, msi::MsiController,
        routes::Routes, vfio_device::VfioDevice,
    },
    platform::Platform,
    processors::{self, Processors},
    ram::{self, Ram},
    stats::StartTimes,
    vcpu::Shared,
};

/// A machine on paper: its files are open and bootable, KVM is there, and it fits. No device of the host has been touched.
pub struct Blueprint {
    config: Config,
    start: StartTimes,
    boot: Boot,
    vm: Vm,
    supported: Vec<Leaf>,
    opened: Opened,
}

impl Blueprint {
    /// Looks at everything that can be wrong on a host whose devices are still with their drivers.
    pub fn draw(config: Config) -> Result<Self, MachineError> {
        let start = StartTimes::begin();
        let boot = Boot::open(&config.kernel, config.initrd.as_deref(), &config.cmdline)?;
        for assignment in &config.assigned {
            assignment.options.check()?;
        }
        let disks = config.disks.iter();
        let disks = disks.map(|disk| disk.open()).collect::<Result<_, _>>()?;
        let opened = Opened {
            taps: find_taps(&config)?,
            sockets: open_sockets(&config)?,
            disks,
        };
        let vm = Vm::create()?;
        let supported = vm.supported_cpuid()?;
        processors::check(&vm, &config.processors, &supported)?;
        // The real layout goes around what the IOMMU reserves, which only the devices' groups know; this is the best case.
        let ram_layout = plan::plan(config.memory_bytes, &[])?;
        plan::check_reach(&ram_layout, cpuid::phys_bits(&supported))?;
        ram::check(&ram_layout, config.backing.pages)?;
        boot.place(&ram_layout)?;
        smbios::tables(&config.smbios, &ram_layout)?;
        Ok(Self {
            config,
            start,
            boot,
            vm,
            supported,
            opened,
        })
    }

    /// Builds it, ready to start, with `serial` behind its serial port and `console` behind the virtio one. The functions are bound to
    /// vfio-pci by now.
    pub fn build(
        self,
        serial: Box<dyn Write + Send>,
        console: Option<Arc<Port>>,
    ) -> Result<Machine, MachineError> {
        let Self {
            config,
            mut start,
            boot,
            vm,
            supported,
            opened,
        } = self;
        let iommu = open_iommu(&config, &vm)?;
        let ram_layout = lay_ram(&config, iommu.as_deref(), &supported)?;
        let ram = Ram::reserve(&ram_layout, config.backing)?;
        // Zeroing pages takes longer than everything else together: it goes on beside what follows.
        let mib = config.memory_bytes >> 20;
        let populating = config.prefault.then(|| {
            log::info!("populating {mib} MiB of guest memory");
            ram.populate()
        });
        let memslots = place_ram(&ram, &config, &vm)?;
        start.mark("ram_reserved");

        let routes = Arc::new(Routes::new(vm.fd.clone()));
        let platform = Platform::assemble(&routes, serial)?;
        let asks = config.core.is_some();
        let fw_cfg = asks.then(|| platform.add_fw_cfg(ram.shared()));
        let shared = Shared::new(platform.io.clone(), platform.memory.clone());
        let root = platform.root.clone();
        let shared = Arc::new(shared.withdrawing(move || root.withdraw_silent()));
        let processors = Processors::create(&vm, &config.processors, &supported, shared)?;
        let irqchip = IrqchipState::read(&vm.fd)?;
        start.mark("processors_made");

        let windows = windows(&ram_layout, &supported);
        let assigned = Vec::new();
        let resets = 0;
        let mut machine = Machine {
            processors,
            assigned,
            virtual_devices: Vec::new(),
            disk_counters: Vec::new(),
            fw_cfg: fw_cfg.transpose()?,
            balloon: None,
            console,
            display: None,
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
            resets,
            refusals: Refusals::default(),
        };
        let space = machine.pci_space(memslots);
        let msi = MsiController(routes);
        if let Some(iommu) = &iommu {
            machine.assign(iommu, &space, &msi)?;
            machine.start.mark("devices_opened");
        }
        machine.add_virtual(opened, &space, &msi)?;
        if let Some(populating) = populating {
            populating.wait()?;
            machine.start.mark("ram_populated");
        }
        // After the devices: opening one stops the DMA that its last driver may have left running. Before the guest: no device may
        // be let go with half of the memory in its view.
        if let Some(iommu) = &iommu {
            log::info!("mapping {mib} MiB for the devices' DMA");
            machine
                .ram
                .ranges()
                .try_for_each(|(guest, range)| iommu.map(guest, range))?;
            machine.start.mark("ram_mapped");
        }
        log::info!("loading {}", machine.config.kernel.display());
        machine.power_on()?;
        machine.start.mark("loaded");
        Ok(machine)
    }
}

impl Machine {
    /// Where BARs go, of all functions.
    fn pci_space(&self, memslots: Arc<SlotTable>) -> PciSpace {
        let (memory, io) = (self.platform.memory.clone(), self.platform.io.clone());
        PciSpace::new(memory, io, memslots, self.windows.clone())
    }

    /// Opens the host's functions and puts them on the guest's bus.
    fn assign(
        &mut self,
        iommu: &Arc<Iommu>,
        space: &PciSpace,
        msi: &MsiController,
    ) -> Result<(), MachineError> {
        let dma: Arc<dyn DmaTarget> = iommu.clone();
        let peers = (self.config.assigned.len() > 1).then_some(&dma);
        for assignment in &self.config.assigned {
            let (device, slot) = (&assignment.device, assignment.slot);
            let wiring = Wiring {
                space,
                msi,
                intx: Arc::new(SlotPins::new(self.vm.fd.clone(), slot.device)),
                peers,
            };
            log::info!("{device}: opening it, as 00:{slot} of the guest");
            let opened = AssignedFunction::open(iommu, device, &assignment.options, wiring)?;
            self.platform.root.add(slot, opened.clone())?;
            if assignment.options.vga {
                self.display = Some(Display::new(opened.clone()));
            }
            self.assigned.push((slot, opened));
        }
        // All of them are open now: who is on one bus can be reset with it.
        assigned::reset_opened(&self.functions());
        Ok(())
    }
}

/// The address space of the assigned functions' DMA, if there are any. KVM learns of their files.
fn open_iommu(config: &Config, vm: &Vm) -> Result<Option<Arc<Iommu>>, MachineError> {
    let assigned = config.assigned.iter();
    let devices: Vec<Assignable> = assigned.map(|one| one.device.clone()).collect();
    if devices.is_empty() {
        return Ok(None);
    }
    let found = config.interface.or_else(Interface::of_host);
    // Without either, the container's error says what to load.
    let interface = found.unwrap_or(Interface::Container);
    log::info!("mapping for DMA through the {interface} interface");
    let link: Arc<dyn GuestLink> = Arc::new(VfioDevice::create(&vm.fd)?);
    Ok(Some(Iommu::open(interface, &devices, &link)?))
}

/// Where RAM goes: around what devices cannot reach, and within what the CPUs can.
fn lay_ram(
    config: &Config,
    iommu: Option<&Iommu>,
    supported: &[Leaf],
) -> Result<Vec<RamRange>, MachineError> {
    let reserved = iommu.map_or(Vec::new(), Iommu::reserved);
    let reserved: Vec<_> = reserved
        .iter()
        .map(|range| range.first..=range.last)
        .collect();
    let ram_layout = plan::plan(config.memory_bytes, &reserved)?;
    plan::check_reach(&ram_layout, cpuid::phys_bits(supported))?;
    Ok(ram_layout)
}

/// Lets the guest have the RAM.
fn place_ram(ram: &Ram, config: &Config, vm: &Vm) -> Result<Arc<SlotTable>, MachineError> {
    let memslots = Arc::new(SlotTable::new(vm.fd.clone()));
    let has_vga = config.assigned.iter().any(|one| one.options.vga);
    // What lies under a display's legacy addresses nobody can reach, as behind real ones.
    let pieces = match has_vga {
        true => ram.around(&layout::VGA_MEMORY),
        false => ram.ranges().collect(),
    };
    for (guest, range) in pieces {
        memslots
            .map(guest, range)
            .map_err(|source| MachineError::RamSlot { guest, source })?;
    }
    Ok(memslots)
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
