//! The function as the PCI root sees it.

mod firmware;
mod stats;

pub use stats::FunctionStats;

use std::{
    io,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use devices::{
    bus::Action,
    interrupt::{IntxSource, MsiSource},
    pci::{
        Function,
        bar::{BarSpec, Bars, Decoded, ROM_INDEX},
        space::{PciSpace, Placements},
    },
};

use super::{
    bars,
    config::{Config, Write},
    interrupts::Interrupts,
    notice::Notice,
    options::{MsixTable, Options},
    peers::Peers,
    probe::{AssignError, Probed},
    reset::{self, ResetStats},
    rom::ExpansionRom,
    specific::Specific,
    trap::Counters,
    vga::Vga,
};
use crate::{
    Assignable,
    host::Host,
    kernel::{DmaTarget, HostFunction, Iommu},
};

/// What of the machine a function is connected to.
#[derive(Clone)]
pub struct Wiring<'a> {
    /// Where its BARs go.
    pub space: &'a PciSpace,
    /// Where its message-signalled interrupts go.
    pub msi: &'a dyn MsiSource,
    /// What its pin is wired to, in the slot where it goes.
    pub intx: Arc<dyn IntxSource>,
    /// Where other devices of the machine reach its BARs, if there are others.
    pub peers: Option<&'a Arc<dyn DmaTarget>>,
}

/// A function of the host's on the guest's bus.
///
/// Holds the device and, through it, the IOMMU. Dropping it takes it off the bus and stops it.
pub struct AssignedFunction {
    name: Assignable,
    // Before `host`: what is placed refers to the device.
    state: Mutex<State>,
    counters: [Arc<Counters>; bars::BARS],
    peers: Arc<Peers>,
    rom: Option<Arc<ExpansionRom>>,
    specific: Vec<Specific>,
    host: Arc<dyn HostFunction>,
}

/// What the guest can change.
pub(super) struct State {
    pub(super) name: Assignable,
    pub(super) config: Config,
    // No copy of BAR addresses anywhere else: these registers say what is where.
    pub(super) bars: Bars,
    pub(super) placements: Placements,
    pub(super) vga: Option<Vga>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) resets: ResetStats,
}

impl AssignedFunction {
    /// Opens `function`, which resets it if it can be reset alone; `reset_opened` does the rest.
    ///
    /// To be called before RAM is mapped for DMA: opening is what stops a DMA engine that the last driver left running.
    pub fn open(
        iommu: &Arc<Iommu>,
        name: &Assignable,
        options: &Options,
        wiring: Wiring<'_>,
    ) -> Result<Arc<Self>, AssignError> {
        let host = Arc::new(iommu.device(name)?);
        Self::new(host, name, options, &wiring)
    }

    /// Assigns a device that is open, whatever it is behind.
    pub fn new(
        host: Arc<dyn HostFunction>,
        name: &Assignable,
        options: &Options,
        wiring: &Wiring<'_>,
    ) -> Result<Arc<Self>, AssignError> {
        let mut probed = Probed::new(&*host, name)?;
        if options.msix == MsixTable::Relocated {
            probed.relocate_msix(name);
        }
        let rom = ExpansionRom::find(&host, name, &probed.image, &options.rom)?;
        let mut specs = probed.specs.clone();
        specs.extend(rom.as_ref().map(|rom| rom.spec()));
        let bars = Bars::new(&specs).map_err(|source| AssignError::Bars {
            function: name.clone(),
            source,
        })?;
        let mut config = Config::new(
            host.clone(),
            probed.region.clone(),
            probed.image.clone(),
            probed.msi,
            probed.msix,
        );
        if let Some(pin) = probed.pin {
            config.wire_pin(pin, wiring.intx.line(pin));
        }
        let specific = Specific::all(&*host, name);
        if specific.iter().any(Specific::is_opregion) {
            // Where the host has it is nothing to the guest.
            config.show_opregion_at(0);
        }
        let interrupts = probed.interrupts(host.clone(), &config, wiring);
        let interrupts = Arc::new(interrupts.map_err(|source| AssignError::Interrupts {
            function: name.clone(),
            source,
        })?);
        let counters: [Arc<Counters>; bars::BARS] = Default::default();
        let mut regions = probed.place(&host, &interrupts, &counters, name, options.mmap);
        regions[ROM_INDEX] = rom.clone().map(ExpansionRom::placed);
        let peers = Arc::new(Peers::new(name));
        if let Some(dma) = wiring.peers {
            peers.let_in(dma, &mut regions);
        }
        let vga = options.vga.then(|| Vga::find(&host, name, wiring.space));
        let mut state = State {
            name: name.clone(),
            vga: vga.transpose()?,
            config,
            bars,
            placements: Placements::new(wiring.space.clone(), regions),
            interrupts,
            resets: ResetStats::opened(&*host),
        };
        reset::stop(&mut state);
        state.try_pin()?;
        Ok(Arc::new(Self {
            name: name.clone(),
            state: Mutex::new(state),
            counters,
            peers,
            rom,
            specific,
            host,
        }))
    }

