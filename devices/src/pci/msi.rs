//! MSI: the capability's registers (PCI 3.0 §6.8.1, PCIe 6.0 §7.7.1), in their four layouts.
//!
//! A model without I/O, as `msix` is: every write answers with the vectors whose message changed. Left out: extended message data.

use super::{
    msix::{self, RouteChanges},
    registers::CAP_MSI,
};
use crate::{interrupt::MsiMessage, register_file::RegisterFile};

const CONTROL: usize = 2;
const CONTROL_ENABLE: u16 = 1 << 0;
const CONTROL_CAPABLE: u16 = 7 << 1;
const CONTROL_ENABLED: u16 = 7 << 4;
const CONTROL_64BIT: u16 = 1 << 7;
const CONTROL_MASKING: u16 = 1 << 8;
const ADDRESS: usize = 4;
const MOST_VECTORS: usize = 32;

/// What a function's MSI capability offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiLayout {
    /// The message address has an upper half.
    pub wide: bool,
    /// Vectors can be masked one by one.
    pub masking: bool,
    /// How many vectors there are: 1, 2, 4, 8, 16 or 32.
    pub vectors: usize,
}

impl MsiLayout {
    /// Reads the first four bytes of a capability; `None` if they are no MSI capability that makes sense.
    pub fn parse(capability: &[u8]) -> Option<Self> {
        let &[id, _, control_low, control_high] = capability.first_chunk()?;
        let control = u16::from_le_bytes([control_low, control_high]);
        let vectors = 1 << ((control & CONTROL_CAPABLE) >> 1);
        (id == CAP_MSI && vectors <= MOST_VECTORS).then_some(Self {
            wide: control & CONTROL_64BIT != 0,
            masking: control & CONTROL_MASKING != 0,
            vectors,
        })
    }

    /// Length of the capability in bytes.
    pub fn capability_len(&self) -> usize {
        match (self.masking, self.wide) {
            (false, false) => 10,
            (false, true) => 14,
            (true, false) => 20,
            (true, true) => 24,
        }
    }

    fn data(&self) -> usize {
        if self.wide { 12 } else { 8 }
    }

    fn mask(&self) -> usize {
        self.data() + 4
    }

    fn pending(&self) -> usize {
        self.data() + 8
    }

    /// One bit for each vector.
    fn all(&self) -> u32 {
        u32::MAX >> (MOST_VECTORS - self.vectors)
    }

    fn control(&self) -> u16 {
        let capable = u16::try_from(self.vectors.ilog2()).unwrap_or(0) << 1;
        let wide = if self.wide { CONTROL_64BIT } else { 0 };
        let masking = if self.masking { CONTROL_MASKING } else { 0 };
        capable | wide | masking
    }
}

/// The MSI state of one function, as the guest sees it.
#[derive(Debug, Clone)]
pub struct Msi {
    layout: MsiLayout,
    // The capability. Its first two bytes, ID and next pointer, are not ours: they stay zero here.
    registers: RegisterFile,
    routed: Vec<Option<MsiMessage>>,
}

impl Msi {
    /// Disabled, nothing masked.
    pub fn new(mut layout: MsiLayout) -> Self {
        layout.vectors = layout.vectors.next_power_of_two().clamp(1, MOST_VECTORS);
        let mut registers = RegisterFile::new(layout.capability_len());
        registers.set(CONTROL, &layout.control().to_le_bytes());
        registers.allow(CONTROL, &(CONTROL_ENABLE | CONTROL_ENABLED).to_le_bytes());
        registers.allow(ADDRESS, &0xffff_fffc_u32.to_le_bytes());
        if layout.wide {
            registers.allow(ADDRESS + 4, &[0xff; 4]);
        }
        registers.allow(layout.data(), &[0xff; 2]);
        if layout.masking {
            registers.allow(layout.mask(), &layout.all().to_le_bytes());
        }
        Self {
            layout,
            registers,
            routed: vec![None; layout.vectors],
        }
    }

