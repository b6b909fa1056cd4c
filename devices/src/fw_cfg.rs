//! QEMU's firmware configuration device (QEMU's docs/specs/fw_cfg.rst), for the one file of it by which a guest tells something: where
//! its kernel describes itself, for whoever reads its memory when it has died (docs/specs/vmcoreinfo.rst).
//!
//! Linux's driver (drivers/firmware/qemu_fw_cfg.c) finds the file in the directory and writes it by DMA. Left out: all that firmware
//! would read there, since there is none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestAddress};

use crate::{
    bus::{Action, BusDevice},
    mapping::GuestRam,
};

// Registers: the selector (16 bits), the byte at hand, the address of a transfer (64 bits, big-endian).
const SELECTOR: u64 = 0;
const DATA: u64 = 1;
const DMA: u64 = 4;
const DMA_LOW: u64 = 8;

/// What the address register reads as.
const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";

// What can be selected.
const SIGNATURE: u16 = 0x00;
const ID: u16 = 0x01;
const DIRECTORY: u16 = 0x19;
/// Where files begin.
const VMCOREINFO: u16 = 0x20;
/// The others ask for an architecture's own items, and for writing by the data register, which is long gone.
const SELECTOR_MASK: u16 = 0x3fff;

/// The registers of old and DMA.
const ID_VALUE: u32 = 1 << 0 | 1 << 1;

const FILE: &[u8] = b"etc/vmcoreinfo";
const FILE_NAME_LEN: usize = 56;
/// Host's format, guest's format (16 bits each), length of the note (32), its address (64).
const FILE_LEN: u32 = 16;
const FORMAT_ELF: u16 = 1;

/// Length of a transfer's description: what to do, length (32 bits each), address (64).
const ACCESS_LEN: usize = 16;
const CONTROL_ERROR: u32 = 1 << 0;
const CONTROL_READ: u32 = 1 << 1;
const CONTROL_SKIP: u32 = 1 << 2;
const CONTROL_SELECT: u32 = 1 << 3;
const CONTROL_WRITE: u32 = 1 << 4;
/// No item is longer. What lies behind its end reads as zeroes, of which nobody needs more while a processor waits for them.
const MOST_READ: usize = 64 << 10;

/// Where in its memory a guest's kernel describes itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// The first byte of an ELF note.
    pub address: GuestAddress,
    /// How long it says that this is, in bytes.
    pub len: u32,
}

/// The device.
pub struct FwCfg {
    ram: Arc<dyn GuestRam>,
    state: Mutex<State>,
}

struct State {
    selected: u16,
    offset: usize,
    dma_high: u32,
    file: [u8; FILE_LEN as usize],
}

/// A transfer cannot be.
struct Refused;

impl FwCfg {
    /// One whose driver has this memory.
    pub fn new(ram: Arc<dyn GuestRam>) -> Self {
        let state = Mutex::new(State::at_power_on());
        Self { ram, state }
    }

    /// As at power-on: another kernel describes itself elsewhere.
    pub fn reset(&self) {
        *self.lock() = State::at_power_on();
    }

