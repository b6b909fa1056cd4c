//! The chip without its bus: registers, the ring of received packets, the four packets to be sent. No I/O: what is to be done about a
//! write is its answer.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{eeprom::Eeprom, registers::*};
use crate::register_file::RegisterFile;

/// The longest packet that is sent or received: what Ethernet has, with a VLAN tag and without checksum.
pub(super) const LONGEST: usize = 1518;
/// The shortest that is on a cable; a shorter one is filled up.
const SHORTEST: usize = 60;
/// Before a received packet: its status and length.
const HEADER_LEN: usize = 4;
/// How far the driver's register is behind where it reads.
const READ_LAG: u16 = 16;

/// What a write amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Effect {
    /// Nothing but registers changed.
    None,
    /// The driver wants a descriptor's packet sent: which, where it is, its length.
    Send(usize, u32, usize),
    /// There may be room for a packet that there was none for.
    Room,
}

/// What became of a packet for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// It is in the ring, or nothing that this guest wants.
    Done,
    /// The ring has no room for it now.
    NoRoom,
}

#[derive(Debug, Clone)]
pub(super) struct Chip {
    registers: RegisterFile,
    eeprom: Eeprom,
    address: [u8; 6],
}

impl Chip {
    /// At power-on.
    pub(super) fn new(address: [u8; 6]) -> Self {
        let mut registers = RegisterFile::new(LEN);
        let writable = [
            (ADDRESS, 6),
            (MULTICAST, 8),
            (TX_ADDRESS, 4 * TX_DESCRIPTORS),
            (RX_BUFFER, 4),
            (RX_READ, 2),
            (INTERRUPT_MASK, 2),
            (RX_CONFIG, 4),
            (CONFIGURATION, CONFIGURATION_LEN),
            (PHY_OWN, 2),
        ];
        for (at, len) in writable {
            registers.allow(at, &vec![0xff; len]);
        }
        registers.allow(COMMAND, &[COMMAND_TX | COMMAND_RX]);
        registers.allow(TX_CONFIG, &0x0306_07f0_u32.to_le_bytes());
        registers.allow(MEDIUM, &[0]);
        registers.clear_by_one(INTERRUPT_STATUS, &[0xff; 2]);
        for descriptor in 0..TX_DESCRIPTORS {
            // The driver clears the bit that says that a descriptor is its own, and cannot set it.
            let at = TX_STATUS + 4 * descriptor;
            registers.allow(at, &(0x003f_0000 | TX_SIZE).to_le_bytes());
        }
        let mut chip = Self {
            registers,
            eeprom: Eeprom::new(address),
            address,
        };
        chip.power_on();
        chip
    }

    /// Back to power-on.
    pub(super) fn power_on(&mut self) {
        for at in 0..LEN {
            self.registers.set(at, &[0]);
        }
        self.eeprom = Eeprom::new(self.address);
        self.registers.set(ADDRESS, &self.address);
        // It has negotiated 100 Mbit/s both ways at once with a partner that can that (the bits are those of Linux's `mii.h`).
        let phy = [
            (PHY_CONTROL, 0x1100_u16),
            (PHY_STATUS, 0x782d),
            (PHY_OWN, 0x01e1),
            (PHY_PARTNER, 0x45e1),
            (PHY_EXPANSION, 1),
        ];
        for (at, value) in phy {
            self.registers.set(at, &value.to_le_bytes());
        }
        self.reset();
    }

    /// As the driver's reset does: what is under way ends, what is configured stays.
    fn reset(&mut self) {
        self.registers.set(COMMAND, &[0]);
        self.registers.set(INTERRUPT_MASK, &[0; 4]);
        self.registers.set(RX_BUFFER, &[0; 4]);
        self.registers
            .set(RX_READ, &READ_LAG.wrapping_neg().to_le_bytes());
        self.registers.set(RX_WRITE, &[0; 2]);
        self.registers.set(RX_CONFIG, &[0; 4]);
        self.registers.set(RX_MISSED, &[0; 4]);
        self.registers.set(TX_CONFIG, &CHIP.to_le_bytes());
        for descriptor in 0..TX_DESCRIPTORS {
            self.set_tx_status(descriptor, TX_OWN);
        }
    }

