//! What the guest should see of one card: its registers as plain numbers, computed anew at every access.

use std::{cell::Cell, sync::Arc};

use devices::{
    interrupt::MsiMessage,
    pci::bar::{BarKind, BarSpec, Decoded},
};

use super::{
    card::{Owner, ROM, is_wide},
    hardware::Hardware,
};
use crate::kernel::IrqIndex;

/// Bits of the command register that a guest may set, and those that read as it set them.
const COMMAND_SETTABLE: u16 = 0x0557;
const COMMAND_KEPT: u16 = 0x0406;

pub(super) struct Oracle {
    pub(super) hardware: Arc<Hardware>,
    command: u16,
    line_at_reset: u8,
    line: u8,
    /// By register: BAR 0 to 5 and the ROM.
    bars: [u64; 7],
    rom_is_on: bool,
    /// It is read once, whole, and then known.
    rom_was_read: Cell<bool>,
    /// What was last written to each register, whatever it took.
    written: [u32; 7],
    /// The device's D-state, as it was last seen.
    power: u8,
    obeys: bool,
    msi: [u8; 24],
    msix_control: u16,
    table: Vec<u8>,
    /// Which of MSI and MSI-X are enabled, the last to be so last: that one is in force.
    kinds: Vec<IrqIndex>,
}

/// What a write asks for, besides its bytes.
pub(super) enum Asked {
    Reset,
    /// The command register that would be in force.
    Command(u16),
}

impl Oracle {
    pub(super) fn new(hardware: Arc<Hardware>, line: u8) -> Self {
        let line = if hardware.card.pin > 0 { line } else { 0 };
        let mut oracle = Self {
            power: hardware.power_state().unwrap_or(0),
            hardware,
            command: 0,
            line_at_reset: line,
            line,
            bars: [0; 7],
            rom_is_on: false,
            rom_was_read: Cell::new(false),
            written: [0; 7],
            obeys: true,
            msi: [0; 24],
            msix_control: 0,
            table: Vec::new(),
            kinds: Vec::new(),
        };
        oracle.reset_messages();
        oracle
    }

    pub(super) fn byte(&self, at: usize, is_latched: &dyn Fn(usize) -> bool) -> u8 {
        match self.hardware.owners[at] {
            Owner::Device => self.hardware.byte(at),
            Owner::Fixed(value) => value,
            Owner::Command => {
                let shift = 8 * (at - 4);
                let kept = (COMMAND_KEPT >> shift).to_le_bytes()[0];
                let ours = (self.command >> shift).to_le_bytes()[0];
                self.hardware.byte(at) & !kept | ours & kept
            }
            Owner::Bar => self.register(register_at(at)).to_le_bytes()[at % 4],
            Owner::Line => self.line,
            Owner::Msi(byte) => self.msi_byte(byte, is_latched),
            Owner::Msix(byte) => self.msix_control.to_le_bytes()[byte],
        }
    }

    /// What a write of `data` (which stays in its dword) asks for.
    pub(super) fn asks(&self, at: usize, data: &[u8]) -> Asked {
        let byte = |wanted: usize| wanted.checked_sub(at).and_then(|n| data.get(n)).copied();
        let mut resets = self.hardware.card.resets().into_iter();
        if resets.any(|(at, bit)| byte(at).is_some_and(|byte| byte & bit != 0)) {
            return Asked::Reset;
        }
        let power = self.hardware.card.power().and_then(|(at, _)| byte(at));
        let [low, high] = self.command.to_le_bytes();
        let command = [byte(4).unwrap_or(low), byte(5).unwrap_or(high)];
        let awake = power.map_or(self.power, |byte| byte & 3) == 0;
        Asked::Command(if awake {
            u16::from_le_bytes(command)
        } else {
            0
        })
    }

    /// Takes a write that asks for no reset. Answers with what the device should see of it, byte by byte.
    pub(super) fn write(&mut self, at: usize, data: &[u8]) -> Vec<(usize, u8)> {
        let (command, mut commanded) = (self.command, false);
        let mut seen = Vec::new();
        for (at, &value) in (at..).zip(data) {
            match self.hardware.owners[at] {
                Owner::Device => seen.push((at, value)),
                Owner::Fixed(_) => {}
                Owner::Command => {
                    let shift = 8 * (at - 4);
                    let settable = COMMAND_SETTABLE & 0xff << shift;
                    self.command = self.command & !settable | u16::from(value) << shift & settable;
                    commanded = true;
                }
                Owner::Bar => self.write_bar(at, value),
                Owner::Line => self.line = value,
                Owner::Msi(byte) => self.write_msi(byte, value),
                Owner::Msix(1) => {
                    let kept = self.msix_control & 0x3fff;
                    self.msix_control = kept | u16::from(value) << 8 & 0xc000;
                }
                Owner::Msix(_) => {}
            }
        }
        self.follow_kinds();
        if command != self.command || commanded && !self.obeys {
            self.obeys = self.hardware.answers();
        }
        self.see_power();
        let power = self.hardware.card.power().map(|(at, _)| at);
        seen.retain(|&(at, _)| Some(at) != power && self.hardware.answers());
        seen
    }

