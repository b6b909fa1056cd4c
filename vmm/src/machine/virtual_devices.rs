//! The devices of the guest's that are ours: made, and put on its bus.

use std::{io, sync::Arc};

use devices::{
    pci::{Slot, space::PciSpace},
    rtl8139,
    virtio::{
        AtStart, Backend, Rng, VirtioFunction, Wiring,
        balloon::Balloon,
        blk::{Blk, Disk},
        console::Console,
        vsock::{Handed, Vsock},
    },
};

use super::{Config, Machine, MachineError, NetConfig, VsockConfig};
use crate::{
    affinity,
    kvm::{doorbell::MemoryDoorbells, intx::SlotPins, msi::MsiController},
    net::{self, Model, NetError, Source, Tap, Vhost},
    uring::Uring,
    vhost::{VhostNet, VhostVsock},
};

/// What of the host's they are made of.
pub(super) struct Opened {
    pub(super) disks: Vec<Disk>,
    /// A tap that is not there yet is missing here.
    pub(super) taps: Vec<Option<Tap>>,
    /// Missing where the kernel's are to be used, whose side needs the guest's RAM.
    pub(super) sockets: Option<Vsock>,
}

/// Opens the taps that there are, and looks whether the others can be made. Descriptors first, so that no file of ours has the number of one.
pub(super) fn find_taps(config: &Config) -> Result<Vec<Option<Tap>>, NetError> {
    let mut taps: Vec<Option<Tap>> = config.networks.iter().map(|_| None).collect();
    for descriptors in [true, false] {
        for (net, tap) in config.networks.iter().zip(&mut taps) {
            if matches!(net.source, Source::Descriptor(_)) == descriptors {
                *tap = net.source.find(net.queues)?;
                if tap.is_none() {
                    net.source.check_make()?;
                }
                if net.vhost == Vhost::On {
                    VhostNet::check()?;
                }
            }
        }
    }
    Ok(taps)
}

/// Makes the host's side of the guest's sockets, or finds that the kernel can.
pub(super) fn open_sockets(config: &Config) -> Result<Option<Vsock>, MachineError> {
    let Some(VsockConfig { cid, socket, .. }) = &config.vsock else {
        return Ok(None);
    };
    match socket {
        Some(path) => Ok(Some(Vsock::new(*cid, path)?)),
        None => {
            VhostVsock::check(*cid).map_err(MachineError::KernelSockets)?;
            Ok(None)
        }
    }
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
            at_start: unpin(&self.config)?,
        };
        let slots: Vec<Slot> = self.config.disks.iter().map(|disk| disk.slot).collect();
        for (number, (disk, slot)) in opened.disks.into_iter().zip(slots).enumerate() {
            let blk = Blk::new(number, disk, self.config.cpus());
            self.disk_counters.push(blk.counters());
            let blk = match Uring::new(wiring.ram.clone()) {
                Ok(ring) => blk.with_ring(Box::new(ring)),
                Err(error) => {
                    log::info!("blk{number}: one request after the other: no io_uring: {error}");
                    blk
                }
            };
            self.plug(slot, Box::new(blk), &wiring, "a disk")?;
        }
        let networks = self.config.networks.clone();
        for (number, (tap, net)) in opened.taps.into_iter().zip(networks).enumerate() {
            let tap = tap.map_or_else(|| net.source.make(net.queues), Ok);
            self.add_network(number, &net, tap.map_err(NetError::from)?, &wiring)?;
        }
        if let Some(slot) = self.config.rng {
            let device = "the source of random numbers";
            let rng = Rng::new().map_err(failed(device))?;
            self.plug(slot, Box::new(rng), &wiring, device)?;
        }
        if let Some(config) = self.config.balloon.clone() {
            let balloon = Balloon::new(config.pages, config.has_reports, self.ram.discard());
            self.balloon = Some(balloon.given());
            self.plug(config.slot, Box::new(balloon), &wiring, "the balloon")?;
        }
        if let (Some(config), Some(port)) = (&self.config.console, &self.console) {
            let (slot, console) = (config.slot, Console::new(port.clone()));
            self.plug(slot, Box::new(console), &wiring, "the console")?;
        }
        if let Some(config) = self.config.vsock.clone() {
            let vsock = match opened.sockets {
                Some(vsock) => Box::new(vsock) as Box<dyn Backend>,
                None => self.kernel_sockets(config.cid)?,
            };
            self.plug(config.slot, vsock, &wiring, "the sockets")?;
        }
        Ok(())
    }

    fn kernel_sockets(&self, cid: u32) -> Result<Box<dyn Backend>, MachineError> {
        let kernel =
            VhostVsock::open(cid, self.ram.memory()).map_err(MachineError::KernelSockets)?;
        log::info!("vsock0: the kernel (vhost) carries its data");
        let features = kernel.features();
        Ok(Box::new(Handed::new(cid, features, Box::new(kernel))))
    }

    fn add_network(
        &mut self,
        number: usize,
        net: &NetConfig,
        tap: Tap,
        wiring: &Wiring<'_>,
    ) -> Result<(), MachineError> {
        if net.model == Model::Virtio {
            let tap = (tap, net.vhost);
            let device = net::device(number, net.mac, tap, self.ram.memory())?;
            return self.plug(net.slot, Box::new(device), wiring, "a network interface");
        }
        let wiring = rtl8139::Wiring {
            space: wiring.space,
            intx: Arc::new(SlotPins::new(self.vm.fd.clone(), net.slot.device)),
            ram: wiring.ram.clone(),
        };
        let card = net::card(number, net.mac, tap, &wiring)?;
        self.platform.root.add(net.slot, card.clone())?;
        self.virtual_devices.push((net.slot, card));
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

/// Threads of devices run where this one may, not where the vCPU does that starts them.
fn unpin(config: &Config) -> Result<AtStart, MachineError> {
    if config.processors.pin.is_empty() {
        return Ok(Arc::new(|| {}));
    }
    let allowed = affinity::allowed().map_err(failed("a thread of a device"))?;
    Ok(Arc::new(move || {
        if let Err(error) = affinity::run_on(&allowed) {
            log::warn!("a thread of a device stays with the vCPU that started it: {error}");
        }
    }))
}

fn failed(device: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::Virtual { device, source }
}