    /// Whether its interrupt pin is asserted.
    pub(super) fn interrupts(&self) -> bool {
        self.registers.word(INTERRUPT_STATUS) & self.registers.word(INTERRUPT_MASK) != 0
    }

    fn interrupt(&mut self, cause: u16) {
        let status = self.registers.word(INTERRUPT_STATUS) | cause;
        self.registers.set(INTERRUPT_STATUS, &status.to_le_bytes());
    }

    /// Reads as the guest does, any width.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        self.registers.read(offset, data);
        for (at, byte) in (offset..).zip(data) {
            match at {
                COMMAND if self.is_empty() => *byte |= COMMAND_EMPTY,
                EEPROM => *byte = self.eeprom.read(),
                TX_SUMMARY => *byte = self.owned(),
                _ if at == TX_SUMMARY + 1 => *byte = self.sent(),
                _ => {}
            }
        }
    }

    /// Writes as the guest does, any width. What is sent by it is sent by the byte that gives the descriptor away.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) -> Effect {
        self.registers.write(offset, data);
        let mut effect = Effect::None;
        for (at, &byte) in (offset..).zip(data) {
            match at {
                COMMAND if byte & COMMAND_RESET != 0 => self.reset(),
                COMMAND => effect = Effect::Room,
                EEPROM => self.eeprom.write(byte),
                _ if at == RX_READ + 1 => effect = Effect::Room,
                RX_MISSED => self.registers.set(RX_MISSED, &[0; 4]),
                TX_STATUS..TX_ADDRESS if at % 4 == 1 => {
                    let gives = u32::from(byte) << 8 & TX_OWN == 0;
                    if let Some(send) = gives.then(|| self.give((at - TX_STATUS) / 4)).flatten() {
                        effect = send;
                    }
                }
                _ => {}
            }
        }
        effect
    }

    /// The driver gives a descriptor to the chip.
    fn give(&mut self, descriptor: usize) -> Option<Effect> {
        let at = TX_STATUS + 4 * descriptor;
        let status = self.registers.dword(at);
        let is_on = self.registers.bytes().get(COMMAND)? & COMMAND_TX != 0;
        if !is_on || status & TX_OWN == 0 {
            return None;
        }
        self.set_tx_status(descriptor, status & !(TX_OWN | TX_OK | TX_ABORTED));
        let address = self.registers.dword(TX_ADDRESS + 4 * descriptor);
        let len = usize::try_from(status & TX_SIZE).ok()?;
        Some(Effect::Send(descriptor, address, len))
    }

    /// A descriptor's packet is on its way, or cannot be. Unless the chip has been reset since.
    pub(super) fn sent_one(&mut self, descriptor: usize, is_sent: bool) {
        let status = self.registers.dword(TX_STATUS + 4 * descriptor);
        if status & TX_OWN != 0 {
            return;
        }
        let (bit, cause) = match is_sent {
            true => (TX_OK, INTERRUPT_TX),
            false => (TX_ABORTED, INTERRUPT_TX_ERROR),
        };
        self.set_tx_status(descriptor, status | TX_OWN | bit);
        self.interrupt(cause);
    }

    fn set_tx_status(&mut self, descriptor: usize, status: u32) {
        let at = TX_STATUS + 4 * descriptor;
        self.registers.set(at, &status.to_le_bytes());
    }

    fn summary(&self, bit: u32) -> u8 {
        (0..TX_DESCRIPTORS).fold(0, |all, descriptor| {
            let status = self.registers.dword(TX_STATUS + 4 * descriptor);
            all | u8::from(status & bit != 0) << descriptor
        })
    }

    fn owned(&self) -> u8 {
        self.summary(TX_OWN) | self.summary(TX_ABORTED) << 4
    }

    fn sent(&self) -> u8 {
        self.summary(TX_OK) << 4
    }

    fn ring_len(&self) -> usize {
        let shift = self.registers.dword(RX_CONFIG) >> RX_RING_SHIFT & 3;
        8192 << shift
    }

    /// How much of the ring the driver has not read.
    fn unread(&self) -> usize {
        let len = self.ring_len();
        let read = self.registers.word(RX_READ).wrapping_add(READ_LAG);
        let write = self.registers.word(RX_WRITE);
        (usize::from(write) % len + len - usize::from(read) % len) % len
    }

    fn is_empty(&self) -> bool {
        self.unread() == 0
    }

    /// Puts a packet into the ring, if the guest wants it.
    pub(super) fn receive(&mut self, packet: &[u8], memory: &GuestMemoryMmap) -> Received {
        let is_on = self.registers.bytes().get(COMMAND).copied().unwrap_or(0) & COMMAND_RX != 0;
        let Some(status) = self.wants(packet).filter(|_| is_on) else {
            return Received::Done;
        };
        if packet.len() > LONGEST {
            return Received::Done;
        }
        let mut body = packet.to_vec();
        body.resize(packet.len().max(SHORTEST), 0);
        let checksum = !crc(&body);
        body.extend(checksum.to_le_bytes());
        let Ok(len) = u16::try_from(body.len()) else {
            return Received::Done;
        };
        let taken = (HEADER_LEN + body.len()).next_multiple_of(4);
        // A ring that is full would look empty.
        if self.unread() + taken >= self.ring_len() {
            return Received::NoRoom;
        }
        let header = [(PACKET_OK | status).to_le_bytes(), len.to_le_bytes()].concat();
        let write = usize::from(self.registers.word(RX_WRITE)) % self.ring_len();
        self.store(write, &header, memory);
        self.store(write + HEADER_LEN, &body, memory);
        let next = (write + taken) % self.ring_len();
        let next = u16::try_from(next).unwrap_or(0);
        self.registers.set(RX_WRITE, &next.to_le_bytes());
        self.interrupt(INTERRUPT_RX);
        Received::Done
    }

    /// Writes into the ring; over its end where the driver asked for that, or else on from its start. What is not in memory is lost.
    fn store(&self, at: usize, bytes: &[u8], memory: &GuestMemoryMmap) {
        let len = self.ring_len();
        let base = u64::from(self.registers.dword(RX_BUFFER));
        let put = |at: usize, bytes: &[u8]| {
            let _ = memory.write_slice(bytes, GuestAddress(base + at as u64));
        };
        if self.registers.dword(RX_CONFIG) & RX_NO_WRAP != 0 {
            return put(at, bytes);
        }
        let (before, after) = bytes.split_at(bytes.len().min(len.saturating_sub(at)));
        put(at, before);
        put((at + before.len()) % len, after);
    }

    /// What the status says of a packet for somebody that the guest listens for.
    fn wants(&self, packet: &[u8]) -> Option<u16> {
        let to = packet.first_chunk::<6>().filter(|_| packet.len() >= 14)?;
        let wanted = self.registers.dword(RX_CONFIG);
        let own = self.registers.bytes().get(ADDRESS..ADDRESS + 6)?;
        let (bit, status) = match to {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => (RX_EVERYBODY, PACKET_EVERYBODY),
            [first, ..] if first & 1 != 0 => match self.is_of_group(to) {
                true => (RX_GROUPS, PACKET_GROUP),
                false => (0, PACKET_GROUP),
            },
            to if to == own => (RX_OWN, PACKET_OWN),
            _ => (0, 0),
        };
        (wanted & (bit | RX_ALL) != 0).then_some(status)
    }

    fn is_of_group(&self, to: &[u8; 6]) -> bool {
        // The upper six bits of the checksum, as the first bit on the cable is the upper one (ether_crc in include/linux/crc32.h).
        let hash = usize::try_from(crc(to).reverse_bits() >> 26).unwrap_or(0);
        let byte = self.registers.bytes().get(MULTICAST + hash / 8);
        byte.is_some_and(|byte| byte >> (hash % 8) & 1 != 0)
    }
}

/// Ethernet's checksum, not yet inverted.
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests;
