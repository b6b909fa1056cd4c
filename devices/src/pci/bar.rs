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
mod tests;
