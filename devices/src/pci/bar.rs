//! Base address registers (PCI 3.0 §6.2.5) and the expansion ROM's (§6.2.5.2).
//!
//! The registers are the only copy of an address: nothing is cached that a write could leave stale. What is not here is where an
//! address may go: `space` knows what the host bridge forwards.

use super::registers::{BAR0, CARDBUS_CIS, COMMAND_IO, COMMAND_MEMORY, ROM};
use crate::register_file::RegisterFile;

/// The index that names the expansion ROM's register, after the six BARs.
pub const ROM_INDEX: usize = 6;
/// How many registers there are, the expansion ROM's included.
pub const REGISTERS: usize = 7;

const ROM_ENABLE: u64 = 1;
const ROM_SMALLEST: u64 = 1 << 11;

/// Which address space a BAR is in, and how wide its register is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes this register and the next.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// What a function says of one of its BARs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarSpec {
    /// The register: 0 to 5, or `ROM_INDEX`.
    pub index: usize,
    /// Its address space; `Memory32` for the ROM.
    pub kind: BarKind,
    /// Size in bytes (or ports); a power of two.
    pub size: u64,
}

/// A BAR that answers at an address now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// The register: 0 to 5, or `ROM_INDEX`.
    pub index: usize,
    /// Its address space.
    pub kind: BarKind,
    /// First address (or port).
    pub address: u64,
    /// Size in bytes (or ports).
    pub size: u64,
}

/// A function's BARs are not ones that registers can express.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// There is no such register, or no next one for the upper half.
    #[error("BAR {0}: there is no such register")]
    NoSuchRegister(usize),
    /// Two BARs claim one register.
    #[error("BAR {0}: its register is another BAR's")]
    Taken(usize),
    /// The register cannot say this size.
    #[error("BAR {index}: {size} bytes is not a size that a BAR of its kind can have")]
    Size {
        /// The register.
        index: usize,
        /// The size asked for.
        size: u64,
    },
}

/// The six BARs of a function and its expansion ROM register.
#[derive(Debug, Clone)]
pub struct Bars {
    // From BAR0 to the end of the ROM register; what lies between reads as zero here and is nobody's business.
    registers: RegisterFile,
    // The same as software wrote it last, read-only bits and all: tells a question for the size from an address.
    written: RegisterFile,
    specs: Vec<BarSpec>,
}

impl BarKind {
    /// Whether this is memory, as opposed to ports.
    pub fn is_memory(self) -> bool {
        self != Self::Io
    }

    fn width(self) -> usize {
        if matches!(self, Self::Memory64 { .. }) {
            8
        } else {
            4
        }
    }

    /// The read-only low bits of the register.
    fn type_bits(self) -> u8 {
        match self {
            Self::Io => 0b01,
            Self::Memory32 { prefetchable } => u8::from(prefetchable) << 3,
            Self::Memory64 { prefetchable } => u8::from(prefetchable) << 3 | 0b100,
        }
    }

    /// The smallest and the largest size that the register can express.
    fn sizes(self) -> std::ops::RangeInclusive<u64> {
        match self {
            Self::Io => 4..=1 << 16,
            Self::Memory32 { .. } => 16..=1 << 31,
            Self::Memory64 { .. } => 16..=1 << 63,
        }
    }
}

impl BarSpec {
    /// The address bits that software may set: those that the size leaves over.
    fn mask(&self) -> u64 {
        let mask = !(self.size - 1);
        if self.kind.width() == 8 {
            mask
        } else {
            mask & 0xffff_ffff
        }
    }

    fn check(&self) -> Result<(), BarError> {
        let &Self { index, kind, size } = self;
        let wide = kind.width() == 8;
        if index > ROM_INDEX || wide && index >= 5 || index == ROM_INDEX && !kind.is_memory() {
            return Err(BarError::NoSuchRegister(index));
        }
        let big_enough = index != ROM_INDEX || size >= ROM_SMALLEST;
        if !size.is_power_of_two() || !kind.sizes().contains(&size) || !big_enough {
            return Err(BarError::Size { index, size });
        }
        Ok(())
    }

    fn at(&self) -> usize {
        if self.index == ROM_INDEX {
            ROM - BAR0
        } else {
            4 * self.index
        }
    }
}

