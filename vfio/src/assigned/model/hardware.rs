//! A card that is there, behind vfio-pci. It knows the rules and fails the test that breaks one: nothing of it may be mapped, or
//! accessed, while it does not decode; and it sees nothing of what is not its own.

use std::{
    collections::BTreeSet,
    io,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard},
};

use devices::mapping::HostMapping;

use super::{
    card::{Card, Owner, ROM},
    slots::Slots,
};
use crate::{
    assigned::random::Random,
    kernel::{Affected, Area, HostFunction, IrqIndex, IrqInfo, RegionIndex, RegionInfo},
};

const COMMAND: usize = 4;

pub(super) struct Hardware {
    /// Which of the cards this is.
    pub(super) number: usize,
    pub(super) card: Card,
    pub(super) owners: Vec<Owner>,
    slots: Arc<Slots>,
    state: Mutex<State>,
}

struct State {
    config: Vec<u8>,
    at_power_on: Vec<u8>,
    /// The command register as it was written: vfio-pci keeps a memory enable bit for a VF, which has none.
    command: u16,
    /// Does not answer.
    fails: bool,
    /// An access may come when it has just stopped to decode: vCPUs race.
    races: bool,
    seen: Vec<Seen>,
    /// The kind of interrupt that signals, and which of its vectors do: one kind at a time.
    armed: Option<(IrqIndex, BTreeSet<usize>)>,
    /// It failed to arm something since it was last disarmed.
    refused: bool,
}

/// What the card was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// A write to a byte of configuration space, but for the command register and the D-state.
    Config(usize, u8),
    /// A write to a BAR: where, how many bytes, and which.
    Bar(usize, u64, usize, [u8; 8]),
    Reset,
}

/// Where a BAR is in this process, as these tests have it.
pub(super) fn host_address(card: usize, bar: usize, offset: u64) -> u64 {
    (8 * card as u64 + bar as u64 + 1) << 40 | offset
}

/// What is in byte `offset` of a BAR.
pub(super) fn content(card: usize, bar: usize, offset: u64) -> u8 {
    let mixed = host_address(card, bar, offset).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[1]
}

/// A mapping that is none, of memory that says what it is by its address.
struct Mapping {
    address: usize,
    len: usize,
}

