//! The table at which guest, functions and models sit: a bus with three cards on it, and what a guest can do there.

mod bars;
mod config;
mod seat;
mod storm;

use std::sync::Arc;

use devices::{
    bus::{Action, Bus, BusDevice},
    pci::{
        Slot,
        ports::{CONFIG_PORTS_LEN, ConfigPorts},
        root::{ECAM_BUS_LEN, Ecam, PciRoot},
        space::{PciSpace, Windows},
    },
};

use self::seat::Seat;
use super::{
    card::{Card, ROM, is_wide},
    hardware::Hardware,
    places::Places,
    slots::Slots,
};
use crate::{
    assigned::{fake::Log, random::Random},
    kernel::DmaTarget,
};

const ECAM: u64 = 0xfeb0_0000;
const PORTS: u64 = 0xcf8;
/// Two of one device, and one of another.
const SLOTS: [Slot; 3] = [
    Slot {
        device: 4,
        function: 0,
    },
    Slot {
        device: 4,
        function: 3,
    },
    Slot {
        device: 5,
        function: 0,
    },
];

pub(super) struct Table {
    random: Random,
    memory: Arc<Bus>,
    io: Arc<Bus>,
    root: Arc<PciRoot>,
    windows: Windows,
    slots: Arc<Slots>,
    places: Places,
    cards: Vec<Seat>,
    log: Log,
}

/// The reset control register, which is not what this is about.
struct NoReset;

impl BusDevice for NoReset {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, _: &[u8]) -> Action {
        Action::None
    }
}

impl Table {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (memory, io, root) = (
            Arc::new(Bus::new()),
            Arc::new(Bus::new()),
            Arc::new(PciRoot::new()),
        );
        let ports = Arc::new(ConfigPorts::new(root.clone(), Arc::new(NoReset)));
        io.insert(PORTS, CONFIG_PORTS_LEN, ports).unwrap();
        memory
            .insert(ECAM, ECAM_BUS_LEN, Arc::new(Ecam::new(root.clone())))
            .unwrap();
        let windows = Windows {
            io: 0x1000..0x1_0000,
            memory32: 0xc000_0000..ECAM,
            memory64: 0x1_0000_0000..0x80_0000_0000,
        };
        let slots = Arc::new(Slots::default());
        let space = PciSpace::new(memory.clone(), io.clone(), slots.clone(), windows.clone());
        let (log, peers) = (Log::default(), slots.clone() as Arc<dyn DmaTarget>);
        let cards = (0..SLOTS.len()).map(|number| {
            let card = Card::draw(&mut random);
            let hardware = Hardware::new(number, card, slots.clone(), &mut random);
            let seat = Seat::new(hardware, &space, &peers, &log);
            root.add(SLOTS[number], seat.function.clone()).unwrap();
            seat
        });
        let cards = cards.collect();
        let mut table = Self {
            random,
            memory,
            io,
            root,
            windows,
            slots,
            places: Places::default(),
            cards,
            log,
        };
        table.assign();
        table.check();
        table
    }

    /// Addresses as firmware gives them. What `assign` chose is another test's; here it is where the models start from.
    fn assign(&mut self) {
        self.root.assign_bars(&self.windows).unwrap();
        for number in 0..self.cards.len() {
            for bar in self.cards[number].oracle.hardware.card.bars.clone() {
                let mut data = [0; 8];
                let register = register_of(bar.index);
                self.memory
                    .read(ECAM + devfn(number) * 4096 + register, &mut data);
                if !is_wide(bar.kind) {
                    data[4..].fill(0);
                }
                let address = u64::from_le_bytes(data) & !(bar.size - 1);
                self.cards[number].oracle.assign(bar.index, address);
            }
        }
    }

    /// One thing that happens, and what everybody thinks of it.
    pub(super) fn step(&mut self) {
        let number = self.random.below(SLOTS.len());
        match self.random.below(100) {
            0..40 => self.config_write(number),
            40..65 => self.config_read(number),
            65..80 => self.steer(number),
            80..98 => self.access_bar(number),
            98 => self.happen(number),
            _ if self.random.once_in(10) => self.reboot(),
            _ => {}
        }
        self.check();
    }

    fn happen(&mut self, number: usize) {
        let vector = self.random.below(70);
        let Seat { oracle, source, .. } = &self.cards[number];
        if self.random.once_in(2) {
            source.latch(vector);
        } else if oracle.hardware.card.pin == 0 {
            // A pin that cannot be armed is another story.
            let fails = oracle.hardware.answers() && self.random.once_in(2);
            oracle.hardware.set_fails(fails);
        }
    }

    fn reboot(&mut self) {
        self.root.reset();
        for number in 0..self.cards.len() {
            // The devices are reset together, by whoever has all of them.
            self.expect_reset(number);
            assert_eq!(self.cards[number].oracle.hardware.take_seen(), []);
        }
        self.assign();
    }

    fn check(&mut self) {
        let cards: Vec<_> = self
            .cards
            .iter()
            .map(|seat| &seat.oracle.hardware.card)
            .collect();
        let mapped = self.places.mapped(&cards);
        assert_eq!(self.slots.mapped(), mapped);
        assert_eq!(self.slots.reached(), mapped);
        self.log.lock().unwrap().clear();
        self.cards.iter_mut().for_each(Seat::check);
    }
}

/// Where the register of a BAR is in configuration space.
fn register_of(bar: usize) -> u64 {
    if bar == ROM {
        0x30
    } else {
        0x10 + 4 * bar as u64
    }
}

fn devfn(number: usize) -> u64 {
    SLOTS[number].devfn().into()
}
