//! The chip as 8139too uses it, and as nobody should.

use super::*;
use crate::testing::{Random, widths_agree};

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const RING: u64 = 0x10000;
const RING_LEN: usize = 8192;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

impl Chip {
    fn put(&mut self, at: usize, value: u32, len: usize) -> Effect {
        self.write(at, &value.to_le_bytes()[..len])
    }

    fn get(&self, at: usize, len: usize) -> u32 {
        let mut data = [0; 4];
        self.read(at, &mut data[..len]);
        u32::from_le_bytes(data)
    }
}

/// Switched on, with a ring of 8 KiB, listening for itself and everybody.
fn chip(config: u32) -> Chip {
    let mut chip = Chip::new(OWN);
    let _ = chip.put(RX_BUFFER, 0x10000, 4);
    let _ = chip.put(COMMAND, (COMMAND_RX | COMMAND_TX).into(), 1);
    let _ = chip.put(RX_CONFIG, config, 4);
    let _ = chip.put(INTERRUPT_MASK, 0xffff, 2);
    chip
}

fn packet(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..=255).cycle().take(len).collect();
    packet[..6].copy_from_slice(&to);
    packet
}

#[test]
fn it_is_an_8139c_that_answers_a_reset_and_has_its_address_and_a_link() {
    let mut chip = chip(0);
    assert_eq!(chip.get(TX_CONFIG, 4) & 0x7cc0_0000, CHIP);
    let _ = chip.put(COMMAND, COMMAND_RESET.into(), 1);
    assert_eq!(chip.get(COMMAND, 1), u32::from(COMMAND_EMPTY));
    assert_eq!(chip.get(ADDRESS, 4), 2);
    assert_eq!(chip.get(PHY_STATUS, 2) & 4, 4);
    assert_eq!(chip.get(MEDIUM, 1), 0);
}

#[test]
fn a_packet_is_sent_when_its_descriptor_is_given_away_and_the_driver_hears_of_it() {
    let mut chip = chip(0);
    let status = TX_STATUS + 8;
    let _ = chip.put(TX_ADDRESS + 8, 0x1234, 4);
    assert_eq!(chip.put(status, 60, 4), Effect::Send(2, 0x1234, 60));
    assert_eq!(chip.get(status, 4) & (TX_OWN | TX_OK), 0);
    assert_eq!(chip.put(status, 60, 4), Effect::None, "it is the chip's");
    assert!(!chip.interrupts());
    chip.sent_one(2, true);
    assert_eq!(chip.get(status, 4) & (TX_OWN | TX_OK), TX_OWN | TX_OK);
    assert_eq!(chip.get(TX_SUMMARY, 2), 0x400f);
    assert!(chip.interrupts());
    let _ = chip.put(INTERRUPT_STATUS, INTERRUPT_TX.into(), 2);
    assert!(!chip.interrupts());

    assert_eq!(chip.put(status, 99, 4), Effect::Send(2, 0x1234, 99));
    let _ = chip.put(COMMAND, COMMAND_RESET.into(), 1);
    chip.sent_one(2, true);
    assert_eq!(chip.get(INTERRUPT_STATUS, 2), 0, "a reset is the end of it");
    assert_eq!(chip.put(status, 60, 4), Effect::None, "it does not send");
}

#[test]
fn what_cannot_be_read_from_memory_is_told_as_aborted() {
    let mut chip = chip(0);
    let _ = chip.put(TX_STATUS, 60, 4);
    chip.sent_one(0, false);
    assert_ne!(chip.get(TX_STATUS, 4) & TX_ABORTED, 0);
    assert_eq!(chip.get(INTERRUPT_STATUS, 2), u32::from(INTERRUPT_TX_ERROR));
}

#[test]
fn packets_come_into_the_ring_over_its_end_until_it_is_full_and_again_when_it_is_read() {
    for no_wrap in [0, RX_NO_WRAP] {
        let (mut chip, memory) = (chip(RX_OWN | no_wrap), memory());
        let sent = packet(OWN, 1000);
        let mut read = 0;
        for round in 0..100 {
            assert_eq!(chip.receive(&sent, &memory), Received::Done);
            assert_eq!(chip.get(COMMAND, 1) & 1, 0, "round {round}");
            let mut came = [0; 1004];
            for (at, byte) in came.iter_mut().enumerate() {
                let at = match no_wrap {
                    0 => (read + at) % RING_LEN,
                    _ => read + at,
                };
                *byte = memory.read_obj(GuestAddress(RING + at as u64)).unwrap();
            }
            let (header, body) = came.split_at(4);
            assert_eq!(header, [1, 0x40, 0xec, 3], "good, for us, 1004 bytes");
            assert_eq!(body, sent);
            read = (read + 1008) % RING_LEN;
            let lag = u32::try_from(read).unwrap().wrapping_sub(16);
            assert_eq!(chip.put(RX_READ, lag, 2), Effect::Room);
            assert_eq!(chip.get(COMMAND, 1) & 1, 1);
        }
        let fits = (0..100).position(|_| chip.receive(&sent, &memory) == Received::NoRoom);
        assert_eq!(fits, Some(8));
    }
}

