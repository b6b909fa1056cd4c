//! Where a function's registers are, and which of them a guest reaches without an exit.

use devices::pci::{
    Bdf,
    bar::{BarKind, REGISTERS, ROM_INDEX},
};

use super::{
    Known, Msix,
    resource::{Resource, resources},
};
use crate::{
    host::{Device, Host},
    kernel::mapping::page_bytes,
};

/// A base address register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bar {
    /// Which one: 0 to 5.
    pub index: usize,
    /// Its address space.
    pub kind: BarKind,
    /// In bytes, or ports.
    pub size: u64,
    /// Where it is on the host; none where the kernel found no room.
    pub address: Option<u64>,
    /// How a guest reaches it. Unknown where the MSI-X capability is, which can be in the way.
    pub mapping: Known<Mapping>,
}

/// How a guest reaches the registers behind a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// Straight through.
    Whole,
    /// Straight through, but for the pages of the MSI-X table and of its pending bits.
    AroundMsix {
        /// What these pages have, in bytes.
        withheld: u64,
    },
    /// By an exit for each access.
    Trapped(Trapped),
}

/// Why a guest exits for each access to a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trapped {
    /// It has ports, which cannot be mapped.
    Ports,
    /// It has no address on the host.
    NoAddress,
    /// It is smaller than a page, and others are in that page, or it does not start it.
    SharesPage,
    /// The MSI-X table and its pending bits have all of its pages.
    MsixOnly,
}

/// An expansion ROM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rom {
    /// In bytes.
    pub size: u64,
}

impl Rom {
    pub(super) fn among(resources: &[Option<Resource>; REGISTERS]) -> Option<Self> {
        let [.., rom] = resources;
        rom.map(|rom| Self { size: rom.size })
    }
}

impl Host {
    pub(super) fn bars(
        &self,
        device: &Device,
        resources: &[Option<Resource>; REGISTERS],
        msix: Known<&Option<Msix>>,
    ) -> Vec<Bar> {
        // Behind the second of a bridge's there are windows.
        let most = if device.header_type == 0 {
            ROM_INDEX
        } else {
            2
        };
        let found = resources.iter().take(most).enumerate();
        let bar = |(index, resource): (usize, &Option<Resource>)| {
            let resource = (*resource)?;
            let trapped = self.trapped(device.bdf, &resource);
            let mapping = match trapped {
                Some(why) => Known::Known(Mapping::Trapped(why)),
                None => msix.map(|msix| around(*msix, index, resource.size)),
            };
            Some(Bar {
                index,
                kind: resource.kind(),
                size: resource.size,
                address: resource.address,
                mapping,
            })
        };
        found.filter_map(bar).collect()
    }

    /// What keeps vfio-pci from mapping a BAR (`vfio_pci_probe_mmaps` in drivers/vfio/pci/vfio_pci_core.c).
    fn trapped(&self, function: Bdf, bar: &Resource) -> Option<Trapped> {
        let page = page_bytes();
        if !bar.kind().is_memory() {
            return Some(Trapped::Ports);
        }
        let Some(address) = bar.address else {
            return Some(Trapped::NoAddress);
        };
        if bar.size >= page {
            return None;
        }
        let has_start = address.is_multiple_of(page);
        let shares = !has_start || self.others_in(function, address / page);
        shares.then_some(Trapped::SharesPage)
    }

    /// Whether another function of the segment has memory in the page.
    fn others_in(&self, function: Bdf, page: u64) -> bool {
        let others = self.functions().into_iter();
        let mut others =
            others.filter(|other| other.segment == function.segment && *other != function);
        others.any(|other| {
            let memory = resources(&self.pci_dir(other)).into_iter().flatten();
            let mut memory = memory.filter(|resource| resource.kind().is_memory());
            memory.any(|resource| resource.address.is_some_and(|at| at / page_bytes() == page))
        })
    }
}

fn around(msix: Option<Msix>, index: usize, size: u64) -> Mapping {
    match msix.map_or(0, |msix| msix.withheld(index, size)) {
        0 => Mapping::Whole,
        withheld if withheld >= size => Mapping::Trapped(Trapped::MsixOnly),
        withheld => Mapping::AroundMsix { withheld },
    }
}
