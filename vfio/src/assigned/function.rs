//! The function as the PCI root sees it.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use devices::{
    bus::Action,
    interrupt::MsiSource,
    pci::{
        Bdf, Function,
        bar::{BarError, BarSpec, Bars, Decoded, REGISTERS},
        capabilities::find,
        msi::{Msi, MsiLayout},
        msix::{Msix, MsixLocation},
        registers::{CAP_MSI, CAP_MSIX, HEADER_MULTIFUNCTION, HEADER_TYPE},
        space::{PciSpace, Placements, Region},
    },
};

use super::{
    bars,
    config::{self, Config, Write},
    interrupts::{At, Interrupts},
    reset,
    trap::{BarTrap, Counters},
};
use crate::kernel::{HostFunction, Iommu, IommuDeviceError, IrqIndex, RegionIndex, RegionInfo};

/// How a function is assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Lets the guest reach BARs without an exit where possible (`mmap=off` does not).
    pub mmap: bool,
    /// It is function 0 of a slot that has more.
    pub multifunction: bool,
}

/// A host function cannot be assigned.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] IommuDeviceError),
    /// It does not answer what it is.
    #[error("{function}: {what} cannot be read")]
    Read {
        /// Its name on the host.
        function: Bdf,
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A bridge, or no configuration space at all.
    #[error(
        "{function}: its header is of type {header_type:#x}: only endpoints (type 0) can be assigned"
    )]
    NotAnEndpoint {
        /// Its name on the host.
        function: Bdf,
        /// What it says it is.
        header_type: u8,
    },
    /// It has BARs that no device can have.
    #[error("{function}")]
    Bars {
        /// Its name on the host.
        function: Bdf,
        /// Which, and why not.
        source: BarError,
    },
    /// There are no interrupts for it.
    #[error("{function}: no interrupt vectors")]
    Interrupts {
        /// Its name on the host.
        function: Bdf,
        /// Why not.
        source: io::Error,
    },
}

/// What a function cost, for `--stats`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FunctionStats {
    /// Its name on the host.
    pub function: String,
    /// Accesses to each BAR that made the guest exit.
    pub trapped_accesses: [u64; bars::BARS],
}

/// A function of the host's on the guest's bus.
///
/// Holds the device and, through it, the IOMMU. Dropping it takes it off the bus and stops it.
pub struct AssignedFunction {
    name: Bdf,
    // Before `host`: what is placed refers to the device.
    state: Mutex<State>,
    counters: [Arc<Counters>; bars::BARS],
    host: Arc<dyn HostFunction>,
}

/// What the guest can change.
pub(super) struct State {
    pub(super) name: Bdf,
    pub(super) config: Config,
    // No copy of BAR addresses anywhere else: these registers say what is where.
    pub(super) bars: Bars,
    pub(super) placements: Placements,
    pub(super) interrupts: Arc<Interrupts>,
}

/// What was read of a device before anything was made of it.
struct Probed {
    region: RegionInfo,
    image: Vec<u8>,
    regions: Vec<RegionInfo>,
    specs: Vec<BarSpec>,
    msi: Option<MsiLayout>,
    msix: Option<MsixLocation>,
}

impl AssignedFunction {
    /// Opens `function` and resets it.
    ///
    /// To be called before RAM is mapped for DMA: opening and resetting is what stops a DMA engine that the last driver left running.
    pub fn open(
        iommu: &Arc<Iommu>,
        function: Bdf,
        options: Options,
        space: PciSpace,
        msi: &dyn MsiSource,
    ) -> Result<Arc<Self>, AssignError> {
        let host = Arc::new(iommu.device(function)?);
        Self::new(host, function, options, space, msi)
    }

    /// Assigns a device that is open, whatever it is behind.
    pub fn new(
        host: Arc<dyn HostFunction>,
        name: Bdf,
        options: Options,
        space: PciSpace,
        source: &dyn MsiSource,
    ) -> Result<Arc<Self>, AssignError> {
        let probed = Probed::new(&*host, name)?;
        let bars = Bars::new(&probed.specs).map_err(|source| AssignError::Bars {
            function: name,
            source,
        })?;
        let config = Config::new(
            host.clone(),
            probed.region.clone(),
            probed.image.clone(),
            probed.msi,
            probed.msix,
            options.multifunction,
        );
        let interrupts = probed.interrupts(host.clone(), &config, source);
        let interrupts = Arc::new(interrupts.map_err(|source| AssignError::Interrupts {
            function: name,
            source,
        })?);
        let counters: [Arc<Counters>; bars::BARS] = Default::default();
        let regions = probed.place(&host, &interrupts, &counters, options.mmap);
        let mut state = State {
            name,
            config,
            bars,
            placements: Placements::new(space, regions),
            interrupts,
        };
        if !host.can_reset() {
            log::warn!("{name}: the device cannot be reset; the guest gets it as it is");
        }
        reset::reset(&*host, &mut state);
        Ok(Arc::new(Self {
            name,
            state: Mutex::new(state),
            counters,
            host,
        }))
    }

