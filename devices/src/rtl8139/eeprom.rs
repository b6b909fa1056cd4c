//! The serial EEPROM beside the chip, a 93C46: 64 words, read bit by bit through one register, as 8139too does
//! (`read_eeprom`).
//!
//! Left out: writing it. What drivers want there is the address.

/// What the register's bits are: select, clock, data to it, data from it.
const SELECT: u8 = 1 << 3;
const CLOCK: u8 = 1 << 2;
const TO: u8 = 1 << 1;
const FROM: u8 = 1 << 0;
/// The upper bits choose who has the pins: 10 is software. They are kept as they are written.
const KEPT: u8 = 0xc0 | SELECT | CLOCK | TO;

/// A start bit, two bits of operation, six of address.
const COMMAND_BITS: u32 = 9;
/// Start and "read".
const READ: u32 = 0b110;

/// First word: what the chip knows a filled EEPROM by.
const SIGNATURE: u16 = 0x8129;
/// Where the address is, in words.
const ADDRESS_AT: usize = 7;

/// The EEPROM and the conversation with it.
#[derive(Debug, Clone)]
pub(super) struct Eeprom {
    words: [u16; 64],
    register: u8,
    /// The bits of a command so far, and how many; the start bit is the first.
    command: u32,
    bits: u32,
    /// What is still to be said, most significant bit first.
    answer: u16,
    says: bool,
}

impl Eeprom {
    /// With an address in it.
    pub(super) fn new([a, b, c, d, e, f]: [u8; 6]) -> Self {
        let mut words = [0; 64];
        words[0] = SIGNATURE;
        let address = [[a, b], [c, d], [e, f]].map(u16::from_le_bytes);
        words[ADDRESS_AT..ADDRESS_AT + 3].copy_from_slice(&address);
        Self {
            words,
            register: 0,
            command: 0,
            bits: 0,
            answer: 0,
            says: false,
        }
    }

    pub(super) fn read(&self) -> u8 {
        self.register | if self.says { FROM } else { 0 }
    }

    pub(super) fn write(&mut self, value: u8) {
        let rises = value & CLOCK != 0 && self.register & CLOCK == 0;
        self.register = value & KEPT;
        if value & SELECT == 0 {
            (self.command, self.bits, self.says) = (0, 0, false);
        } else if rises {
            self.clock(value & TO != 0);
        }
    }

    fn clock(&mut self, bit: bool) {
        if self.bits == COMMAND_BITS {
            self.says = self.answer & 0x8000 != 0;
            self.answer <<= 1;
            return;
        }
        // Zeroes before the start bit are nothing.
        if self.bits == 0 && !bit {
            return;
        }
        self.command = self.command << 1 | u32::from(bit);
        self.bits += 1;
        if self.bits == COMMAND_BITS {
            let word = self.command & 0x3f;
            let is_read = self.command >> 6 == READ;
            let word = usize::try_from(word).ok().filter(|_| is_read);
            self.answer = word.map_or(0, |word| self.words[word]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As 8139too does it, which begins with zeroes and tries eight bits of address first.
    fn read(eeprom: &mut Eeprom, word: u32, address_bits: u32) -> u16 {
        let enabled = 0x80 | SELECT;
        eeprom.write(0x80);
        eeprom.write(enabled);
        let command = word | READ << address_bits;
        for bit in (0..=4 + address_bits).rev() {
            let data = if command >> bit & 1 == 1 { TO } else { 0 };
            eeprom.write(enabled | data);
            eeprom.write(enabled | data | CLOCK);
        }
        eeprom.write(enabled);
        let mut answer = 0;
        for _ in 0..16 {
            eeprom.write(enabled | CLOCK);
            answer = answer << 1 | u16::from(eeprom.read() & FROM);
            eeprom.write(enabled);
        }
        eeprom.write(0);
        answer
    }

    #[test]
    fn a_driver_finds_the_signature_by_six_bits_of_address_and_the_address_behind_it() {
        let mut eeprom = Eeprom::new([2, 1, 4, 3, 6, 5]);
        assert_ne!(read(&mut eeprom, 0, 8), SIGNATURE);
        assert_eq!(read(&mut eeprom, 0, 6), SIGNATURE);
        let words = [7, 8, 9, 10].map(|word| read(&mut eeprom, word, 6));
        assert_eq!(words, [0x0102, 0x0304, 0x0506, 0]);
    }
}