fn fits(kind: BarKind, address: u64, end: u64) -> bool {
    const FOUR_GIB: u64 = 1 << 32;
    match kind {
        BarKind::Io => end <= 1 << 16,
        _ => address >= FOUR_GIB || end < FOUR_GIB,
    }
}

impl Bars {
    /// Registers for `specs`, all at address 0. The specs may come from a device: they are checked.
    pub fn new(specs: &[BarSpec]) -> Result<Self, BarError> {
        const LEN: usize = ROM + 4 - BAR0;
        let mut bars = Self {
            registers: RegisterFile::new(LEN),
            written: RegisterFile::new(LEN),
            specs: specs.to_vec(),
        };
        bars.written.allow(0, &[0xff; LEN]);
        let mut taken = [false; REGISTERS];
        for spec in specs {
            spec.check()?;
            let halves = spec.kind.width() / 4;
            for (index, taken) in taken.iter_mut().enumerate().skip(spec.index).take(halves) {
                if std::mem::replace(taken, true) {
                    return Err(BarError::Taken(index));
                }
            }
            bars.add(spec);
        }
        Ok(bars)
    }

    fn add(&mut self, spec: &BarSpec) {
        let mut mask = spec.mask();
        if spec.index == ROM_INDEX {
            // The bits of a ROM's register that would be a BAR's type are its enable bit and reserved ones.
            mask |= ROM_ENABLE;
        } else {
            self.registers.set(spec.at(), &[spec.kind.type_bits()]);
        }
        let width = spec.kind.width();
        self.registers
            .allow(spec.at(), &mask.to_le_bytes()[..width]);
    }

    /// Whether `offset` in configuration space is one of these registers.
    pub fn contains(offset: u16) -> bool {
        let offset = usize::from(offset);
        (BAR0..CARDBUS_CIS).contains(&offset) || (ROM..ROM + 4).contains(&offset)
    }

    /// What the function was said to have.
    pub fn specs(&self) -> &[BarSpec] {
        &self.specs
    }

