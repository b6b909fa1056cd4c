//! The address spaces behind the PCI root, where functions place their BARs.
//!
//! Invariants: what is placed lies in a window of the host bridge, and never over something else; what is not placed is gone from the
//! bus and from the memslots before the call that took it away returns.

use std::{
    fmt, io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::bar::{BarKind, Decoded, REGISTERS};
use crate::{
    bus::{Action, Bus, BusDevice, BusError},
    mapping::{HostMapping, Memslots},
};

const PAGE: u64 = 4096;

/// What the host bridge forwards: the only addresses where a BAR can be. Empty ranges forward nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// I/O ports.
    pub io: Range<u64>,
    /// Memory below 4 GiB.
    pub memory32: Range<u64>,
    /// Memory above 4 GiB, within the guest's physical address bits.
    pub memory64: Range<u64>,
}

impl Windows {
    /// Whether a BAR of `kind` can be at `range`.
    fn forward(&self, kind: BarKind, range: &Range<u64>) -> bool {
        let within = |window: &Range<u64>| window.start <= range.start && range.end <= window.end;
        match kind {
            BarKind::Io => within(&self.io),
            BarKind::Memory32 { .. } => within(&self.memory32),
            BarKind::Memory64 { .. } => within(&self.memory32) || within(&self.memory64),
        }
    }
}

/// The memory and I/O address spaces behind the root.
#[derive(Clone)]
pub struct PciSpace {
    /// Guest-physical memory.
    pub memory: Arc<Bus>,
    /// I/O ports.
    pub io: Arc<Bus>,
    /// Where directly mapped parts go.
    pub memslots: Arc<dyn Memslots>,
    /// Where BARs can be.
    pub windows: Windows,
}

/// A part of a BAR that the guest reaches without an exit.
#[derive(Clone)]
pub struct Direct {
    /// Where it starts in the BAR, in bytes; page-aligned.
    pub offset: u64,
    /// What is there. It may go past the end of a BAR that is smaller than a page.
    pub memory: Arc<dyn HostMapping>,
}

/// What a BAR decodes to: a device that answers all of it, and parts that go past that device.
#[derive(Clone)]
pub struct Region {
    /// Size in bytes (or ports).
    pub len: u64,
    /// Answers what is not mapped.
    pub device: Arc<dyn BusDevice>,
    /// What is mapped.
    pub direct: Vec<Direct>,
}

/// A BAR cannot be where the guest put it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// The host bridge forwards nothing there.
    #[error("{start:#x} + {len:#x} is outside the windows of the host bridge")]
    Outside {
        /// First address asked for.
        start: u64,
        /// Length in bytes (or ports).
        len: u64,
    },
    /// Something else is there.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// A region in its place. Dropping it takes the region away again.
#[must_use]
pub struct Placed {
    bus: Arc<Bus>,
    address: u64,
    // Where the rest of a page starts that the mapping of a smaller region takes up.
    margin: Option<u64>,
    memslots: Arc<dyn Memslots>,
    slots: Vec<u32>,
}

impl PciSpace {
    /// Places `region` at `address` of the space that `kind` names.
    ///
    /// A direct part that cannot be mapped is left to the region's device: slower, but the card works. The guest can bring that about
    /// by moving a BAR that is smaller than a page off the start of one, or into a page with another; else it is a failure of the
    /// host, and is logged.
    pub fn place(
        &self,
        kind: BarKind,
        address: u64,
        region: &Region,
    ) -> Result<Placed, PlaceError> {
        let len = region.len;
        let end = address.checked_add(len);
        if !end.is_some_and(|end| self.windows.forward(kind, &(address..end))) {
            return Err(PlaceError::Outside {
                start: address,
                len,
            });
        }
        let bus = if kind.is_memory() {
            &self.memory
        } else {
            &self.io
        };
        // The device first: from here on a vCPU finds someone at every address of the region.
        bus.insert(address, len, region.device.clone())?;
        let mut placed = Placed {
            bus: bus.clone(),
            address,
            margin: None,
            memslots: self.memslots.clone(),
            slots: Vec::new(),
        };
        if kind.is_memory() {
            placed.map(region);
        }
        Ok(placed)
    }
}