    /// Looks at the D-state, if that can be seen. Only a write changes it, so looking too often does no harm.
    fn see_power(&mut self) {
        let slept = self.power != 0;
        self.power = self.hardware.power_state().unwrap_or(self.power);
        if slept && self.power == 0 {
            // The command register is sent again: the guest may have written it meanwhile.
            self.obeys = true;
        }
    }

    pub(super) fn reset(&mut self) {
        self.command = 0;
        self.line = self.line_at_reset;
        self.bars = [0; 7];
        self.rom_is_on = false;
        self.written = [0; 7];
        self.obeys = self.hardware.answers();
        self.see_power();
        self.reset_messages();
    }

    /// The command register in force.
    pub(super) fn decoding(&self) -> u16 {
        if self.power == 0 && self.obeys {
            self.command
        } else {
            0
        }
    }

    /// Whether the device took the last command that it was sent.
    pub(super) fn command_at_device(&self) -> Option<u16> {
        self.obeys.then_some(self.command)
    }

    // ---- BARs ----

    fn bar_of(&self, register: usize) -> Option<(&BarSpec, u32)> {
        let mut bars = self.hardware.card.bars.iter();
        bars.find_map(|bar| match register.checked_sub(bar.index)? {
            0 => Some((bar, 0)),
            1 if is_wide(bar.kind) => Some((bar, 32)),
            _ => None,
        })
    }

    /// The dword that reads in a register.
    fn register(&self, register: usize) -> u32 {
        let Some((bar, shift)) = self.bar_of(register) else {
            return 0;
        };
        let kind = match bar.kind {
            BarKind::Io => 1,
            BarKind::Memory32 { prefetchable } => u64::from(prefetchable) * 8,
            BarKind::Memory64 { prefetchable } => u64::from(prefetchable) * 8 + 4,
        };
        let kind = if register == ROM {
            self.rom_is_on.into()
        } else {
            kind
        };
        let value = self.bars[bar.index] | kind;
        u32::try_from(value >> shift & 0xffff_ffff).unwrap()
    }

    fn write_bar(&mut self, at: usize, value: u8) {
        let (register, byte) = (register_at(at), at % 4);
        let Some((&bar, shift)) = self.bar_of(register) else {
            return;
        };
        let mask = match bar.kind {
            BarKind::Memory64 { .. } => !(bar.size - 1),
            _ => !(bar.size - 1) & 0xffff_ffff,
        };
        let place = 8 * byte + usize::try_from(shift).unwrap();
        let number = &mut self.bars[bar.index];
        *number = (*number & !(0xff << place) | u64::from(value) << place) & mask;
        if at == 0x30 {
            self.rom_is_on = value & 1 != 0;
        }
        let written = &mut self.written[register];
        *written = *written & !(0xff << (8 * byte)) | u32::from(value) << (8 * byte);
    }

    pub(super) fn assign(&mut self, index: usize, address: u64) {
        self.bars[index] = address;
        self.written[index] = 0;
    }

    pub(super) fn address(&self, index: usize) -> u64 {
        self.bars[index]
    }

    /// The BARs that answer under `command`, if something lets them.
    pub(super) fn decoded(&self, command: u16) -> Vec<Decoded> {
        let bars = self.hardware.card.bars.iter();
        bars.filter(|bar| command & if bar.kind.is_memory() { 2 } else { 1 } != 0)
            .filter(|bar| !self.is_sized(bar) && (bar.index != ROM || self.rom_is_on))
            .map(|bar| Decoded {
                index: bar.index,
                kind: bar.kind,
                address: self.bars[bar.index],
                size: bar.size,
            })
            .filter(|decoded| decoded.address != 0)
            .collect()
    }

    /// Half way through the sizing of a 64-bit BAR.
    fn is_sized(&self, bar: &BarSpec) -> bool {
        let is_wide = is_wide(bar.kind);
        is_wide && bar.size < 1 << 32 && self.written[bar.index] == u32::MAX
    }

    /// Whether what is in the ROM can be told.
    pub(super) fn read_rom(&self) -> bool {
        let was_read = self.rom_was_read.get() || self.hardware.answers();
        self.rom_was_read.set(was_read);
        was_read
    }

    // ---- Messages ----

    fn reset_messages(&mut self) {
        self.msi = [0; 24];
        self.kinds.clear();
        let vectors = self
            .hardware
            .card
            .msix()
            .map_or(0, |(_, msix)| msix.vectors);
        self.msix_control = vectors.saturating_sub(1);
        self.table = vec![0; usize::from(vectors) * 16];
        self.table
            .iter_mut()
            .skip(12)
            .step_by(16)
            .for_each(|byte| *byte = 1);
    }