// SAFETY: a test's: nobody follows the address.
#[expect(unsafe_code, reason = "the trait asks for a promise")]
unsafe impl HostMapping for Mapping {
    fn address(&self) -> usize {
        self.address
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl Hardware {
    pub(super) fn new(number: usize, card: Card, slots: Arc<Slots>, random: &mut Random) -> Self {
        let at_power_on = card.image(|| random.byte());
        let mut config = at_power_on.clone();
        if let Some((at, _)) = card.power().filter(|_| random.once_in(3)) {
            // Its last driver left it asleep.
            config[at] |= 3;
        }
        slots.set_decodes(number, false);
        Self {
            number,
            owners: card.owners(&at_power_on),
            card,
            slots,
            state: Mutex::new(State {
                at_power_on,
                config,
                command: 0,
                fails: false,
                races: false,
                seen: Vec::new(),
                armed: None,
                refused: false,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn expect_races(&self) {
        self.state().races = true;
    }

    pub(super) fn set_fails(&self, fails: bool) {
        self.state().fails = fails;
    }

    /// A byte of configuration space as the device has it; all-ones while it does not answer.
    pub(super) fn byte(&self, at: usize) -> u8 {
        let state = self.state();
        if state.fails { 0xff } else { state.config[at] }
    }

    /// The D-state, if it answers.
    pub(super) fn power_state(&self) -> Option<u8> {
        let state = self.state();
        let (at, _) = self.card.power()?;
        (!state.fails).then(|| state.config[at] & 3)
    }

    pub(super) fn answers(&self) -> bool {
        !self.state().fails
    }

    pub(super) fn command(&self) -> u16 {
        self.state().command
    }

    /// Whether `vector` of `index` signals.
    pub(super) fn is_armed(&self, index: IrqIndex, vector: usize) -> bool {
        let state = self.state();
        let mut armed = state.armed.iter().filter(|(kind, _)| *kind == index);
        armed.any(|(_, vectors)| vectors.contains(&vector))
    }

    /// Whether it has refused to arm what it was asked for.
    pub(super) fn refused(&self) -> bool {
        self.state().refused
    }

    /// What it was told since the last time.
    pub(super) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    fn decodes(&self, state: &State, command: u16) -> bool {
        let asleep = self
            .card
            .power()
            .is_some_and(|(at, _)| state.config[at] & 3 != 0);
        state.command & command != 0 && !asleep
    }

    fn write_config(&self, state: &mut State, at: usize, value: u8) {
        let trigger = self
            .card
            .resets()
            .iter()
            .any(|&(byte, bit)| byte == at && value & bit != 0);
        assert!(
            !trigger,
            "a reset that the guest asked for reached the device"
        );
        match self.card.power() {
            Some((power, states)) if power == at => {
                let asked = value & 3;
                let state_now = if states[usize::from(asked)] {
                    asked
                } else {
                    state.config[at] & 3
                };
                state.config[at] = value & !3 | state_now;
            }
            _ => {
                assert_eq!(self.owners[at], Owner::Device, "{at:#x} reached the device");
                state.config[at] = value;
                state.seen.push(Seen::Config(at, value));
            }
        }
    }

    fn write_command(&self, state: &mut State, command: u16) {
        state.command = command;
        let [low, high] = (command & self.card.command).to_le_bytes();
        (state.config[COMMAND], state.config[COMMAND + 1]) = (low, high);
    }

    fn follow_decoding(&self, state: &State) {
        self.slots.set_decodes(self.number, self.decodes(state, 2));
    }
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

impl HostFunction for Hardware {
    fn region_count(&self) -> u32 {
        9
    }

    fn region(&self, index: RegionIndex) -> io::Result<RegionInfo> {
        let mut info = RegionInfo::nothing(index);
        let mut bars = self.card.bars.iter();
        let bar = bars.find(|bar| RegionIndex(u32::try_from(bar.index).unwrap()) == index);
        if let Some(bar) = bar {
            info.size = bar.size;
            info.writable = true;
            let is_mappable = self.card.maps && bar.kind.is_memory() && bar.index != ROM;
            let withheld = self.card.withheld(bar.size).unwrap_or(bar.size..bar.size);
            let areas = [0..withheld.start, withheld.end..bar.size].into_iter();
            let areas = areas.filter(|area| is_mappable && !area.is_empty());
            info.mappable.extend(areas.map(|area| Area {
                offset: area.start,
                len: area.end - area.start,
            }));
        } else if index == RegionIndex::CONFIG {
            info.size = self.card.config_len as u64;
        }
        Ok(info)
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if state.fails {
            return Err(gone());
        }
        if region.index == RegionIndex::CONFIG {
            let at = usize::try_from(offset).unwrap();
            data.copy_from_slice(&state.config[at..at + data.len()]);
            return Ok(());
        }
        let bar = usize::try_from(region.index.0).unwrap();
        let is_memory = self
            .card
            .bars
            .iter()
            .any(|b| b.index == bar && b.kind.is_memory());
        if !self.decodes(&state, if is_memory { 2 } else { 1 }) {
            assert!(state.races, "read of a BAR that does not decode");
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        for (offset, byte) in (offset..).zip(data) {
            *byte = content(self.number, bar, offset);
        }
        Ok(())
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        let state = &mut *self.state();
        if state.fails {
            return Err(gone());
        }
        if region.index != RegionIndex::CONFIG {
            let bar = usize::try_from(region.index.0).unwrap();
            let mut bytes = [0; 8];
            bytes[..data.len()].copy_from_slice(data);
            state.seen.push(Seen::Bar(bar, offset, data.len(), bytes));
            return Ok(());
        }
        let at = usize::try_from(offset).unwrap();
        if let (COMMAND, &[low, high]) = (at, data) {
            self.write_command(state, u16::from_le_bytes([low, high]));
        } else {
            for (at, &value) in (at..).zip(data) {
                self.write_config(state, at, value);
            }
        }
        self.follow_decoding(state);
        Ok(())
    }

    fn map(&self, region: &RegionInfo, area: Area) -> io::Result<Arc<dyn HostMapping>> {
        let bar = usize::try_from(region.index.0).unwrap();
        let address = host_address(self.number, bar, area.offset);
        Ok(Arc::new(Mapping {
            address: usize::try_from(address).unwrap(),
            len: usize::try_from(area.len.next_multiple_of(4096)).unwrap(),
        }))
    }

    fn irq(&self, index: IrqIndex) -> io::Result<IrqInfo> {
        let count = match index {
            IrqIndex::Intx => u32::from(self.card.pin),
            IrqIndex::Msi => self
                .card
                .msi()
                .map_or(0, |(_, layout)| layout.vectors.try_into().unwrap()),
            IrqIndex::Msix => self.card.msix().map_or(0, |(_, msix)| msix.vectors.into()),
            _ => 1,
        };
        Ok(IrqInfo {
            count,
            can_grow: self.number.is_multiple_of(2),
        })
    }

    fn arm(
        &self,
        index: IrqIndex,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> io::Result<()> {
        let state = &mut *self.state();
        if state.fails {
            state.refused = true;
            return Err(gone());
        }
        if !matches!(index, IrqIndex::Intx | IrqIndex::Msi | IrqIndex::Msix) {
            return Ok(());
        }
        let (kind, vectors) = state.armed.get_or_insert((index, BTreeSet::new()));
        assert_eq!(*kind, index, "a second kind of interrupt");
        for (vector, eventfd) in (usize::try_from(start).unwrap()..).zip(eventfds) {
            vectors.remove(&vector);
            vectors.extend(eventfd.is_some().then_some(vector));
        }
        Ok(())
    }

    fn unmask_on(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn signal(&self, _: IrqIndex, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn disarm(&self, index: IrqIndex) -> io::Result<()> {
        let state = &mut *self.state();
        state.armed.take_if(|(kind, _)| *kind == index);
        state.refused = false;
        Ok(())
    }

    fn can_reset(&self) -> bool {
        self.card.can_reset
    }

    fn reset_methods(&self) -> Vec<String> {
        Vec::new()
    }

    fn hot_reset_scope(&self) -> io::Result<Vec<Affected>> {
        Ok(Vec::new())
    }

    fn hot_reset(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn reset(&self) -> io::Result<()> {
        let state = &mut *self.state();
        if state.fails {
            return Err(gone());
        }
        state.config = state.at_power_on.clone();
        state.command = 0;
        state.seen.push(Seen::Reset);
        self.follow_decoding(state);
        Ok(())
    }
}
