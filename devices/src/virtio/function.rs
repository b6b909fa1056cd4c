//! A virtio device on the guest's PCI bus: configuration space, capabilities, the BAR and its doorbells.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    Backend,
    device::Device,
    registers::{CAP_NOTIFY, CAP_PCI_CONFIG, DEVICE_BASE, VENDOR},
    window::{self, BAR, NOTIFY_STRIDE, Window},
};
use crate::{
    bus::{Action, BusDevice},
    doorbell::{Doorbell, Doorbells},
    interrupt::MsiSource,
    mapping::GuestRam,
    pci::{
        Function,
        bar::{BarSpec, Bars, REGISTERS},
        config::{ConfigSpace, Identity},
        msix::MSIX_CAPABILITY_LEN,
        registers::{
            CAP_MSIX, CAP_VENDOR, CAPABILITIES, COMMAND_MASTER, HEADER_END, STATUS,
            STATUS_CAPABILITIES,
        },
        space::{PciSpace, Placements, Region},
    },
};

/// Length of a virtio capability in bytes, without what follows it in some (§4.1.4).
const CAPABILITY_LEN: u8 = 16;
/// Where in it the BAR's number, the offset and the length are.
const CAPABILITY_BAR: usize = 4;
const CAPABILITY_OFFSET: usize = 8;
const CAPABILITY_LENGTH: usize = 12;
/// Where the data of the window in configuration space is in its capability.
const WINDOW_DATA: usize = 16;

/// What of the machine a device is connected to.
#[derive(Clone)]
pub struct Wiring<'a> {
    /// Where its BAR goes.
    pub space: &'a PciSpace,
    /// Where its interrupts go.
    pub msi: &'a dyn MsiSource,
    /// What its driver rings by.
    pub doorbells: Arc<dyn Doorbells>,
    /// What it reads and writes.
    pub ram: Arc<dyn GuestRam>,
    /// What its thread does first. A vCPU starts it, and it begins with what is set for that.
    pub at_start: AtStart,
}

/// What a thread does first.
pub type AtStart = Arc<dyn Fn() + Send + Sync>;

/// A virtio device on the guest's bus. Dropping it stops it.
pub struct VirtioFunction {
    /// Taken before `device`.
    state: Mutex<State>,
    device: Arc<Mutex<Device>>,
    doorbells: Arc<dyn Doorbells>,
    window: Arc<Window>,
    msix_at: usize,
    window_at: usize,
}

struct State {
    config: ConfigSpace,
    bars: Bars,
    placements: Placements,
    /// Where the doorbells hang, and they.
    hung: Option<(u64, Vec<Box<dyn Doorbell>>)>,
}

impl VirtioFunction {
    /// Puts `backend` behind a PCI function.
    pub fn new(backend: Box<dyn Backend>, wiring: &Wiring<'_>) -> io::Result<Arc<Self>> {
        let device = Device::new(
            backend,
            wiring.msi,
            wiring.ram.clone(),
            wiring.at_start.clone(),
        )?;
        let mut config = ConfigSpace::new(&identity(&device));
        let (msix_at, window_at) = add_capabilities(&mut config, &device)?;
        let bars = Bars::new(&[window::SPEC]).map_err(io::Error::other)?;
        let device = Arc::new(Mutex::new(device));
        let window = Arc::new(Window(device.clone()));
        let mut regions = [const { None }; REGISTERS];
        regions[BAR] = Some(Region {
            len: window::SPEC.size,
            device: window.clone(),
            direct: Vec::new(),
        });
        let placements = Placements::new(wiring.space.clone(), regions);
        Ok(Arc::new(Self {
            state: Mutex::new(State {
                config,
                bars,
                placements,
                hung: None,
            }),
            device,
            doorbells: wiring.doorbells.clone(),
            window,
            msix_at,
            window_at,
        }))
    }

    /// What its thread and its messages are called.
    pub fn name(&self) -> String {
        self.device().kind.name.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the BAR to where the registers say, and the doorbells with it: off before it goes, on once it is there.
    fn place(&self, state: &mut State) {
        let wanted = state.bars.decoded(state.config.command());
        let goes_to = wanted.first().map(|decoded| decoded.address);
        state.hung.take_if(|(at, _)| Some(*at) != goes_to);
        state.placements.reconcile(&wanted);
        let is_at = state.placements.address(BAR);
        if let (Some(at), None) = (is_at, &state.hung) {
            state.hung = Some((at, self.hang(at)));
        }
    }

    /// A doorbell that cannot hang costs an exit each time it is rung, and nothing else.
    fn hang(&self, at: u64) -> Vec<Box<dyn Doorbell>> {
        let device = self.device();
        let bells = device.bells.iter().enumerate();
        bells
            .filter_map(|(queue, bell)| {
                let address = at.checked_add(window::doorbell(queue))?;
                let hung = self.doorbells.hang(address, bell);
                hung.inspect_err(|error| {
                    log::warn!(
                        "{}: queue {queue} is rung by exits: {error}",
                        device.kind.name
                    );
                })
                .ok()
            })
            .collect()
    }

    /// The access to the BAR that the window in configuration space stands for, if its registers name one (§4.1.4.9).
    fn window_access(&self, state: &mut State) -> Option<(u64, usize)> {
        let registers = state.config.registers();
        let bar = registers.dword(self.window_at + CAPABILITY_BAR) & 0xff;
        let offset = u64::from(registers.dword(self.window_at + CAPABILITY_OFFSET));
        let len = registers.dword(self.window_at + CAPABILITY_LENGTH);
        let is_access = bar == 0
            && matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len.into())
            && offset < window::SPEC.size;
        is_access.then_some((offset, usize::try_from(len).ok()?))
    }
}