impl Placed {
    fn map(&mut self, region: &Region) {
        for Direct { offset, memory } in &region.direct {
            let Some(guest) = self.address.checked_add(*offset) else {
                continue;
            };
            let end = offset.saturating_add(memory.len() as u64);
            let has_pages = guest.is_multiple_of(PAGE) && self.reserve(region.len..end);
            if !has_pages {
                log::debug!("{guest:#x}: a BAR without a page of its own is not mapped");
                continue;
            }
            match self.memslots.map(guest, memory.clone()) {
                Ok(slot) => self.slots.push(slot),
                Err(error) => failed_to_map(guest, memory.len(), &error),
            }
        }
    }

    /// Keeps others out of what a mapping takes up past the end of its region, if it does.
    fn reserve(&mut self, past_end: Range<u64>) -> bool {
        let Some(start) = self.address.checked_add(past_end.start) else {
            return false;
        };
        let len = past_end.end.saturating_sub(past_end.start);
        let is_free = len == 0 || self.bus.insert(start, len, Arc::new(Nobody)).is_ok();
        if len > 0 && is_free {
            self.margin = Some(start);
        }
        is_free
    }
}

/// What is behind the end of a region that shares its page with nobody.
struct Nobody;

impl BusDevice for Nobody {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Action {
        Action::None
    }
}

/// The guest can repeat what failed as often as it likes: the more often, the less is said.
fn failed_to_map(guest: u64, len: usize, error: &io::Error) {
    static FAILURES: AtomicU64 = AtomicU64::new(0);
    let failures = FAILURES.fetch_add(1, Ordering::Relaxed) + 1;
    if failures.is_power_of_two() {
        log::error!(
            "{guest:#x} + {len:#x} cannot be mapped into the guest, every access will exit \
             (failure {failures}): {error}"
        );
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // The reverse order: no vCPU may find a mapping where the bus already has a hole.
        for &slot in self.slots.iter().rev() {
            self.memslots.unmap(slot);
        }
        for start in self.margin.into_iter().chain([self.address]) {
            self.bus.remove(start);
        }
    }
}

/// The regions of one function's BARs, and where each of them is now.
pub struct Placements {
    space: PciSpace,
    regions: [Option<Region>; REGISTERS],
    placed: [Option<(Decoded, Placed)>; REGISTERS],
}

impl fmt::Debug for Placements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let placed = self.placed.iter().flatten().map(|(decoded, _)| decoded);
        f.debug_list().entries(placed).finish()
    }
}

impl Placements {
    /// `regions` by BAR index (`bar::ROM_INDEX` for the ROM); nothing is placed yet.
    pub fn new(space: PciSpace, regions: [Option<Region>; REGISTERS]) -> Self {
        Self {
            space,
            regions,
            placed: Default::default(),
        }
    }

    /// Takes away what `wanted` does not have, or has elsewhere. To be called before the hardware stops decoding.
    pub fn retain(&mut self, wanted: &[Decoded]) {
        for placed in &mut self.placed {
            placed.take_if(|(decoded, _)| !wanted.contains(decoded));
        }
    }

    /// Places what `wanted` has and is not placed. To be called once the hardware decodes. What cannot go where the guest put it
    /// stays unplaced: the guest finds nothing there, as behind a real bridge.
    pub fn fill(&mut self, wanted: &[Decoded]) {
        for &decoded in wanted {
            let Decoded {
                index,
                kind,
                address,
                ..
            } = decoded;
            let (Some(region), Some(None)) = (&self.regions[index], self.placed.get(index)) else {
                continue;
            };
            match self.space.place(kind, address, region) {
                Ok(placed) => self.placed[index] = Some((decoded, placed)),
                Err(error) => log::debug!("BAR {index} stays unplaced: {error}"),
            }
        }
    }

    /// Both: first what left or moved goes, then what is new comes, so that BARs may swap places.
    pub fn reconcile(&mut self, wanted: &[Decoded]) {
        self.retain(wanted);
        self.fill(wanted);
    }

    /// Takes everything away.
    pub fn clear(&mut self) {
        self.retain(&[]);
    }

    /// Where BAR `index` answers now.
    pub fn address(&self, index: usize) -> Option<u64> {
        let (decoded, _) = self.placed.get(index)?.as_ref()?;
        Some(decoded.address)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, atomic::AtomicU32};