    /// What the capability offers.
    pub fn layout(&self) -> MsiLayout {
        self.layout
    }

    /// Whether the guest enabled MSI (and INTx is out of use).
    pub fn is_enabled(&self) -> bool {
        self.registers.word(CONTROL) & CONTROL_ENABLE != 0
    }

    /// How many vectors the guest uses. More than there are is not possible: what it asks beyond is not given.
    pub fn vectors_in_use(&self) -> usize {
        let wanted = 1 << ((self.registers.word(CONTROL) & CONTROL_ENABLED) >> 4);
        self.layout.vectors.min(wanted)
    }

    /// Reads at `offset` in the capability. `is_latched` answers for a vector without a route. `data` stays as it is where the
    /// registers are not this model's: ID, next pointer, and past the end.
    pub fn capability_read(
        &self,
        offset: usize,
        data: &mut [u8],
        is_latched: impl Fn(usize) -> bool,
    ) {
        for (at, byte) in (offset..).zip(data) {
            if (CONTROL..self.layout.capability_len()).contains(&at) {
                self.registers.read(at, std::slice::from_mut(byte));
                if self.layout.masking && at >= self.layout.pending() {
                    *byte = self.pending(at - self.layout.pending(), &is_latched);
                }
            }
        }
    }

    /// Byte `at` of the pending bits.
    fn pending(&self, at: usize, is_latched: impl Fn(usize) -> bool) -> u8 {
        let vectors = (0..8).map(|bit| (bit, 8 * at + bit));
        let pending = vectors.filter(|&(_, v)| self.routed.get(v) == Some(&None) && is_latched(v));
        pending.fold(0, |byte, (bit, _)| byte | 1 << bit)
    }

    /// Writes at `offset` in the capability.
    pub fn capability_write(&mut self, offset: usize, data: &[u8]) -> RouteChanges {
        self.registers.write(offset, data);
        let mut changes = Vec::new();
        for vector in 0..self.layout.vectors {
            let message = self.message(vector);
            if self.routed[vector] != message {
                self.routed[vector] = message;
                changes.push((vector, message));
            }
        }
        changes
    }

    /// The messages of all vectors that have one to go to now.
    pub fn routes(&self) -> RouteChanges {
        msix::messages(&self.routed)
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        *self = Self::new(self.layout);
    }

