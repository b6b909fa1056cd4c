//! The devices of the guest's that are ours: made, and put on its bus.

use std::{io, sync::Arc};

use devices::{
    pci::{Slot, space::PciSpace},
    virtio::{
        Backend, Rng, VirtioFunction, Wiring,
        blk::{Blk, Disk},
    },
};

use super::{Machine, MachineError};
use crate::kvm::{doorbell::MemoryDoorbells, msi::MsiController};

impl Machine {
    /// Puts the virtual devices where the configuration says; `disks` are its disks, open.
    pub(super) fn add_virtual(
        &mut self,
        disks: Vec<Disk>,
        space: &PciSpace,
        msi: &MsiController,
    ) -> Result<(), MachineError> {
        let wiring = Wiring {
            space,
            msi,
            doorbells: Arc::new(MemoryDoorbells(self.vm.fd.clone())),
            ram: self.ram.shared(),
        };
        let slots: Vec<Slot> = self.config.disks.iter().map(|disk| disk.slot).collect();
        for (number, (disk, slot)) in disks.into_iter().zip(slots).enumerate() {
            let blk = Blk::new(number, disk, self.config.cpus);
            self.plug(slot, Box::new(blk), &wiring, "a disk")?;
        }
        if let Some(slot) = self.config.rng {
            let device = "the source of random numbers";
            let rng = Rng::new().map_err(failed(device))?;
            self.plug(slot, Box::new(rng), &wiring, device)?;
        }
        Ok(())
    }

    fn plug(
        &mut self,
        slot: Slot,
        backend: Box<dyn Backend>,
        wiring: &Wiring<'_>,
        device: &'static str,
    ) -> Result<(), MachineError> {
        let function = VirtioFunction::new(backend, wiring).map_err(failed(device))?;
        log::info!("{}: 00:{slot} of the guest", function.name());
        self.platform.root.add(slot, function.clone())?;
        self.virtual_devices.push((slot, function));
        Ok(())
    }
}

fn failed(device: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::Virtual { device, source }
}
