//! The devices of the guest's that are ours: made, and put on its bus.

use std::{io, sync::Arc};

use devices::{
    pci::{Slot, space::PciSpace},
    virtio::{
        Backend, Rng, VirtioFunction, Wiring,
        blk::{Blk, Disk},
        console::Console,
    },
};

use super::{Config, Machine, MachineError};
use crate::{
    kvm::{doorbell::MemoryDoorbells, msi::MsiController},
    net::{self, NetError, Source, Tap},
};

/// What of the host's they are made of.
pub(super) struct Opened {
    pub(super) disks: Vec<Disk>,
    /// A tap that is not there yet is missing here.
    pub(super) taps: Vec<Option<Tap>>,
}

/// Opens the taps that there are. Descriptors first, so that no file of ours has the number of one.
pub(super) fn find_taps(config: &Config) -> Result<Vec<Option<Tap>>, NetError> {
    let mut taps: Vec<Option<Tap>> = config.networks.iter().map(|_| None).collect();
    for descriptors in [true, false] {
        for (net, tap) in config.networks.iter().zip(&mut taps) {
            if matches!(net.source, Source::Descriptor(_)) == descriptors {
                *tap = net.source.find(net.queues)?;
            }
        }
    }
    Ok(taps)
}

impl Machine {
    /// Puts the virtual devices where the configuration says.
    pub(super) fn add_virtual(
        &mut self,
        opened: Opened,
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
        for (number, (disk, slot)) in opened.disks.into_iter().zip(slots).enumerate() {
            let blk = Blk::new(number, disk, self.config.cpus());
            self.disk_counters.push(blk.counters());
            self.plug(slot, Box::new(blk), &wiring, "a disk")?;
        }
        let networks = self.config.networks.clone();
        for (number, (tap, net)) in opened.taps.into_iter().zip(networks).enumerate() {
            let tap = tap.map_or_else(|| net.source.make(net.queues), Ok);
            let tap = (tap.map_err(NetError::from)?, net.vhost);
            let device = net::device(number, net.mac, tap, self.ram.memory())?;
            self.plug(net.slot, Box::new(device), &wiring, "a network interface")?;
        }
        if let Some(slot) = self.config.rng {
            let device = "the source of random numbers";
            let rng = Rng::new().map_err(failed(device))?;
            self.plug(slot, Box::new(rng), &wiring, device)?;
        }
        if let (Some(config), Some(port)) = (&self.config.console, &self.console) {
            let (slot, console) = (config.slot, Console::new(port.clone()));
            self.plug(slot, Box::new(console), &wiring, "the console")?;
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
