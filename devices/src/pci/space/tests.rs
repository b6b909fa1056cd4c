//! Placing BARs on a bus, with memslots that check the order.

use std::{
    io,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use super::*;
use crate::{
    bus::Action,
    pci::bar::{Decoded, REGISTERS},
    testing::Scratch,
};

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

/// Remembers what is mapped (slot and address), and asserts that the device is on the bus whenever something is.
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

impl FakeMemslots {
    fn addresses(&self) -> Vec<u64> {
        let mapped = self.mapped.lock().unwrap();
        mapped.iter().map(|&(_, guest)| guest).collect()
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
    let windows = Windows {
        io: 0x1000..0x2000,
        memory32: 0xe000_0000..0xf000_0000,
        memory64: 0x10_0000_0000..0x20_0000_0000,
    };
    let io = Arc::new(Bus::new());
    let space = PciSpace::new(memory, io, memslots.clone(), windows);
    (space, memslots)
}

fn region(reads: u8, direct: &[u64]) -> Region {
    let part = |&offset: &u64| Direct::new(offset, Arc::new(Page(0)));
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

/// A function with one BAR, which is `region`.
fn one(space: &PciSpace, region: Region) -> Placements {
    let mut regions: [Option<Region>; REGISTERS] = Default::default();
    regions[0] = Some(region);
    Placements::new(space.clone(), regions)
}

#[test]
fn a_region_is_there_for_as_long_as_it_is_held() {
    let (space, memslots) = space(false);
    let mut placements = one(&space, region(1, &[0, 0x2000]));
    placements.fill(&[at(0, 0xe000_0000)]);
    assert_eq!(byte(&space.memory, 0xe000_1000), 1);
    assert_eq!(memslots.addresses(), [0xe000_0000, 0xe000_2000]);
    drop(placements);
    assert_eq!(byte(&space.memory, 0xe000_1000), 0xff);
    assert!(memslots.addresses().is_empty());
}

#[test]
fn what_cannot_be_mapped_still_answers() {
    let (space, memslots) = space(true);
    let mut placements = one(&space, region(1, &[0]));
    placements.fill(&[at(0, 0xe000_0000)]);
    assert_eq!(byte(&space.memory, 0xe000_0000), 1);
    assert!(memslots.addresses().is_empty());
}

#[test]
fn outside_the_windows_nothing_is_placed() {
    let (space, _) = space(false);
    let wide = BarKind::Memory64 { prefetchable: true };
    let placed = |kind, address| {
        let mut placements = one(&space, region(1, &[]));
        let decoded = Decoded {
            kind,
            ..at(0, address)
        };
        placements.fill(&[decoded]);
        placements.address(0)
    };
    for (kind, address) in [
        (LOW, 0),
        (LOW, 0xefff_e000),
        (LOW, 0x10_0000_0000),
        (wide, 0x1_0000_0000),
        (wide, 0x1f_ffff_e000),
        (wide, u64::MAX - 0xfff),
        (BarKind::Io, 0x1000),
    ] {
        assert_eq!(placed(kind, address), None, "{kind:?} {address:#x}");
    }
    for address in [0xe000_0000, 0x10_0000_0000] {
        assert_eq!(placed(wide, address), Some(address));
    }
}

fn small(reads: u8) -> Region {
    Region {
        len: 0x100,
        ..region(reads, &[0])
    }
}

#[test]
fn bars_smaller_than_a_page_are_mapped_only_while_they_have_one_for_themselves() {
    let (space, memslots) = space(false);
    let (mut first, mut second) = (one(&space, small(1)), one(&space, small(2)));
    let both = || [0xe000_0000, 0xe000_0100].map(|address| byte(&space.memory, address));
    first.fill(&[at(0, 0xe000_0000)]);
    assert_eq!(
        (both(), memslots.addresses()),
        ([1, 0xff], vec![0xe000_0000])
    );
    second.fill(&[at(0, 0xe000_0100)]);
    assert_eq!((both(), memslots.addresses()), ([1, 2], vec![]));
    second.clear();
    assert_eq!(
        (both(), memslots.addresses()),
        ([1, 0xff], vec![0xe000_0000])
    );
    // In the other order, too.
    first.clear();
    second.fill(&[at(0, 0xe000_0100)]);
    first.fill(&[at(0, 0xe000_0000)]);
    assert_eq!((both(), memslots.addresses()), ([1, 2], vec![]));
}

#[test]
fn a_bar_smaller_than_a_page_is_not_mapped_off_the_start_of_one() {
    let (space, memslots) = space(false);
    let mut placements = one(&space, small(1));
    placements.fill(&[at(0, 0xe000_0100)]);
    assert_eq!(byte(&space.memory, 0xe000_0100), 1);
    assert!(memslots.addresses().is_empty());
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
    assert_eq!(memslots.addresses(), [0xe000_0000]);
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

#[test]
fn the_place_that_another_function_leaves_goes_to_who_waited_for_it() {
    let (space, memslots) = space(false);
    let mut functions = [1, 2, 3].map(|reads| one(&space, region(reads, &[0])));
    for function in &mut functions {
        function.reconcile(&[at(0, 0xe000_0000)]);
    }
    let [first, second, third] = &mut functions;
    assert_eq!(byte(&space.memory, 0xe000_0000), 1);
    first.clear();
    assert_eq!(byte(&space.memory, 0xe000_0000), 2);
    assert_eq!(memslots.addresses(), [0xe000_0000]);
    // Who gives up waiting does not get it.
    third.clear();
    second.clear();
    assert_eq!(byte(&space.memory, 0xe000_0000), 0xff);
    assert!(memslots.addresses().is_empty());
}

#[test]
fn two_functions_may_swap_places_one_write_at_a_time() {
    let (space, _) = space(false);
    let (mut first, mut second) = (one(&space, region(1, &[0])), one(&space, region(2, &[0])));
    first.reconcile(&[at(0, 0xe000_0000)]);
    second.reconcile(&[at(0, 0xe000_4000)]);
    first.reconcile(&[at(0, 0xe000_4000)]);
    assert_eq!(first.address(0), None);
    second.reconcile(&[at(0, 0xe000_0000)]);
    assert_eq!(
        (first.address(0), second.address(0)),
        (Some(0xe000_4000), Some(0xe000_0000))
    );
}