    use super::*;
    use crate::testing::Scratch;

    const LOW: BarKind = BarKind::Memory32 {
        prefetchable: false,
    };

    struct Page(usize);

    // SAFETY: nothing maps what this fake names.
    #[expect(unsafe_code, reason = "the trait is unsafe to implement")]
    unsafe impl HostMapping for Page {
        fn address(&self) -> usize {
            self.0
        }

        fn len(&self) -> usize {
            4096
        }
    }

    /// Remembers what is mapped, and asserts that the device is on the bus whenever something is.
    struct FakeMemslots {
        bus: Arc<Bus>,
        mapped: Mutex<Vec<(u32, u64)>>,
        next: AtomicU32,
        full: bool,
    }

    impl Memslots for FakeMemslots {
        fn map(&self, guest: u64, _memory: Arc<dyn HostMapping>) -> io::Result<u32> {
            assert!(
                self.bus.read(guest, &mut [0]),
                "mapped before the device was placed"
            );
            if self.full {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            let slot = self.next.fetch_add(1, Ordering::Relaxed);
            self.mapped.lock().unwrap().push((slot, guest));
            Ok(slot)
        }

        fn unmap(&self, slot: u32) {
            let mut mapped = self.mapped.lock().unwrap();
            let at = mapped.iter().position(|(name, _)| *name == slot).unwrap();
            let (_, guest) = mapped.remove(at);
            assert!(
                self.bus.read(guest, &mut [0]),
                "unmapped after the device had gone"
            );
        }
    }

    fn space(full: bool) -> (PciSpace, Arc<FakeMemslots>) {
        let memory = Arc::new(Bus::new());
        let memslots = Arc::new(FakeMemslots {
            bus: memory.clone(),
            mapped: Mutex::default(),
            next: AtomicU32::new(0),
            full,
        });
        let space = PciSpace {
            memory,
            io: Arc::new(Bus::new()),
            memslots: memslots.clone(),
            windows: Windows {
                io: 0x1000..0x2000,
                memory32: 0xe000_0000..0xf000_0000,
                memory64: 0x10_0000_0000..0x20_0000_0000,
            },
        };
        (space, memslots)
    }

    fn region(reads: u8, direct: &[u64]) -> Region {
        let part = |&offset: &u64| Direct {
            offset,
            memory: Arc::new(Page(0)),
        };
        Region {
            len: 0x4000,
            device: Scratch::new(reads, Action::None),
            direct: direct.iter().map(part).collect(),
        }
    }

    fn at(index: usize, address: u64) -> Decoded {
        Decoded {
            index,
            kind: LOW,
            address,
            size: 0x4000,
        }
    }

    fn byte(bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }

    #[test]
    fn a_region_is_there_for_as_long_as_it_is_held() {
        let (space, memslots) = space(false);
        let placed = space
            .place(LOW, 0xe000_0000, &region(1, &[0, 0x2000]))
            .unwrap();
        assert_eq!(byte(&space.memory, 0xe000_1000), 1);
        assert_eq!(
            *memslots.mapped.lock().unwrap(),
            [(0, 0xe000_0000), (1, 0xe000_2000)]
        );
        drop(placed);
        assert_eq!(byte(&space.memory, 0xe000_1000), 0xff);
        assert_eq!(*memslots.mapped.lock().unwrap(), []);
    }

    #[test]
    fn what_cannot_be_mapped_still_answers() {
        let (space, memslots) = space(true);
        let _placed = space.place(LOW, 0xe000_0000, &region(1, &[0])).unwrap();
        assert_eq!(byte(&space.memory, 0xe000_0000), 1);
        assert_eq!(*memslots.mapped.lock().unwrap(), []);
    }

    #[test]
    fn outside_the_windows_nothing_is_placed() {
        let (space, _) = space(false);
        let wide = BarKind::Memory64 { prefetchable: true };
        for (kind, address) in [
            (LOW, 0),
            (LOW, 0xefff_e000),
            (LOW, 0x10_0000_0000),
            (wide, 0x1_0000_0000),
            (wide, 0x1f_ffff_e000),
            (wide, u64::MAX - 0xfff),
            (BarKind::Io, 0x1000),
        ] {
            let refused = space.place(kind, address, &region(1, &[]));
            let outside = PlaceError::Outside {
                start: address,
                len: 0x4000,
            };
            assert_eq!(refused.err(), Some(outside), "{kind:?} {address:#x}");
        }
        assert!(space.place(wide, 0xe000_0000, &region(1, &[])).is_ok());
        assert!(space.place(wide, 0x10_0000_0000, &region(1, &[])).is_ok());
    }