    fn message(&self, vector: usize) -> Option<MsiMessage> {
        let masked =
            self.layout.masking && self.registers.dword(self.layout.mask()) >> vector & 1 != 0;
        let in_use = self.vectors_in_use();
        (self.is_enabled() && vector < in_use && !masked).then(|| {
            let low = u64::from(self.registers.dword(ADDRESS));
            let high = if self.layout.wide {
                u64::from(self.registers.dword(ADDRESS + 4))
            } else {
                0
            };
            // PCI 3.0 §6.8.1.6: the function puts the vector's number into the low bits of the data.
            let data =
                usize::from(self.registers.word(self.layout.data())) & !(in_use - 1) | vector;
            MsiMessage {
                address: high << 32 | low,
                data: u32::try_from(data).unwrap_or(0),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::widths_agree;

    fn layout(wide: bool, masking: bool, vectors: usize) -> MsiLayout {
        MsiLayout {
            wide,
            masking,
            vectors,
        }
    }

    fn read(msi: &Msi, offset: usize) -> u32 {
        let mut data = [0; 4];
        msi.capability_read(offset, &mut data, |_| false);
        u32::from_le_bytes(data)
    }

    #[test]
    fn one_vector_gets_the_whole_message() {
        let mut msi = Msi::new(layout(true, false, 1));
        msi.capability_write(4, &0xfee0_1003_u32.to_le_bytes());
        msi.capability_write(8, &1_u32.to_le_bytes());
        msi.capability_write(12, &0x4041_u16.to_le_bytes());
        let message = MsiMessage {
            address: 0x1_fee0_1000,
            data: 0x4041,
        };
        assert_eq!(msi.capability_write(2, &[1, 0]), [(0, Some(message))]);
        assert!(msi.is_enabled());
        assert_eq!(msi.capability_write(2, &[0, 0]), [(0, None)]);
    }

    #[test]
    fn several_vectors_differ_in_the_low_bits_of_the_data() {
        let mut msi = Msi::new(layout(false, false, 8));
        msi.capability_write(4, &0xfee0_0000_u32.to_le_bytes());
        msi.capability_write(8, &0x47_u16.to_le_bytes());
        let changes = msi.capability_write(2, &[0x21, 0]);
        let data: Vec<_> = changes.iter().map(|(v, m)| (*v, m.unwrap().data)).collect();
        assert_eq!(data, [(0, 0x44), (1, 0x45), (2, 0x46), (3, 0x47)]);
    }

    #[test]
    fn more_vectors_than_there_are_are_not_given() {
        let mut msi = Msi::new(layout(false, false, 2));
        assert_eq!(msi.capability_write(2, &[0x71, 0]).len(), 2);
        assert_eq!(msi.vectors_in_use(), 2);
    }

    #[test]
    fn a_masked_vector_has_no_route_and_its_pending_bit_shows() {
        for (wide, mask, pending) in [(false, 12, 16), (true, 16, 20)] {
            let mut msi = Msi::new(layout(wide, true, 4));
            msi.capability_write(2, &[0x21, 0]);
            assert_eq!(msi.capability_write(mask, &[0xff; 4]).len(), 4);
            assert_eq!(read(&msi, mask), 0xf);
            let message = msi.capability_write(mask, &[0b1110])[0];
            assert!(matches!(message, (0, Some(_))));
            let mut data = [0; 4];
            msi.capability_read(pending, &mut data, |vector| vector < 2);
            assert_eq!(data, [0b10, 0, 0, 0]);
        }
    }

    #[test]
    fn the_capability_reads_back_as_its_layout() {
        for wide in [false, true] {
            for masking in [false, true] {
                for vectors in [1, 2, 4, 8, 16, 32] {
                    let layout = layout(wide, masking, vectors);
                    let msi = Msi::new(layout);
                    let [_, _, low, high] = read(&msi, 0).to_le_bytes();
                    assert_eq!(MsiLayout::parse(&[0x05, 0, low, high]), Some(layout));
                }
            }
        }
        assert_eq!(MsiLayout::parse(&[0x05, 0, 0x0e, 0]), None);
        assert_eq!(MsiLayout::parse(&[0x05, 0, 0]), None);
    }

    #[test]
    fn id_and_next_pointer_are_left_to_the_caller() {
        let mut data = [0xaa; 4];
        Msi::new(layout(true, true, 1)).capability_read(0, &mut data, |_| false);
        assert_eq!(data, [0xaa, 0xaa, 0x80, 0x01]);
    }

    #[test]
    fn reset_leaves_no_route() {
        let mut msi = Msi::new(layout(true, true, 2));
        let changes = msi.capability_write(2, &[0x11, 0]);
        assert_eq!(changes.len(), 2);
        assert_eq!(msi.routes(), changes);
        msi.reset();
        assert!(!msi.is_enabled());
        assert_eq!(msi.routes(), []);
    }

    #[test]
    fn byte_word_and_dword_accesses_agree() {
        let at = |offset: u64| usize::try_from(offset).unwrap();
        for (wide, masking) in [(false, false), (false, true), (true, false), (true, true)] {
            widths_agree(
                || Msi::new(layout(wide, masking, 8)),
                (0..24, 4),
                |msi, offset, data| msi.capability_read(at(offset), data, |v| v % 2 == 0),
                |msi, offset, data| drop(msi.capability_write(at(offset), data)),
                25_000,
            );
        }
    }
}
