//! Accesses to configuration space: any at all, and what a guest does on purpose.

use devices::bus::{Action, Bus};

use super::{ECAM, PORTS, SLOTS, Table, devfn, register_of, seat::Seat};
use crate::assigned::model::{
    card::{ROM, is_wide},
    hardware::Seen,
    oracle::Asked,
};

impl Table {
    /// Where something is, more often than not.
    fn offset(&mut self) -> u64 {
        let end = [0x40, 0x100, 0x100, 0x200, 4096][self.random.below(5)];
        self.random.next() % end
    }

    pub(super) fn config_write(&mut self, number: usize) {
        let (at, value) = (self.offset(), self.random.value());
        let len = 1 << self.random.below(4);
        self.write_any_way(number, at, &value.to_le_bytes()[..len]);
    }

    /// Through the ECAM or the ports. Ports reach the first 256 bytes, and no more than is left of a dword.
    fn write_any_way(&mut self, number: usize, at: u64, data: &[u8]) {
        if at < 0x100 && data.len() <= 4 && self.random.once_in(3) {
            let (bus, port) = self.point(number, at);
            let answered = bus.write(port, data).is_some();
            assert_eq!(answered, at % 4 + data.len() as u64 <= 4);
            if !answered {
                return;
            }
        } else {
            assert_eq!(
                self.memory.write(ECAM + devfn(number) * 4096 + at, data),
                Some(Action::None)
            );
            if at + data.len() as u64 > 4096 {
                return;
            }
        }
        self.expect_write(number, usize::try_from(at).unwrap(), data);
    }

    fn point(&self, number: usize, at: u64) -> (&Bus, u64) {
        let address = 0x8000_0000 | devfn(number) << 8 | at & !3;
        let address = u32::try_from(address).unwrap().to_le_bytes();
        assert_eq!(self.io.write(PORTS, &address), Some(Action::None));
        (&self.io, PORTS + 4 + at % 4)
    }

    pub(super) fn config_read(&mut self, number: usize) {
        let at = self.offset();
        let mut data = [0; 8];
        let data = &mut data[..1 << self.random.below(4)];
        let mut is_there = at + data.len() as u64 <= 4096;
        if at < 0x100 && data.len() <= 4 && self.random.once_in(3) {
            let (bus, port) = self.point(number, at);
            is_there = bus.read(port, data);
            assert_eq!(is_there, at % 4 + data.len() as u64 <= 4);
        } else {
            self.memory.read(ECAM + devfn(number) * 4096 + at, data);
        }
        let at = usize::try_from(at).unwrap();
        for (at, byte) in (at..).zip(data) {
            let expected = if is_there {
                self.expected(number, at)
            } else {
                0xff
            };
            assert_eq!(
                *byte, expected,
                "byte {at:#x} of {:#?}",
                self.cards[number].oracle.hardware.card
            );
        }
    }

    fn expected(&self, number: usize, at: usize) -> u8 {
        let Seat { oracle, source, .. } = &self.cards[number];
        let byte = oracle.byte(at, &|vector| source.is_latched(vector));
        // The root says whether a device has more functions.
        if at == 0x0e && SLOTS[number].device == 4 {
            byte | 0x80
        } else {
            byte
        }
    }

    /// A write reaches a function in pieces: naturally aligned, and none across a dword.
    fn expect_write(&mut self, number: usize, at: usize, data: &[u8]) {
        let (mut at, mut left, mut seen) = (at, data, Vec::new());
        while !left.is_empty() {
            let len = [4, 2, 1]
                .into_iter()
                .find(|&len| at.is_multiple_of(len) && left.len() >= len);
            let (piece, rest) = left.split_at(len.unwrap());
            seen.extend(self.expect_piece(number, at, piece));
            (at, left) = (at + piece.len(), rest);
        }
        let hardware = &self.cards[number].oracle.hardware;
        assert_eq!(hardware.take_seen(), seen);
    }

    fn expect_piece(&mut self, number: usize, at: usize, piece: &[u8]) -> Vec<Seen> {
        let oracle = &mut self.cards[number].oracle;
        match oracle.asks(at, piece) {
            Asked::Reset => {
                self.expect_reset(number);
                let hardware = &self.cards[number].oracle.hardware;
                let resets = hardware.card.can_reset && hardware.answers();
                resets.then_some(Seen::Reset).into_iter().collect()
            }
            Asked::Command(command) => {
                // First everything leaves that would not be there afterwards.
                self.places.retain(number, &oracle.decoded(command));
                let seen = oracle.write(at, piece);
                self.expect_places(number);
                seen.into_iter()
                    .map(|(at, byte)| Seen::Config(at, byte))
                    .collect()
            }
        }
    }

    /// The function is as at power-on.
    pub(super) fn expect_reset(&mut self, number: usize) {
        self.cards[number].oracle.reset();
        self.expect_places(number);
    }

    fn expect_places(&mut self, number: usize) {
        let oracle = &self.cards[number].oracle;
        let wanted = oracle.decoded(oracle.decoding());
        self.places.retain(number, &wanted);
        self.places.add(number, &wanted, &self.windows);
    }

    pub(super) fn steer(&mut self, number: usize) {
        let card = &self.cards[number].oracle.hardware.card;
        let (power, msi, msix) = (card.power(), card.msi(), card.msix());
        match self.random.below(10) {
            0..3 => {
                let command = self.random.pick(&[0, 3, 3, 7, 7, 0x407]);
                self.write_any_way(number, 4, &u16::to_le_bytes(command));
            }
            3..7 => self.move_bar(number),
            7 => {
                if let Some((at, _)) = power {
                    let state = self.random.pick(&[0, 0, 0, 1, 2, 3]);
                    self.write_any_way(number, at as u64, &[state, 0]);
                }
            }
            8 => {
                if let Some((at, _)) = msi {
                    let control = self.random.pick(&[0, 0, 1, 0x11, 0x31]);
                    self.write_any_way(number, at as u64 + 2, &[control, 0]);
                }
            }
            _ => {
                if let Some((at, _)) = msix {
                    let control = self.random.pick(&[0, 0x40, 0x80, 0x80, 0xc0]);
                    self.write_any_way(number, at as u64 + 3, &[control]);
                }
            }
        }
    }

    /// Asks for a size, or gives an address: where another BAR is, beside it, or anywhere.
    fn move_bar(&mut self, number: usize) {
        let bars = self.cards[number].oracle.hardware.card.bars.clone();
        if bars.is_empty() {
            return;
        }
        let bar = self.random.pick(&bars);
        let other = self.random.below(SLOTS.len());
        let others = self.cards[other].oracle.hardware.card.bars.clone();
        let near = match others.is_empty() {
            true => 0xc000_0000,
            false => {
                let near = self.random.pick(&others);
                let side = self
                    .random
                    .pick(&[0, near.size, bar.size.wrapping_neg(), 0x1000]);
                self.cards[other]
                    .oracle
                    .address(near.index)
                    .wrapping_add(side)
            }
        };
        let address = match self.random.below(6) {
            0 => u64::MAX,
            1 => self.random.next() & self.random.next() & 0xff_ffff_f000,
            2 if !bar.kind.is_memory() => self.random.next() & 0xfffc,
            2 => 0xc000_0000 | self.random.next() & 0x3fff_f000,
            _ => near,
        };
        let register = register_of(bar.index);
        let mut bytes = address.to_le_bytes();
        if bar.index == ROM {
            bytes[0] |= 1;
        }
        self.write_any_way(number, register, &bytes[..4]);
        if is_wide(bar.kind) {
            self.write_any_way(number, register + 4, &bytes[4..]);
        }
    }
}