    fn small(reads: u8) -> Region {
        Region {
            len: 0x100,
            ..region(reads, &[0])
        }
    }

    #[test]
    fn a_bar_smaller_than_its_page_keeps_others_out_of_it() {
        let (space, memslots) = space(false);
        let placed = space.place(LOW, 0xe000_0000, &small(1)).unwrap();
        assert_eq!(*memslots.mapped.lock().unwrap(), [(0, 0xe000_0000)]);
        assert_eq!(byte(&space.memory, 0xe000_0100), 0xff);
        assert!(space.place(LOW, 0xe000_0100, &small(2)).is_err());
        drop(placed);
        assert!(space.place(LOW, 0xe000_0100, &small(2)).is_ok());
    }

    #[test]
    fn small_bars_that_the_guest_moved_into_one_page_are_trapped() {
        let (space, memslots) = space(false);
        let _second = space.place(LOW, 0xe000_0100, &small(2)).unwrap();
        let _first = space.place(LOW, 0xe000_0000, &small(1)).unwrap();
        assert_eq!(*memslots.mapped.lock().unwrap(), []);
        assert_eq!(
            [
                byte(&space.memory, 0xe000_0000),
                byte(&space.memory, 0xe000_0100)
            ],
            [1, 2]
        );
    }

    fn two_bars(space: &PciSpace) -> Placements {
        let mut regions: [Option<Region>; REGISTERS] = Default::default();
        regions[0] = Some(region(10, &[0]));
        regions[2] = Some(region(12, &[]));
        Placements::new(space.clone(), regions)
    }

    #[test]
    fn bars_may_swap_places() {
        let (space, _) = space(false);
        let mut placements = two_bars(&space);
        placements.reconcile(&[at(0, 0xe000_0000), at(2, 0xe000_4000)]);
        assert_eq!(
            [
                byte(&space.memory, 0xe000_0000),
                byte(&space.memory, 0xe000_4000)
            ],
            [10, 12]
        );
        placements.reconcile(&[at(2, 0xe000_0000), at(0, 0xe000_4000)]);
        assert_eq!(
            [
                byte(&space.memory, 0xe000_0000),
                byte(&space.memory, 0xe000_4000)
            ],
            [12, 10]
        );
    }

    #[test]
    fn what_stays_is_not_touched() {
        let (space, memslots) = space(false);
        let mut placements = two_bars(&space);
        placements.reconcile(&[at(0, 0xe000_0000)]);
        placements.reconcile(&[at(0, 0xe000_0000), at(2, 0xe000_4000)]);
        assert_eq!(*memslots.mapped.lock().unwrap(), [(0, 0xe000_0000)]);
    }

    #[test]
    fn retain_only_takes_away_and_fill_only_adds() {
        let (space, _) = space(false);
        let mut placements = two_bars(&space);
        placements.fill(&[at(0, 0xe000_0000)]);
        placements.retain(&[at(0, 0xe001_0000), at(2, 0xe000_4000)]);
        assert_eq!((placements.address(0), placements.address(2)), (None, None));
        placements.fill(&[at(0, 0xe001_0000)]);
        assert_eq!(placements.address(0), Some(0xe001_0000));
        placements.clear();
        assert_eq!(byte(&space.memory, 0xe001_0000), 0xff);
    }

    #[test]
    fn a_bar_over_another_stays_off_until_there_is_room() {
        let (space, _) = space(false);
        let mut placements = two_bars(&space);
        placements.reconcile(&[at(0, 0xe000_0000), at(2, 0xe000_2000)]);
        assert_eq!(placements.address(2), None);
        placements.reconcile(&[at(2, 0xe000_2000)]);
        assert_eq!(placements.address(2), Some(0xe000_2000));
        // A register that has no region is nobody's.
        placements.reconcile(&[at(5, 0xe000_8000)]);
        assert_eq!(placements.address(5), None);
    }
}