    /// Its name on the host.
    pub fn name(&self) -> &Assignable {
        &self.name
    }

    /// Has the host's kernel signal `eventfd` when it has that to say, until the function is dropped; false where it never will.
    pub fn notify(&self, notice: Notice, eventfd: BorrowedFd<'_>) -> io::Result<bool> {
        notice.arm(&*self.host, eventfd)
    }

    pub(super) fn host(&self) -> &dyn HostFunction {
        &*self.host
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Function for AssignedFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let state = self.state();
        let at = usize::from(offset);
        state.config.read(at, data);
        if Bars::contains(offset) {
            state.bars.read(offset, data);
        }
        state.interrupts.config_read(at, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Action {
        let state = &mut *self.state();
        let at = usize::from(offset);
        match state.config.foresee(at, data) {
            Write::FunctionReset => reset::function_level(&*self.host, state),
            // Off the bus before the device stops to answer, on it once it does: touching a mapping of a device that does not
            // decode is a SIGBUS.
            Write::Decoding(command) => {
                state.retain(command);
                state.config.write(at, data);
                if Bars::contains(offset) {
                    state.bars.write(offset, data);
                }
                state.interrupts.config_write(at, data);
                state.follow_pin();
                state.place();
            }
        }
        Action::None
    }

    fn bars(&self) -> Vec<BarSpec> {
        self.state().bars.specs().to_vec()
    }

    fn assign_bar(&self, index: usize, address: u64) {
        let mut state = self.state();
        state.bars.assign(index, address);
        state.place();
    }

    fn reset(&self) {
        reset::quieten(&mut self.state());
    }

    fn withdraw_if_silent(&self) -> bool {
        let mut state = self.state();
        let silent = state.config.finds_silence();
        if silent {
            state.place();
            let name = &self.name;
            log::warn!(
                "{name}: it stopped to answer where its BARs are mapped: the guest finds nothing there until it enables them again\n  \
                 it may be asleep, or gone; see whether the kernel said why:  lspci -vvs {name}; dmesg | tail"
            );
        }
        silent
    }
}

impl Drop for AssignedFunction {
    fn drop(&mut self) {
        reset::stop(&mut self.state());
    }
}

impl State {
    /// Sees whether the host lets the pin be listened to: when the guest wants it, it is too late to refuse. A function that can do
    /// without is shown without.
    fn try_pin(&mut self) -> Result<(), AssignError> {
        if let Err(source) = self.interrupts.try_pin() {
            self.do_without_pin(source)?;
            self.interrupts.give_up_pin();
            self.config.wire_pin(0, 0);
        }
        Ok(())
    }

    /// Refuses the function if all that it lacks is that somebody else leaves its interrupt line.
    fn do_without_pin(&self, source: io::Error) -> Result<(), AssignError> {
        let name = &self.name;
        if source.raw_os_error() != Some(libc::EBUSY) {
            log::warn!("{name}: its INTx pin cannot be had, so the guest sees none: {source}");
            return Ok(());
        }
        let line = name.function();
        let line = line.and_then(|function| Host::new().interrupt_line(function));
        let error = AssignError::Pin {
            function: name.clone(),
            line,
            source,
        };
        let (msi, msix) = self.config.capabilities();
        if msi.or(msix).is_none() {
            return Err(error);
        }
        log::warn!("{error}\n  until then the guest sees no pin and has to use MSI or MSI-X");
        Ok(())
    }

    /// Has the pin listened to, or not, as the registers say.
    fn follow_pin(&mut self) {
        let is_heard = self.interrupts.follow_pin(self.config.is_on());
        self.config.hear_pin(is_heard);
    }

    /// Takes off the bus what does not decode under `command`.
    pub(super) fn retain(&mut self, command: u16) {
        self.placements.retain(&self.bars.decoded(command));
        if let Some(vga) = &mut self.vga {
            vga.retain(command);
        }
    }

    /// Makes the bus look as the registers say.
    fn place(&mut self) {
        let command = self.config.decoding();
        let wanted: Vec<Decoded> = self.bars.decoded(command);
        self.placements.reconcile(&wanted);
        if let Some(vga) = &mut self.vga {
            vga.retain(command);
            vga.fill(command);
        }
    }
}