    /// Reads at an `offset` in configuration space that these registers contain.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        match usize::from(offset).checked_sub(BAR0) {
            Some(at) => self.registers.read(at, data),
            None => data.fill(0xff),
        }
    }

    /// Writes at an `offset` in configuration space. Writing all-ones and reading back gives the size: only address bits take.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        if let Some(at) = usize::from(offset).checked_sub(BAR0) {
            self.registers.write(at, data);
            self.written.write(at, data);
        }
    }

    /// Gives BAR `index` its address. Bits below its size are dropped; an index that is not there is ignored.
    pub fn assign(&mut self, index: usize, address: u64) {
        if let Some(spec) = self.specs.iter().find(|spec| spec.index == index) {
            let keep = self.value(spec) & !spec.mask();
            let value = (address & spec.mask() | keep).to_le_bytes();
            self.registers.set(spec.at(), &value[..spec.kind.width()]);
            self.written.set(spec.at(), &value[..spec.kind.width()]);
        }
    }

    /// The address in BAR `index`, whether it decodes or not.
    pub fn address(&self, index: usize) -> Option<u64> {
        let spec = self.specs.iter().find(|spec| spec.index == index)?;
        Some(self.value(spec) & spec.mask())
    }

    fn value(&self, spec: &BarSpec) -> u64 {
        let mut value = [0; 8];
        self.registers
            .read(spec.at(), &mut value[..spec.kind.width()]);
        u64::from_le_bytes(value)
    }

    /// The BARs that answer under `command`. An address that is none is not an error: such a BAR just does not answer.
    pub fn decoded(&self, command: u16) -> Vec<Decoded> {
        let specs = self.specs.iter();
        specs
            .filter_map(|spec| self.decode(spec, command))
            .collect()
    }

    fn decode(&self, spec: &BarSpec, command: u16) -> Option<Decoded> {
        let &BarSpec { index, kind, size } = spec;
        let value = self.value(spec);
        let wanted = if kind.is_memory() {
            COMMAND_MEMORY
        } else {
            COMMAND_IO
        };
        let enabled = command & wanted != 0 && (index != ROM_INDEX || value & ROM_ENABLE != 0);
        let address = value & spec.mask();
        let end = address.checked_add(size);
        let placed = address != 0 && end.is_some_and(|end| fits(kind, address, end));
        (enabled && placed && !self.is_asked_for_its_size(spec)).then_some(Decoded {
            index,
            kind,
            address,
            size,
        })
    }

    /// All-ones are not an address but the question for the size (§6.2.5.1). It needs no rule where the range then ends at the very top
    /// of 4 GiB, or of everything: no BAR is ever put there. But the lower half of a 64-bit BAR whose upper half keeps its address makes
    /// a range like any other.
    fn is_asked_for_its_size(&self, spec: &BarSpec) -> bool {
        let has_low_half = spec.kind.width() == 8 && spec.size < 1 << 32;
        has_low_half && self.written.dword(spec.at()) == u32::MAX
    }

    /// Back to power-on: every address 0, the ROM disabled.
    pub fn reset(&mut self) {
        let len = self.registers.bytes().len();
        // Through the masks, so that the type bits stay.
        self.registers.write(0, &vec![0; len]);
        self.written.write(0, &vec![0; len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, widths_agree};

    const IO: BarKind = BarKind::Io;
    const LOW: BarKind = BarKind::Memory32 {
        prefetchable: false,
    };
    const HIGH: BarKind = BarKind::Memory64 { prefetchable: true };

    fn spec(index: usize, kind: BarKind, size: u64) -> BarSpec {
        BarSpec { index, kind, size }
    }

    fn card() -> Bars {
        let specs = [
            spec(0, HIGH, 16 << 30),
            spec(2, LOW, 4096),
            spec(3, IO, 32),
            spec(4, HIGH, 16384),
            spec(ROM_INDEX, LOW, 65536),
        ];
        Bars::new(&specs).unwrap()
    }

    fn dword(bars: &Bars, offset: u16) -> u32 {
        let mut data = [0; 4];
        bars.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn ask_size(bars: &mut Bars, offset: u16) -> u32 {
        bars.write(offset, &[0xff; 4]);
        dword(bars, offset)
    }

    #[test]
    fn all_ones_read_back_as_size_and_type() {
        let mut bars = card();
        assert_eq!(ask_size(&mut bars, 0x10), 0x0000_000c);
        assert_eq!(ask_size(&mut bars, 0x14), 0xffff_fffc);
        assert_eq!(ask_size(&mut bars, 0x18), 0xffff_f000);
        assert_eq!(ask_size(&mut bars, 0x1c), 0xffff_ffe1);
        assert_eq!(ask_size(&mut bars, 0x20), 0xffff_c00c);
        assert_eq!(ask_size(&mut bars, 0x24), 0xffff_ffff);
        assert_eq!(ask_size(&mut bars, 0x30), 0xffff_0001);
    }

    #[test]
    fn a_register_without_a_bar_reads_zero() {
        let mut bars = Bars::new(&[spec(1, LOW, 4096)]).unwrap();
        assert_eq!(ask_size(&mut bars, 0x10), 0);
        assert_eq!(ask_size(&mut bars, 0x30), 0);
    }

    #[test]
    fn a_bar_answers_only_where_its_space_is_enabled() {
        let mut bars = card();
        bars.assign(2, 0xe000_0000);
        bars.assign(3, 0xc040);
        let indices = |command| -> Vec<_> {
            let decoded = bars.decoded(command).into_iter();
            decoded.map(|decoded| decoded.index).collect()
        };
        assert_eq!(indices(0), []);
        assert_eq!(indices(COMMAND_IO), [3]);
        assert_eq!(indices(COMMAND_MEMORY), [2]);
        assert_eq!(indices(COMMAND_MEMORY | COMMAND_IO), [2, 3]);
    }

    #[test]
    fn what_sizing_leaves_behind_answers_nowhere() {
        let mut bars = card();
        for offset in (0x10..0x28).step_by(4).chain([0x30]) {
            bars.write(offset, &[0xff; 4]);
            // Halfway through a 64-bit pair, too.
            assert_eq!(bars.decoded(COMMAND_MEMORY | COMMAND_IO), []);
        }
        bars.reset();
        assert_eq!(bars.decoded(COMMAND_MEMORY | COMMAND_IO), []);
    }

    #[test]
    fn sizing_a_wide_bar_that_has_an_address_does_not_move_it_on_the_way() {
        let mut bars = card();
        bars.assign(4, 0x12_8000_4000);
        let place = |bars: &Bars| bars.decoded(COMMAND_MEMORY).first().map(|d| d.address);
        let low = dword(&bars, 0x20);
        bars.write(0x20, &[0xff; 4]);
        assert_eq!(
            (place(&bars), bars.address(4)),
            (None, Some(0x12_ffff_c000))
        );
        bars.write(0x20, &low.to_le_bytes());
        assert_eq!(place(&bars), Some(0x12_8000_4000));
        // The same address, meant as one.
        bars.write(0x20, &0xffff_c00c_u32.to_le_bytes());
        assert_eq!(place(&bars), Some(0x12_ffff_c000));
        // Of 16 GiB, the lower half holds no part of the address.
        bars.assign(0, 0x4_0000_0000);
        bars.write(0x10, &[0xff; 4]);
        assert_eq!(place(&bars), Some(0x4_0000_0000));
    }

    #[test]
    fn the_rom_answers_once_its_own_enable_bit_is_set() {
        let mut bars = card();
        bars.assign(ROM_INDEX, 0xe001_0000);
        assert_eq!(bars.decoded(COMMAND_MEMORY), []);
        bars.write(0x30, &[1]);
        let decoded = bars.decoded(COMMAND_MEMORY);
        assert_eq!(decoded[0].address, 0xe001_0000);
        bars.assign(ROM_INDEX, 0xe002_0000);
        assert_eq!(dword(&bars, 0x30), 0xe002_0001);
    }

    #[test]
    fn both_halves_make_the_address() {
        let mut bars = card();
        bars.write(0x20, &0x8000_4000_u32.to_le_bytes());
        bars.write(0x24, &0x0000_0012_u32.to_le_bytes());
        assert_eq!(bars.address(4), Some(0x12_8000_4000));
        assert_eq!(bars.decoded(COMMAND_MEMORY)[0].address, 0x12_8000_4000);
        assert_eq!(bars.address(5), None);
    }

    #[test]
    fn bars_that_no_register_can_express_are_refused() {
        let refused = |specs: &[BarSpec]| Bars::new(specs).unwrap_err();
        assert_eq!(refused(&[spec(5, HIGH, 4096)]), BarError::NoSuchRegister(5));
        assert_eq!(refused(&[spec(7, LOW, 4096)]), BarError::NoSuchRegister(7));
        assert_eq!(
            refused(&[spec(ROM_INDEX, IO, 4096)]),
            BarError::NoSuchRegister(6)
        );
        let two = [spec(0, HIGH, 4096), spec(1, LOW, 4096)];
        assert_eq!(refused(&two), BarError::Taken(1));
        for (index, kind, size) in [
            (0, LOW, 0),
            (0, LOW, 12288),
            (0, LOW, 1 << 32),
            (0, LOW, 8),
            (0, IO, 2),
            (ROM_INDEX, LOW, 1024),
        ] {
            assert_eq!(
                refused(&[spec(index, kind, size)]),
                BarError::Size { index, size }
            );
        }
    }

    #[test]
    fn byte_word_and_dword_accesses_agree() {
        let read = |bars: &Bars, at: u64, data: &mut [u8]| bars.read(at.try_into().unwrap(), data);
        let write =
            |bars: &mut Bars, at: u64, data: &[u8]| bars.write(at.try_into().unwrap(), data);
        widths_agree(card, (0x10..0x34, 4), read, write, 200_000);
    }

    // The naive model: one number per BAR, its mask applied on every write.
    #[test]
    fn any_sequence_of_writes_leaves_the_addresses_a_number_would() {
        let mut random = Random::new(1);
        let mut bars = card();
        let mut naive = [0_u64; 5];
        for _ in 0..100_000 {
            let (bar, offset, half, mask) = [
                (0, 0x10, 0, !((16_u64 << 30) - 1)),
                (0, 0x14, 32, !((16_u64 << 30) - 1)),
                (2, 0x18, 0, 0xffff_f000),
                (3, 0x1c, 0, 0xffff_ffe0),
                (4, 0x20, 0, !0x3fff),
                (4, 0x24, 32, !0x3fff),
            ][usize::try_from(random.within(0..6)).unwrap()];
            let value = random.value() & 0xffff_ffff;
            bars.write(offset, &value.to_le_bytes()[..4]);
            naive[bar] = (naive[bar] & !(0xffff_ffff << half) | value << half) & mask;
            assert_eq!(bars.address(bar), Some(naive[bar]));
            for decoded in bars.decoded(COMMAND_MEMORY | COMMAND_IO) {
                assert_eq!(decoded.address, naive[decoded.index]);
                assert!(decoded.address != 0);
            }
        }
    }
}
