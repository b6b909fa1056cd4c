//! DMA from one assigned device to another (peer to peer): what the guest reaches of a BAR without an exit, other devices reach at
//! the same address.
//!
//! Best effort: a BAR that cannot be mapped for DMA is a warning, and everything else works. What is trapped is not mapped, the
//! MSI-X table in particular. Only with several devices: a device finds its own memory without the IOMMU, and to map a BAR costs
//! the kernel a page table entry for each of its pages.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use devices::{
    mapping::{Follower, HostMapping},
    pci::{bar::ROM_INDEX, space::Region},
};

use crate::{
    Assignable,
    kernel::{DmaError, DmaTarget, Interface},
};

/// What other devices reach of a function.
pub(super) struct Peers {
    function: Assignable,
    mapped: AtomicU64,
    refused: AtomicU64,
}

impl Peers {
    /// Nothing, for now.
    pub(super) fn new(function: &Assignable) -> Self {
        Self {
            function: function.clone(),
            mapped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Lets devices behind `dma` reach what is mapped of `regions`, wherever that goes.
    pub(super) fn let_in(
        self: &Arc<Self>,
        dma: &Arc<dyn DmaTarget>,
        regions: &mut [Option<Region>],
    ) {
        for (bar, region) in regions.iter_mut().enumerate().take(ROM_INDEX) {
            for direct in region.iter_mut().flat_map(|region| &mut region.direct) {
                direct.follower = Some(Arc::new(Window {
                    peers: self.clone(),
                    bar,
                    memory: direct.memory.clone(),
                    dma: dma.clone(),
                    is_open: AtomicBool::new(false),
                }));
            }
        }
    }

    /// How many parts of its BARs they reach now.
    pub(super) fn mapped(&self) -> u64 {
        self.mapped.load(Ordering::Relaxed)
    }

    /// How often one could not be made reachable.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Counts a refusal and says so once: the guest can bring it about as often as it likes, and the reason stays the same.
    fn refuse(&self, bar: usize, error: &DmaError) {
        if self.refused.fetch_add(1, Ordering::Relaxed) > 0 {
            return;
        }
        let (function, why) = (&self.function, &error.source);
        let advice = match error.interface {
            // It pins pages, and what a BAR's mapping consists of is none.
            Interface::Iommufd => "; where it is needed:  --iommu-backend container",
            Interface::Container => "",
        };
        log::warn!(
            "{function}: other devices cannot reach its BAR {bar} (peer-to-peer DMA): {why}{advice}"
        );
    }
}

/// A part of a BAR that other devices reach while it is in the guest.
struct Window {
    peers: Arc<Peers>,
    bar: usize,
    memory: Arc<dyn HostMapping>,
    dma: Arc<dyn DmaTarget>,
    is_open: AtomicBool,
}

impl Follower for Window {
    fn appeared(&self, guest: u64) {
        match self.dma.map(guest, self.memory.clone()) {
            Ok(()) => {
                self.is_open.store(true, Ordering::Relaxed);
                self.peers.mapped.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.peers.refuse(self.bar, &error),
        }
    }

    // Before the device stops to decode: a peer's access would then be an error on the host's bus.
    fn leaves(&self, guest: u64) {
        if self.is_open.swap(false, Ordering::Relaxed) {
            self.dma.unmap(guest);
            self.peers.mapped.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