    fn msi_byte(&self, byte: usize, is_latched: &dyn Fn(usize) -> bool) -> u8 {
        let Some((_, layout)) = self.hardware.card.msi() else {
            unreachable!()
        };
        let pending = if layout.wide { 20 } else { 16 };
        match byte {
            2 => {
                let capable = u8::try_from(layout.vectors.ilog2()).unwrap() << 1;
                self.msi[2] & 0x71 | capable | u8::from(layout.wide) << 7
            }
            3 => layout.masking.into(),
            _ if layout.masking && byte >= pending => (0..8)
                .filter(|bit| {
                    let vector = 8 * (byte - pending) + bit;
                    vector < layout.vectors
                        && self.kind_in_force() == Some(IrqIndex::Msi)
                        && self.msi_message(vector).is_none()
                        && is_latched(vector)
                })
                .fold(0, |byte, bit| byte | 1 << bit),
            _ => self.msi[byte],
        }
    }

    fn write_msi(&mut self, byte: usize, value: u8) {
        let Some((_, layout)) = self.hardware.card.msi() else {
            unreachable!()
        };
        let data = if layout.wide { 12 } else { 8 };
        let all: u32 = u32::MAX >> (32 - layout.vectors);
        let mask = match byte {
            2 => 0x71,
            3 => 0,
            4 => 0xfc,
            _ if byte < data + 2 => 0xff,
            _ if layout.masking && (data + 4..data + 8).contains(&byte) => {
                all.to_le_bytes()[byte - data - 4]
            }
            _ => 0,
        };
        self.msi[byte] = self.msi[byte] & !mask | value & mask;
    }

    fn msi_enabled(&self) -> bool {
        self.hardware.card.msi().is_some() && self.msi[2] & 1 != 0
    }

    fn msi_message(&self, vector: usize) -> Option<MsiMessage> {
        let (_, layout) = self.hardware.card.msi()?;
        let in_use = layout.vectors.min(1 << (self.msi[2] >> 4 & 7));
        let data = if layout.wide { 12 } else { 8 };
        if !self.msi_enabled() || vector >= in_use {
            return None;
        }
        if layout.masking && self.msi[data + 4 + vector / 8] >> (vector % 8) & 1 != 0 {
            return None;
        }
        let mut address = u64::from_le_bytes(self.msi[4..12].try_into().unwrap());
        if !layout.wide {
            address &= 0xffff_ffff;
        }
        let number = usize::from(u16::from_le_bytes([self.msi[data], self.msi[data + 1]]));
        let number = number / in_use * in_use + vector;
        Some(MsiMessage {
            address,
            data: number.try_into().unwrap(),
        })
    }

    fn msix_enabled(&self) -> bool {
        self.hardware.card.msix().is_some() && self.msix_control & 0x8000 != 0
    }

    fn msix_message(&self, vector: usize) -> Option<MsiMessage> {
        let entry: &[u8; 16] = self.table.get(vector * 16..)?.first_chunk()?;
        let speaks = self.msix_control >> 14 == 0b10 && entry[12] & 1 == 0;
        speaks.then(|| MsiMessage {
            address: u64::from_le_bytes(entry[..8].try_into().unwrap()),
            data: u32::from_le_bytes(entry[8..12].try_into().unwrap()),
        })
    }

    pub(super) fn table_byte(&self, at: usize) -> u8 {
        self.table[at]
    }

    pub(super) fn write_table(&mut self, at: usize, value: u8) {
        let mask = match at % 16 {
            0 => 0xfc,
            12 => 1,
            13.. => 0,
            _ => 0xff,
        };
        self.table[at] = self.table[at] & !mask | value & mask;
    }

    pub(super) fn pba_byte(&self, at: usize, is_latched: &dyn Fn(usize) -> bool) -> u8 {
        let vectors = self.table.len() / 16;
        let pending = |bit: &usize| {
            let vector = 8 * at + bit;
            vector < vectors
                && self.kind_in_force() == Some(IrqIndex::Msix)
                && self.msix_message(vector).is_none()
                && is_latched(vector)
        };
        (0..8).filter(pending).fold(0, |byte, bit| byte | 1 << bit)
    }

    fn follow_kinds(&mut self) {
        let enabled = [
            (IrqIndex::Msi, self.msi_enabled()),
            (IrqIndex::Msix, self.msix_enabled()),
        ];
        for (kind, is_enabled) in enabled {
            if !is_enabled {
                self.kinds.retain(|&known| known != kind);
            } else if !self.kinds.contains(&kind) {
                self.kinds.push(kind);
            }
        }
    }

    /// Which of MSI and MSI-X the device is to use.
    pub(super) fn kind_in_force(&self) -> Option<IrqIndex> {
        self.kinds.last().copied()
    }

    /// What a vector says, if it does not keep quiet.
    pub(super) fn message(&self, vector: usize) -> Option<MsiMessage> {
        match self.kind_in_force()? {
            IrqIndex::Msi => self.msi_message(vector),
            _ => self.msix_message(vector),
        }
    }
}

/// The number of the register that a byte of configuration space is in.
fn register_at(at: usize) -> usize {
    if at < 0x30 { (at - 0x10) / 4 } else { ROM }
}
