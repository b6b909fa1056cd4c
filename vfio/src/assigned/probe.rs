//! What a device says it is, before anything is made of it.

use std::{io, sync::Arc};

use devices::pci::{
    bar::{BarError, BarSpec, REGISTERS},
    capabilities::find,
    msi::{Msi, MsiLayout},
    msix::{Msix, MsixLocation},
    registers::{CAP_MSI, CAP_MSIX, HEADER_MULTIFUNCTION, HEADER_TYPE, INTERRUPT_PIN},
    space::Region,
};

use super::{
    bars,
    config::{self, Config},
    function::Wiring,
    interrupts::{At, Interrupts},
    intx::Pin,
    relocation::{self, Stays},
    rom::RomFileError,
    trap::{BarTrap, Counters},
};
use crate::{
    Assignable,
    host::InterruptLine,
    kernel::{HostFunction, IommuError, IrqIndex, RegionIndex, RegionInfo},
};

/// A host function cannot be assigned.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] IommuError),
    /// It does not answer what it is.
    #[error(
        "{function}: {what} cannot be read\n  it may be gone, or hang:  ls {}; dmesg | tail", function.sysfs().display()
    )]
    Read {
        /// Its name on the host.
        function: Assignable,
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A bridge, or no configuration space at all.
    #[error(
        "{function}: its header is of type {header_type:#x}: only endpoints (type 0) can be assigned\n  \
         see which devices there are:  viaduct list"
    )]
    NotAnEndpoint {
        /// Its name on the host.
        function: Assignable,
        /// What it says it is.
        header_type: u8,
    },
    /// It has BARs that no device can have.
    #[error(
        "{function}\n  it breaks the PCI specification; show what it says in a report:  lspci -vvxxxs {function}"
    )]
    Bars {
        /// Its name on the host.
        function: Assignable,
        /// Which, and why not.
        source: BarError,
    },
    /// It interrupts by its pin alone, and the host's line of that is not to be had.
    #[error(
        "{function}: its INTx pin cannot share {}\n  {}",
        line_name(line.as_ref()), line_advice(line.as_ref())
    )]
    Pin {
        /// Its name on the host.
        function: Assignable,
        /// The host's line, and who has it.
        line: Option<InterruptLine>,
        /// What the kernel said.
        source: io::Error,
    },
    /// It has no legacy VGA addresses to give.
    #[error(
        "{0}: vga=on, but VFIO has no VGA addresses of it\n  \
         see whether it is a VGA device (class 0300), and whether this kernel can do it:  \
         lspci -nns {0}; grep VFIO_PCI_VGA /boot/config-$(uname -r)\n  \
         its own memory and registers do not need vga=on: leave it out"
    )]
    NotVga(Assignable),
    /// What was to be its ROM is none.
    #[error(transparent)]
    Rom(#[from] RomFileError),
    /// There are no interrupts for it.
    #[error(
        "{function}: no interrupt vectors\n  the host may have none left, or too few open files allowed:  dmesg | tail; ulimit -n"
    )]
    Interrupts {
        /// Its name on the host.
        function: Assignable,
        /// Why not.
        source: io::Error,
    },
}

fn line_name(line: Option<&InterruptLine>) -> String {
    let Some(InterruptLine { number, users }) = line else {
        return "its interrupt line, which is in use".to_owned();
    };
    match users.is_empty() {
        true => format!("IRQ {number}, which is in use"),
        false => format!("IRQ {number} with {}", users.join(" and ")),
    }
}

/// What to do where the line is taken. A device cannot share one if it has no INTx disable bit that works: the kernel could
/// only mask the line for everybody on it (vfio_intx_enable in drivers/vfio/pci/vfio_pci_intrs.c).
fn line_advice(line: Option<&InterruptLine>) -> String {
    let functions = line.map_or(Vec::new(), InterruptLine::functions);
    match functions.as_slice() {
        [] => "see who has it, and take it away from there:  cat /proc/interrupts".to_owned(),
        others => {
            let others: Vec<_> = others.iter().map(ToString::to_string).collect();
            format!(
                "take it from the other driver:  viaduct bind {}",
                others.join(" ")
            )
        }
    }
}

/// What was read of a device before anything was made of it.
pub(super) struct Probed {
    pub(super) region: RegionInfo,
    pub(super) image: Vec<u8>,
    pub(super) regions: Vec<RegionInfo>,
    pub(super) specs: Vec<BarSpec>,
    pub(super) msi: Option<MsiLayout>,
    pub(super) msix: Option<MsixLocation>,
    /// The INTx pin: 1 is INTA, 4 is INTD.
    pub(super) pin: Option<u8>,
}

impl Probed {
    pub(super) fn new(host: &dyn HostFunction, function: &Assignable) -> Result<Self, AssignError> {
        let failed = |what| {
            move |source| AssignError::Read {
                function: function.clone(),
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
                function: function.clone(),
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
        let pin = Some(image[INTERRUPT_PIN]);
        let pin = pin.filter(|pin| (1..=4).contains(pin) && count(IrqIndex::Intx) > 0);
        Ok(Self {
            region,
            image,
            regions,
            specs,
            msi,
            msix,
            pin,
        })
    }

    /// Moves the MSI-X table and the pending bits to pages of their own, in what the guest is shown.
    pub(super) fn relocate_msix(&mut self, function: &Assignable) {
        let (Some(msix), Some(at)) = (self.msix, find(&self.image, CAP_MSIX)) else {
            log::warn!("{function}: msix=relocate changes nothing: it has no MSI-X");
            return;
        };
        let to = match self.regions[msix.table_bar].msix_mappable {
            true => relocation::relocate(&msix, &mut self.specs),
            false => Err(Stays::NotMappable),
        };
        match to {
            Ok(to) => {
                if let Some(registers) = self.image.get_mut(at + 4..at + 12) {
                    registers.copy_from_slice(&to.registers());
                }
                self.msix = Some(to);
            }
            Err(stays) => {
                let reason = stays.reason();
                log::warn!("{function}: its MSI-X table stays where it is: {reason}");
            }
        }
    }

    pub(super) fn interrupts(
        &self,
        host: Arc<dyn HostFunction>,
        config: &Config,
        wiring: &Wiring<'_>,
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
        let wire = |number| Pin::new(host.clone(), wiring.intx.clone(), number);
        let pin = self.pin.map(wire);
        Interrupts::new(host, wiring.msi, msi, msix, pin)
    }

    /// What each BAR decodes to.
    pub(super) fn place(
        &self,
        host: &Arc<dyn HostFunction>,
        interrupts: &Arc<Interrupts>,
        counters: &[Arc<Counters>; bars::BARS],
        function: &Assignable,
        mmap: bool,
    ) -> [Option<Region>; REGISTERS] {
        let mut placed: [Option<Region>; REGISTERS] = Default::default();
        for spec in &self.specs {
            let region = &self.regions[spec.index];
            let table = self.msix.filter(|msix| msix.table_bar == spec.index);
            let table = table.map_or(0..0, |msix| msix.table());
            let pba = self.msix.filter(|msix| msix.pba_bar == spec.index);
            let pba = pba.map_or(0..0, |msix| msix.pba());
            let emulated = [table.clone(), pba.clone()];
            let (direct, withheld) = match mmap && spec.kind.is_memory() {
                true => (
                    bars::direct(&**host, region, &emulated),
                    bars::withheld(region, &emulated),
                ),
                false => Default::default(),
            };
            let trap = BarTrap {
                function: function.clone(),
                host: host.clone(),
                region: region.clone(),
                interrupts: interrupts.clone(),
                table,
                pba,
                withheld,
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