fn identity(device: &Device) -> Identity {
    let id = DEVICE_BASE.saturating_add(device.kind.device_type);
    Identity {
        vendor: VENDOR,
        device: id,
        // §4.1.2.1: 1 or higher for what is no transitional device, and a subsystem ID of 0x40 or higher.
        revision: 1,
        class: device.kind.class,
        subsystem_vendor: VENDOR,
        subsystem: id,
    }
}

/// Writes the list of capabilities; where MSI-X and the window in configuration space are in it.
fn add_capabilities(config: &mut ConfigSpace, device: &Device) -> io::Result<(usize, usize)> {
    let registers = config.registers();
    registers.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
    let mut all = Vec::new();
    let vectors = u16::try_from(device.msix.vectors()).map_err(io::Error::other)?;
    let mut msix = vec![CAP_MSIX, 0, 0, 0];
    msix.extend(window::msix(vectors).registers());
    debug_assert_eq!(msix.len(), MSIX_CAPABILITY_LEN);
    all.push(msix);
    let structures = window::structures(device).into_iter();
    for (kind, place) in structures.filter(|(_, place)| !place.is_empty()) {
        let mut capability = virtio_capability(kind, place.start, place.end - place.start);
        if kind == CAP_NOTIFY {
            capability.extend(NOTIFY_STRIDE.to_le_bytes().iter().take(4));
        }
        all.push(capability);
    }
    let mut window = virtio_capability(CAP_PCI_CONFIG, 0, 0);
    window.extend([0; 4]);
    all.push(window);

    let (mut link, mut at) = (CAPABILITIES, HEADER_END);
    let mut places = Vec::new();
    for capability in all {
        // They end before 0xb0.
        registers.set(link, &[u8::try_from(at).map_err(io::Error::other)?]);
        let len = u8::try_from(capability.len()).map_err(io::Error::other)?;
        registers.set(at, &capability);
        if capability[0] == CAP_VENDOR {
            registers.set(at + 2, &[len]);
        }
        places.push(at);
        link = at + 1;
        at += capability.len();
    }
    let (first, last) = (places[0], places[places.len() - 1]);
    registers.allow(last + CAPABILITY_BAR, &[0xff]);
    registers.allow(last + CAPABILITY_OFFSET, &[0xff; 8]);
    Ok((first, last))
}

/// A capability that names a structure in the BAR. Its length and link are set where it goes.
fn virtio_capability(kind: u8, offset: u64, len: u64) -> Vec<u8> {
    let mut capability = vec![CAP_VENDOR, 0, CAPABILITY_LEN, kind, 0, 0, 0, 0];
    capability.extend(offset.to_le_bytes().iter().take(4));
    capability.extend(len.to_le_bytes().iter().take(4));
    capability
}

impl Function for VirtioFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let state = &mut *self.state();
        let at = usize::from(offset);
        if at == self.window_at + WINDOW_DATA {
            data.fill(0);
            if let Some((offset, len)) = self.window_access(state) {
                let mut read = [0; 4];
                self.window.read(offset, &mut read[..len]);
                data.iter_mut().zip(read).for_each(|(to, from)| *to = from);
            }
        } else if Bars::contains(offset) {
            state.bars.read(offset, data);
        } else {
            state.config.read(offset, data);
            if let Some(within) = at.checked_sub(self.msix_at) {
                self.device().msix.capability_read(within, data);
            }
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Action {
        let state = &mut *self.state();
        let at = usize::from(offset);
        if at == self.window_at + WINDOW_DATA {
            if let Some((offset, len)) = self.window_access(state)
                && let Some(data) = data.get(..len)
            {
                return self.window.write(offset, data);
            }
        } else if Bars::contains(offset) {
            state.bars.write(offset, data);
            self.place(state);
        } else {
            let before = state.config.command();
            state.config.write(offset, data);
            if before & !state.config.command() & COMMAND_MASTER != 0 {
                self.device().halt();
            }
            if let Some(within) = at.checked_sub(self.msix_at) {
                let device = &mut *self.device();
                let changes = device.msix.capability_write(within, data);
                device.interrupts.route(&changes);
            }
            self.place(state);
        }
        Action::None
    }

    fn bars(&self) -> Vec<BarSpec> {
        vec![window::SPEC]
    }

    fn assign_bar(&self, index: usize, address: u64) {
        let state = &mut *self.state();
        state.bars.assign(index, address);
        self.place(state);
    }

    fn reset(&self) {
        let state = &mut *self.state();
        self.device().power_on();
        state.config.reset();
        state.bars.reset();
        self.place(state);
    }
}

#[cfg(test)]
mod tests;
