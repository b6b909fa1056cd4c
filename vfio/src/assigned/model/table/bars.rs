//! Accesses to BARs.

use devices::pci::{ports::CONFIG_PORTS_LEN, root::ECAM_BUS_LEN};

use super::{ECAM, PORTS, Table, seat::Seat};
use crate::assigned::model::{
    card::Part,
    hardware::{Seen, content},
};

impl Table {
    /// An access where a BAR is, or would be if it decoded.
    pub(super) fn access_bar(&mut self, number: usize) {
        let card = &self.cards[number].oracle.hardware.card;
        let (bars, msix) = (card.bars.clone(), card.msix());
        if bars.is_empty() {
            return;
        }
        let bar = self.random.pick(&bars);
        let near = match msix {
            Some((_, at)) if at.table_bar == bar.index && self.random.once_in(2) => {
                at.table_offset + self.random.next() % (16 * u64::from(at.vectors).min(5) + 8)
            }
            Some((_, at)) if at.pba_bar == bar.index && self.random.once_in(2) => {
                at.pba_offset + self.random.next() % 16
            }
            _ => self.random.next() % bar.size,
        };
        let len = 1 << self.random.below(4);
        let address = self.cards[number]
            .oracle
            .address(bar.index)
            .wrapping_add(near)
            & !(len - 1);
        let is_memory = bar.kind.is_memory();
        // The ECAM and the ports are no BARs.
        let window = if is_memory {
            ECAM..ECAM + ECAM_BUS_LEN
        } else {
            PORTS..PORTS + CONFIG_PORTS_LEN
        };
        if address
            .checked_add(len)
            .is_none_or(|end| address < window.end && window.start < end)
        {
            return;
        }
        if self.random.once_in(2) {
            self.bar_read(is_memory, address, len);
        } else {
            self.bar_write(is_memory, address, len);
        }
    }

    fn bar_read(&self, is_memory: bool, address: u64, len: u64) {
        let mut data = [0; 8];
        let data = &mut data[..usize::try_from(len).unwrap()];
        let answered = if is_memory { &self.memory } else { &self.io }.read(address, data);
        let found = self.places.find(is_memory, address, len);
        assert_eq!(answered, found.is_some(), "{address:#x} + {len}");
        for (at, byte) in (0..).zip(data) {
            let expected = found.map_or(0xff, |(claim, offset)| {
                self.bar_byte(claim.card, claim.bar.index, offset, at, len)
            });
            assert_eq!(*byte, expected, "{address:#x} + {at} of {len}");
        }
    }

    /// Byte `at` of an access of `len` bytes at `offset` in a BAR.
    fn bar_byte(&self, number: usize, bar: usize, offset: u64, at: u64, len: u64) -> u8 {
        let Seat { oracle, source, .. } = &self.cards[number];
        let index = |at: u64| usize::try_from(at).unwrap();
        match oracle.hardware.card.part(bar, offset, len) {
            Part::Table(start) => oracle.table_byte(index(start + at)),
            Part::Pending(start) => oracle.pba_byte(index(start + at), &|v| source.is_latched(v)),
            Part::Both => 0xff,
            Part::Rom if oracle.read_rom() => content(number, bar, offset + at),
            Part::Rom => 0xff,
            Part::Device if oracle.hardware.answers() => content(number, bar, offset + at),
            Part::Device => 0xff,
        }
    }

    fn bar_write(&mut self, is_memory: bool, address: u64, len: u64) {
        let value = self.random.value().to_le_bytes();
        let data = &value[..usize::try_from(len).unwrap()];
        let answered = if is_memory { &self.memory } else { &self.io }.write(address, data);
        let found = self.places.find(is_memory, address, len);
        let found = found.map(|(claim, offset)| (claim.card, claim.bar.index, offset));
        assert_eq!(answered.is_some(), found.is_some(), "{address:#x} + {len}");
        let Some((number, bar, offset)) = found else {
            return;
        };
        let oracle = &mut self.cards[number].oracle;
        let mut seen = Vec::new();
        match oracle.hardware.card.part(bar, offset, len) {
            Part::Table(start) => {
                let start = usize::try_from(start).unwrap();
                (start..)
                    .zip(data)
                    .for_each(|(at, &byte)| oracle.write_table(at, byte));
            }
            Part::Pending(_) | Part::Both | Part::Rom => {}
            Part::Device => {
                let mut bytes = [0; 8];
                bytes[..data.len()].copy_from_slice(data);
                seen.extend(oracle.hardware.answers().then_some(Seen::Bar(
                    bar,
                    offset,
                    data.len(),
                    bytes,
                )));
            }
        }
        assert_eq!(self.cards[number].oracle.hardware.take_seen(), seen);
    }
}