#[test]
fn a_guest_hears_whom_it_listens_for() {
    let memory = memory();
    let group = [0x01, 0x00, 0x5e, 0, 0, 1];
    let comes = |config: u32, groups: [u8; 8], to: [u8; 6]| {
        let mut chip = chip(config);
        let _ = chip.write(MULTICAST, &groups);
        assert_eq!(chip.receive(&packet(to, 60), &memory), Received::Done);
        chip.interrupts()
    };
    let other = [2, 0, 0, 0, 0, 9];
    assert!(comes(RX_OWN, [0; 8], OWN) && !comes(RX_OWN, [0xff; 8], other));
    assert!(comes(RX_ALL, [0; 8], other));
    assert!(comes(RX_EVERYBODY, [0; 8], [0xff; 6]) && !comes(RX_OWN, [0xff; 8], [0xff; 6]));
    assert!(comes(RX_GROUPS, [0xff; 8], group) && !comes(RX_GROUPS, [0; 8], group));
    // A group is one of the 64.
    let hears = |bit: usize| {
        let mut groups = [0; 8];
        groups[bit / 8] = 1 << (bit % 8);
        comes(RX_GROUPS, groups, group)
    };
    assert_eq!((0..64).filter(|&bit| hears(bit)).count(), 1);
}

#[test]
fn a_packet_is_filled_up_and_has_its_checksum_behind_it() {
    let (mut chip, memory) = (chip(RX_OWN), memory());
    chip.receive(&packet(OWN, 14), &memory);
    let mut came = [0; 68];
    memory.read_slice(&mut came, GuestAddress(RING)).unwrap();
    assert_eq!(came[2..4], [64, 0]);
    assert_eq!(came[18..64], [0; 46]);
    // What a checksum over data and its checksum leaves, always (CRC-32's residue).
    assert_eq!(crc(&came[4..68]), 0xdebb_20e3);
}

#[test]
fn byte_word_and_dword_accesses_agree() {
    let read = |chip: &Chip, at: u64, data: &mut [u8]| chip.read(at.try_into().unwrap(), data);
    let write = |chip: &mut Chip, at: u64, data: &[u8]| {
        if let Effect::Send(descriptor, ..) = chip.write(at.try_into().unwrap(), data) {
            chip.sent_one(descriptor, true);
        }
    };
    // The EEPROM's register is a conversation; 8 bytes at once nobody writes.
    let but_eeprom = [0..0x50, 0x54..0x100];
    for offsets in but_eeprom {
        widths_agree(|| chip(RX_OWN), (offsets, 4), read, write, 50_000);
    }
}

#[test]
fn whatever_a_driver_writes_packets_go_into_its_ring_alone_and_are_sent_from_its_descriptors() {
    const MEMORY_LEN: usize = 0x4_0000;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_LEN)]).unwrap();
    let zeroes = vec![0; MEMORY_LEN];
    let mut chip = chip(RX_EVERYBODY);
    let mut random = Random::new(0x8139);
    let (mut sends, mut received, mut no_room) = (0, 0, 0);
    for _ in 0..100_000 {
        let at = usize::try_from(random.within(0..LEN as u64 + 8)).unwrap();
        let len = usize::try_from(random.within(1..9)).unwrap();
        let value = random.value().to_le_bytes();
        if let Effect::Send(descriptor, address, len) = chip.write(at, &value[..len]) {
            sends += 1;
            assert_ne!(chip.get(COMMAND, 1) & u32::from(COMMAND_TX), 0);
            assert_eq!(chip.get(TX_ADDRESS + 4 * descriptor, 4), address);
            let status = TX_STATUS + 4 * descriptor;
            assert_eq!(
                chip.get(status, 4) & (TX_OWN | TX_SIZE),
                u32::try_from(len).unwrap()
            );
            let is_sent = random.within(0..2) == 0;
            chip.sent_one(descriptor, is_sent);
            let end = if is_sent { TX_OK } else { TX_ABORTED };
            assert_eq!(
                chip.get(status, 4) & (TX_OWN | TX_OK | TX_ABORTED),
                TX_OWN | end
            );
        }
        let mut past = [0; 8];
        chip.read(LEN - at % 4, &mut past);
        assert_eq!(past[at % 4..], [0xff; 8][at % 4..]);
        // What it listens for, and a ring that is in memory or reaches over its end, since few
        // would be.
        if random.within(0..16) == 0 {
            let _ = chip.put(COMMAND, (COMMAND_RX | COMMAND_TX).into(), 1);
            let base = random.within(0..MEMORY_LEN as u64 + 0x1000);
            let _ = chip.put(RX_BUFFER, base.try_into().unwrap(), 4);
        }
        let packet = vec![0xff; usize::try_from(random.within(0..2000)).unwrap()];
        let before = chip.get(RX_WRITE, 2);
        match chip.receive(&packet, &memory) {
            Received::NoRoom => {
                no_room += 1;
                assert_eq!(chip.get(RX_WRITE, 2), before);
            }
            Received::Done if chip.get(RX_WRITE, 2) == before => {}
            Received::Done => {
                received += 1;
                assert!((14..=LONGEST).contains(&packet.len()));
                let config = chip.get(RX_CONFIG, 4);
                let ring_len = RING_LEN << (config >> RX_RING_SHIFT & 3);
                assert!((chip.get(RX_WRITE, 2) as usize) < ring_len);
                let over = if config & RX_NO_WRAP != 0 {
                    LONGEST + 8
                } else {
                    0
                };
                let start = (chip.get(RX_BUFFER, 4) as usize).min(MEMORY_LEN);
                let end = (start + ring_len + over).min(MEMORY_LEN);
                let mut after = vec![0; MEMORY_LEN];
                memory.read_slice(&mut after, GuestAddress(0)).unwrap();
                assert!(after[..start] == zeroes[..start] && after[end..] == zeroes[end..]);
                let ring = GuestAddress(start as u64);
                memory.write_slice(&zeroes[start..end], ring).unwrap();
            }
        }
    }
    let enough = sends > 100 && received > 1000 && no_room > 10;
    assert!(
        enough,
        "{sends} sent, {received} received, {no_room} without room"
    );
}