    /// What the guest has told, if it has.
    pub fn note(&self) -> Option<Note> {
        let state = self.lock();
        let [_, _, f0, f1, l0, l1, l2, l3, address @ ..] = state.file;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let is_elf = u16::from_le_bytes([f0, f1]) == FORMAT_ELF;
        (is_elf && len > 0).then_some(Note {
            address: GuestAddress(u64::from_le_bytes(address)),
            len,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is described at `at`, and says there what came of it.
    fn transfer(&self, state: &mut State, at: GuestAddress) {
        let memory = self.ram.memory();
        let mut access = [0; ACCESS_LEN];
        if memory.read_slice(&mut access, at).is_err() {
            log::debug!("fw_cfg: a transfer is described at {at:?}, where there is no memory");
            return;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, address @ ..] = access;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let len = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let address = GuestAddress(u64::from_be_bytes(address));
        if control & CONTROL_SELECT != 0 {
            state.select(u16::from_be_bytes([c0, c1]));
        }
        let done = if control & CONTROL_READ != 0 {
            self.read_item(state, address, len)
        } else if control & CONTROL_WRITE != 0 {
            self.write_file(state, address, len)
        } else {
            if control & CONTROL_SKIP != 0 {
                state.offset = state.offset.saturating_add(len);
            }
            Ok(())
        };
        let result = if done.is_ok() { 0 } else { CONTROL_ERROR };
        // The driver's own memory, a moment ago: if it is gone the driver is left waiting.
        let _ = memory.write_slice(&result.to_be_bytes(), at);
    }

    fn read_item(&self, state: &mut State, to: GuestAddress, len: usize) -> Result<(), Refused> {
        if len > MOST_READ {
            return Err(Refused);
        }
        let item = state.item();
        let mut bytes = item.get(state.offset..).unwrap_or_default().to_vec();
        bytes.resize(len, 0);
        let written = self.ram.memory().write_slice(&bytes, to);
        state.offset = state.offset.saturating_add(len);
        written.map_err(|_| Refused)
    }

    fn write_file(&self, state: &mut State, from: GuestAddress, len: usize) -> Result<(), Refused> {
        let end = state.offset.checked_add(len).ok_or(Refused)?;
        let is_file = state.selected == VMCOREINFO;
        let part = state.file.get_mut(state.offset..end);
        let part = part.filter(|_| is_file).ok_or(Refused)?;
        // Over the end of memory a read fails when it has copied what is before: the file takes all
        // of it or nothing.
        let mut bytes = vec![0; len];
        let read = self.ram.memory().read_slice(&mut bytes, from);
        read.map_err(|_| Refused)?;
        part.copy_from_slice(&bytes);
        state.offset = end;
        Ok(())
    }
}

impl State {
    fn at_power_on() -> Self {
        let mut file = [0; FILE_LEN as usize];
        let [low, high] = FORMAT_ELF.to_le_bytes();
        (file[0], file[1]) = (low, high);
        Self {
            selected: SIGNATURE,
            offset: 0,
            dma_high: 0,
            file,
        }
    }

    fn select(&mut self, selector: u16) {
        self.selected = selector & SELECTOR_MASK;
        self.offset = 0;
    }

    /// What is selected; nothing, if there is no such thing.
    fn item(&self) -> Vec<u8> {
        match self.selected {
            SIGNATURE => DMA_SIGNATURE[..4].to_vec(),
            ID => ID_VALUE.to_le_bytes().to_vec(),
            DIRECTORY => directory(),
            VMCOREINFO => self.file.to_vec(),
            _ => Vec::new(),
        }
    }

    /// The next byte of what is selected.
    fn next(&mut self) -> u8 {
        let byte = self.item().get(self.offset).copied().unwrap_or_default();
        self.offset = self.offset.saturating_add(1);
        byte
    }
}

/// How many files, then of each: length, selector, something reserved, name.
fn directory() -> Vec<u8> {
    let mut directory = 1_u32.to_be_bytes().to_vec();
    directory.extend(FILE_LEN.to_be_bytes());
    directory.extend(VMCOREINFO.to_be_bytes());
    directory.extend([0; 2]);
    directory.extend(FILE);
    directory.extend([0; FILE_NAME_LEN - FILE.len()]);
    directory
}

impl BusDevice for FwCfg {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, &mut *data) {
            (DATA, [byte]) => *byte = self.lock().next(),
            (DMA.., bytes) => {
                let signature = (DMA..)
                    .zip(DMA_SIGNATURE)
                    .skip_while(|(at, _)| *at < offset);
                bytes.fill(0xff);
                let both = bytes.iter_mut().zip(signature);
                both.for_each(|(byte, (_, value))| *byte = *value);
            }
            _ => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut state = self.lock();
        match (offset, data) {
            (SELECTOR, &[low, high]) => state.select(u16::from_le_bytes([low, high])),
            (DMA, &[a, b, c, d]) => state.dma_high = u32::from_be_bytes([a, b, c, d]),
            (DMA_LOW, &[a, b, c, d]) => {
                let high = u64::from(std::mem::take(&mut state.dma_high));
                let low = u64::from(u32::from_be_bytes([a, b, c, d]));
                self.transfer(&mut state, GuestAddress(high << 32 | low));
            }
            (DMA, &[a, b, c, d, e, f, g, h]) => {
                let at = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
                self.transfer(&mut state, GuestAddress(at));
            }
            _ => {}
        }
        Action::None
    }
}

#[cfg(test)]
mod tests;