    /// Its name on the host.
    pub fn name(&self) -> Bdf {
        self.name
    }

    /// What it cost until now.
    pub fn stats(&self) -> FunctionStats {
        let accesses = |counters: &Arc<Counters>| counters.accesses.load(Ordering::Relaxed);
        FunctionStats {
            function: self.name.to_string(),
            trapped_accesses: self.counters.each_ref().map(accesses),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
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
            Write::FunctionReset => reset::reset(&*self.host, state),
            // Off the bus before the device stops to answer, on it once it does: touching a mapping of a device that does not
            // decode is a SIGBUS.
            Write::Decoding(command) => {
                state.placements.retain(&state.bars.decoded(command));
                state.config.write(at, data);
                if Bars::contains(offset) {
                    state.bars.write(offset, data);
                }
                state.interrupts.config_write(at, data);
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
        reset::reset(&*self.host, &mut self.state());
    }
}

impl Drop for AssignedFunction {
    fn drop(&mut self) {
        reset::stop(&mut self.state());
    }
}

impl State {
    /// Makes the bus look as the registers say.
    fn place(&mut self) {
        let wanted: Vec<Decoded> = self.bars.decoded(self.config.decoding());
        self.placements.reconcile(&wanted);
    }
}

impl Probed {
    fn new(host: &dyn HostFunction, function: Bdf) -> Result<Self, AssignError> {
        let failed = |what| {
            move |source| AssignError::Read {
                function,
                what,
                source,
            }
        };
        let region = host.region(RegionIndex::CONFIG);
        let region = region.map_err(failed("where its configuration space is"))?;
        let image = config::image(host, &region).map_err(failed("its configuration space"))?;
        let header_type = image[HEADER_TYPE] & !HEADER_MULTIFUNCTION;
        if header_type != 0 {
            return Err(AssignError::NotAnEndpoint {
                function,
                header_type,
            });
        }
        let regions = bars::regions(host).map_err(failed("the size of its BARs"))?;
        let specs = bars::specs(&image, &regions);
        let count = |index| host.irq(index).map_or(0, |irq| irq.count);
        let capability = |id| find(&image, id).and_then(|at| image.get(at..));
        let msi = capability(CAP_MSI).and_then(MsiLayout::parse);
        let msix = capability(CAP_MSIX).and_then(MsixLocation::parse);
        // What cannot be modelled is hidden, and a driver that can do without does.
        let msi = msi.filter(|_| count(IrqIndex::Msi) > 0);
        let msix = msix.filter(|msix| u32::from(msix.vectors) <= count(IrqIndex::Msix));
        let msix = msix.filter(|msix| bars::holds(&specs, msix));
        if capability(CAP_MSIX).is_some() && msix.is_none() {
            log::warn!("{function}: its MSI-X capability makes no sense and is hidden");
        }
        Ok(Self {
            region,
            image,
            regions,
            specs,
            msi,
            msix,
        })
    }

    fn interrupts(
        &self,
        host: Arc<dyn HostFunction>,
        config: &Config,
        source: &dyn MsiSource,
    ) -> io::Result<Interrupts> {
        let (msi_at, msix_at) = config.capabilities();
        let msi = msi_at.zip(self.msi).map(|(offset, layout)| At {
            offset,
            model: Msi::new(layout),
        });
        let msix = msix_at.zip(self.msix).map(|(offset, location)| At {
            offset,
            model: Msix::new(location.vectors),
        });
        Interrupts::new(host, source, msi, msix)
    }

    /// What each BAR decodes to.
    fn place(
        &self,
        host: &Arc<dyn HostFunction>,
        interrupts: &Arc<Interrupts>,
        counters: &[Arc<Counters>; bars::BARS],
        mmap: bool,
    ) -> [Option<Region>; REGISTERS] {
        let mut placed: [Option<Region>; REGISTERS] = Default::default();
        for spec in &self.specs {
            let region = &self.regions[spec.index];
            let table = self.msix.filter(|msix| msix.table_bar == spec.index);
            let table = table.map(|msix| bars::table_range(&msix));
            let pba = self.msix.filter(|msix| msix.pba_bar == spec.index);
            let direct = match mmap && spec.kind.is_memory() {
                true => bars::direct(&**host, region, table.clone()),
                false => Vec::new(),
            };
            let trap = BarTrap {
                host: host.clone(),
                region: region.clone(),
                interrupts: interrupts.clone(),
                table: table.unwrap_or_default(),
                pba: pba.map(|msix| bars::pba_range(&msix)).unwrap_or_default(),
                counters: counters[spec.index].clone(),
            };
            placed[spec.index] = Some(Region {
                len: spec.size,
                device: Arc::new(trap),
                direct,
            });
        }
        placed
    }
}
