//! The legacy VGA addresses of a display (`vga=on`): memory from 0xa0000 on, ports from 0x3b0 and 0x3c0 on (PCI 3.0, appendix D,
//! class 03 00; VFIO_PCI_VGA_REGION_INDEX). They are in no BAR: the function claims them whenever it decodes memory and ports.
//!
//! Every access exits, and the kernel turns the host's VGA routing to this device for it (vfio_pci_vga_rw in
//! drivers/vfio/pci/vfio_pci_rdwr.c), whoever else had it. So the guest's addresses are the device's, of which a machine has one.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use devices::{
    bus::{Action, Bus, BusDevice},
    pci::{
        registers::{COMMAND_IO, COMMAND_MEMORY},
        space::PciSpace,
    },
};

use super::{failures::Failures, probe::AssignError};
use crate::{
    Assignable,
    kernel::{HostFunction, RegionIndex, RegionInfo},
};

/// Frame buffer and text.
const MEMORY: Range<u64> = 0xa_0000..0xc_0000;
/// Registers of monochrome and of colour adapters, as far as the region has them. Ports are numbered in it as on the bus.
const PORTS: [Range<u64>; 2] = [0x3b0..0x3bc, 0x3c0..0x3e0];

/// The legacy VGA addresses, and whether they are on the buses now.
pub(super) struct Vga {
    space: PciSpace,
    memory: Part,
    ports: [Part; 2],
    counters: Arc<VgaCounters>,
}

/// How often they made the guest exit.
#[derive(Default)]
struct VgaCounters {
    accesses: AtomicU64,
    failures: Failures,
}

/// One range of addresses.
struct Part {
    range: Range<u64>,
    device: Arc<dyn BusDevice>,
    is_placed: bool,
}

impl Vga {
    /// Those of a function, in `space`; not placed yet.
    pub(super) fn find(
        host: &Arc<dyn HostFunction>,
        function: &Assignable,
        space: &PciSpace,
    ) -> Result<Self, AssignError> {
        let region = host.region(RegionIndex::VGA);
        let region = region.map_err(|source| AssignError::Read {
            function: function.clone(),
            what: "whether it is a VGA device",
            source,
        })?;
        if region.size < MEMORY.end {
            return Err(AssignError::NotVga(function.clone()));
        }
        let counters = Arc::<VgaCounters>::default();
        let part = |range: Range<u64>| Part {
            device: Arc::new(VgaTrap {
                host: host.clone(),
                region: region.clone(),
                start: range.start,
                counters: counters.clone(),
            }),
            range,
            is_placed: false,
        };
        Ok(Self {
            space: space.clone(),
            memory: part(MEMORY),
            ports: PORTS.map(part),
            counters,
        })
    }

    /// Takes away what does not answer under `command`. To be called before the hardware stops to decode.
    pub(super) fn retain(&mut self, command: u16) {
        if command & COMMAND_MEMORY == 0 {
            self.memory.take_off(&self.space.memory);
        }
        if command & COMMAND_IO == 0 {
            for part in &mut self.ports {
                part.take_off(&self.space.io);
            }
        }
    }

    /// Places what answers under `command`. To be called once the hardware decodes.
    pub(super) fn fill(&mut self, command: u16) {
        if command & COMMAND_MEMORY != 0 {
            self.memory.put_on(&self.space.memory);
        }
        if command & COMMAND_IO != 0 {
            for part in &mut self.ports {
                part.put_on(&self.space.io);
            }
        }
    }

    /// How often they made the guest exit.
    pub(super) fn accesses(&self) -> u64 {
        self.counters.accesses.load(Ordering::Relaxed)
    }
}

impl Drop for Vga {
    fn drop(&mut self) {
        self.retain(0);
    }
}

impl Part {
    fn put_on(&mut self, bus: &Bus) {
        let Range { start, end } = self.range;
        if !self.is_placed {
            match bus.insert(start, end - start, self.device.clone()) {
                Ok(()) => self.is_placed = true,
                // Nothing else of the machine's is there, and no window for BARs.
                Err(error) => log::error!("legacy VGA addresses cannot be placed: {error}"),
            }
        }
    }

    fn take_off(&mut self, bus: &Bus) {
        if std::mem::take(&mut self.is_placed) {
            bus.remove(self.range.start);
        }
    }
}

/// Hands accesses to the device, whose region has them at their legacy addresses.
struct VgaTrap {
    host: Arc<dyn HostFunction>,
    region: RegionInfo,
    start: u64,
    counters: Arc<VgaCounters>,
}

impl VgaTrap {
    fn count(&self) {
        self.counters.accesses.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, address: u64, error: &std::io::Error) {
        if let Some(number) = self.counters.failures.count() {
            log::debug!("VGA {address:#x}: failed access number {number}: {error}");
        }
    }
}

impl BusDevice for VgaTrap {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.count();
        let address = self.start.saturating_add(offset);
        if let Err(error) = self.host.read(&self.region, address, data) {
            data.fill(0xff);
            self.failed(address, &error);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        self.count();
        let address = self.start.saturating_add(offset);
        if let Err(error) = self.host.write(&self.region, address, data) {
            self.failed(address, &error);
        }
        Action::None
    }
}
