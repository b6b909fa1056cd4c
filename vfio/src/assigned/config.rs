//! Configuration space as the guest sees it: which bytes are ours and which are the device's.
//!
//! The image is read once, when the function is opened, and rewritten. Bytes that are ours are answered from it and never reach the
//! device; all others are read and written live, in the access that the guest made, and vfio-pci has the last word on them. BARs,
//! MSI and MSI-X have models of their own, which overlay what is here. The command register is both: the device has it, and we have
//! what the guest wrote.

use std::{io, ops::Range, sync::Arc};

use devices::{
    pci::{
        msi::MsiLayout,
        msix::{MSIX_CAPABILITY_LEN, MsixLocation},
        registers::{
            BAR0, CAPABILITIES, CARDBUS_CIS, COMMAND, COMMAND_INTX_DISABLE, COMMAND_IO,
            COMMAND_MASTER, COMMAND_MEMORY, CONFIG_LEN, HEADER_END, HEADER_TYPE, INTERRUPT_LINE,
            INTERRUPT_PIN, ROM, STATUS, VENDOR_ID,
        },
    },
    register_file::RegisterFile,
};

use super::{
    capabilities::{self, Found},
    specific::ASLS,
};
use crate::kernel::{HostFunction, RegionInfo};

const COMMAND_INVALIDATE: u16 = 1 << 4;
const COMMAND_PARITY: u16 = 1 << 6;
const COMMAND_SERR: u16 = 1 << 8;
/// What a guest may set in the command register.
const COMMAND_WRITABLE: u16 = COMMAND_IO
    | COMMAND_MEMORY
    | COMMAND_MASTER
    | COMMAND_INVALIDATE
    | COMMAND_PARITY
    | COMMAND_SERR
    | COMMAND_INTX_DISABLE;
/// What it reads back as written. A VF has no memory enable bit of its own (its PF has one for all), and the device's INTx disable bit
/// is also ours to set. Whether the other bits are there at all is for the device to say.
const COMMAND_OWNED: u16 = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE;
/// Power management control and status: the D-state, 0 to 3.
const POWER_STATE: u8 = 3;

/// What makes a command of the guest's more than a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// It starts a function level reset.
    FunctionReset,
    /// It leaves BARs decoding under this command register (0: none of them does).
    Decoding(u16),
}

/// The configuration space of an assigned function.
pub(super) struct Config {
    host: Arc<dyn HostFunction>,
    region: RegionInfo,
    registers: RegisterFile,
    /// For each byte, the bits that are ours.
    owned: Vec<u8>,
    found: Found,
    /// The device's D-state, as last seen.
    power_state: u8,
    /// What the interrupt line register says at power-on.
    line: u8,
    /// Somebody listens to the pin.
    pin_is_heard: bool,
    /// The device took the last command. One that was pulled out does not, and what it decoded must not be touched.
    obeys: bool,
}

/// What the device has in its configuration space, as read.
pub(super) fn image(host: &dyn HostFunction, region: &RegionInfo) -> io::Result<Vec<u8>> {
    let len = usize::try_from(region.size)
        .unwrap_or(CONFIG_LEN)
        .min(CONFIG_LEN);
    let mut image = vec![0xff; len];
    host.read(region, 0, &mut image)?;
    match image.len() >= HEADER_END {
        true => Ok(image),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

impl Config {
    /// Makes of `image` what the guest sees. MSI and MSI-X are shown if there is a model for them.
    pub(super) fn new(
        host: Arc<dyn HostFunction>,
        region: RegionInfo,
        mut image: Vec<u8>,
        msi: Option<MsiLayout>,
        msix: Option<MsixLocation>,
    ) -> Self {
        let found = capabilities::rewrite(&mut image, msi.is_some(), msix.is_some());
        let mut config = Self {
            host,
            region,
            owned: vec![0; image.len()],
            registers: RegisterFile::with_image(image),
            found,
            power_state: 0,
            line: 0,
            pin_is_heard: false,
            obeys: true,
        };
        config.own_header();
        for range in config.found.owned.clone() {
            config.own(range);
        }
        if let (Some(at), Some(layout)) = (config.found.msi, msi) {
            config.own(at..at + layout.capability_len());
        }
        if let Some(at) = config.found.msix {
            config.own(at..at + MSIX_CAPABILITY_LEN);
        }
        config
    }

    fn own_header(&mut self) {
        // Whether its slot has more functions is for the root to say.
        self.registers.set(HEADER_TYPE, &[0]);
        self.registers.set(COMMAND, &[0; 2]);
        self.registers.set(CARDBUS_CIS, &[0; 4]);
        // No pin until it is wired. A driver that wants one says so, instead of waiting for ever.
        self.registers.set(INTERRUPT_LINE, &[0, 0]);
        self.registers
            .allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        self.registers.allow(INTERRUPT_LINE, &[0xff]);
        // The IDs, too: a VF's are all-ones in hardware, and were filled in by vfio-pci when the image was read.
        self.own(VENDOR_ID..COMMAND);
        self.owned[COMMAND..STATUS].copy_from_slice(&COMMAND_OWNED.to_le_bytes());
        self.own(HEADER_TYPE..HEADER_TYPE + 1);
        self.own(BAR0..CARDBUS_CIS + 4);
        self.own(ROM..ROM + 4);
        self.own(CAPABILITIES..CAPABILITIES + 1);
        self.own(INTERRUPT_LINE..INTERRUPT_PIN + 1);
    }

    fn own(&mut self, range: Range<usize>) {
        let end = range.end.min(self.owned.len());
        if let Some(owned) = self.owned.get_mut(range.start..end) {
            owned.fill(0xff);
        }
    }

    /// Where the models of MSI and MSI-X are.
    pub(super) fn capabilities(&self) -> (Option<usize>, Option<usize>) {
        (self.found.msi, self.found.msix)
    }

    /// Shows the function's `pin` and the input of the interrupt controller that it is wired to, which firmware would write down.
    pub(super) fn wire_pin(&mut self, pin: u8, line: u8) {
        self.line = line;
        self.registers.set(INTERRUPT_LINE, &[line, pin]);
    }

    /// Tells the guest that the OpRegion of Intel's graphics is at `address`; 0: nowhere.
    pub(super) fn show_opregion_at(&mut self, address: u32) {
        self.registers.set(ASLS, &address.to_le_bytes());
        self.own(ASLS..ASLS + 4);
    }

    /// Has the device speak on its pin, as far as the guest allows, or keep quiet.
    pub(super) fn hear_pin(&mut self, is_heard: bool) {
        if self.pin_is_heard != is_heard {
            self.pin_is_heard = is_heard;
            self.send_command();
        }
    }

    /// Whether the guest has switched the function on: it answers, or masters the bus.
    pub(super) fn is_on(&self) -> bool {
        self.command() & (COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER) != 0
    }

    /// The command register, as the guest set it.
    pub(super) fn command(&self) -> u16 {
        self.registers.word(COMMAND)
    }

    /// The command register as far as it is in force: a function that sleeps decodes nothing (PCIe 6.0 §5.3.1.4).
    pub(super) fn decoding(&self) -> u16 {
        if self.power_state == 0 && self.obeys {
            self.command()
        } else {
            0
        }
    }

    /// Reads at `offset`; all-ones where there is nothing.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        let owned = |at: usize| self.owned.get(at).copied().unwrap_or(0xff);
        let all_ours = (offset..offset + data.len()).all(|at| owned(at) == 0xff);
        if !all_ours && self.host.read(&self.region, offset as u64, data).is_err() {
            data.fill(0xff);
        }
        for (at, byte) in (offset..).zip(data) {
            let (ours, mut register) = (owned(at), [0]);
            self.registers.read(at, &mut register);
            *byte = *byte & !ours | register[0] & ours;
        }
    }

    /// What a write would lead to. BARs have to leave the bus before the device sees it.
    pub(super) fn foresee(&self, offset: usize, data: &[u8]) -> Write {
        let byte = |at: usize| at.checked_sub(offset).and_then(|at| data.get(at)).copied();
        let mut resets = self.found.function_resets.iter();
        if resets.any(|&(at, bit)| byte(at).is_some_and(|byte| byte & bit != 0)) {
            return Write::FunctionReset;
        }
        let power = self.found.power.and_then(byte);
        let power = power.map_or(self.power_state, |byte| byte & POWER_STATE);
        let [low, high] = self.command().to_le_bytes();
        let command = [
            byte(COMMAND).unwrap_or(low),
            byte(COMMAND + 1).unwrap_or(high),
        ];
        let command = u16::from_le_bytes(command) & COMMAND_WRITABLE;
        Write::Decoding(if power == 0 { command } else { 0 })
    }

    /// Takes a write and hands the device what is its own of it.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        let before = self.command();
        self.registers.write(offset, data);
        let commands = offset < COMMAND + 2 && COMMAND < offset + data.len();
        if self.command() != before || commands && !self.obeys {
            self.send_command();
        }
        for run in self.runs(offset, data.len()) {
            let (start, part) = (offset + run.start, &data[run]);
            self.send(start, part);
        }
        self.see_power_state(offset, data.len());
    }

    /// Back to power-on, the device awake and neither decoding nor mastering.
    pub(super) fn reset(&mut self) {
        self.registers.set(COMMAND, &[0; 2]);
        self.registers.set(INTERRUPT_LINE, &[self.line]);
        self.pin_is_heard = false;
        self.wake();
        self.send_command();
    }

    /// Whether the device no longer decodes memory as the guest told it to: it sleeps, was switched off or is gone. It is then as one
    /// that did not take its last command.
    pub(super) fn finds_silence(&mut self) -> bool {
        let wanted = self.decoding() & COMMAND_MEMORY;
        let is_awake = self.found.power.is_none_or(|at| {
            let status = self.device_word(at);
            status.is_some_and(|status| status.to_le_bytes()[0] & POWER_STATE == 0)
        });
        // What is gone reads as all-ones, with the bits that are reserved (PCI 3.0 §6.2.2: 11 to 15).
        let command = self.device_word(COMMAND).filter(|&word| word != 0xffff);
        let decodes = is_awake && command.is_some_and(|word| word & COMMAND_MEMORY != 0);
        let silent = wanted != 0 && !decodes;
        self.obeys &= !silent;
        silent
    }

    /// A register as the device has it.
    fn device_word(&self, offset: usize) -> Option<u16> {
        let mut word = [0; 2];
        let read = self.host.read(&self.region, offset as u64, &mut word);
        read.ok().map(|()| u16::from_le_bytes(word))
    }

    /// Brings the device to D0, where its registers answer.
    fn wake(&mut self) {
        if let Some(at) = self.found.power {
            let mut status = [0];
            let read = self.host.read(&self.region, at as u64, &mut status);
            if read.is_ok() && status[0] & POWER_STATE != 0 {
                self.send(at, &[status[0] & !POWER_STATE]);
            }
            self.see_power_state(at, 1);
        }
    }

    /// The device gets the guest's command register, except that it keeps quiet on a pin that nobody listens to.
    fn send_command(&mut self) {
        // vfio-pci keeps the guest's INTx disable bit apart from its own masking (vfio_basic_config_write in vfio_pci_config.c).
        let quiet = if self.pin_is_heard {
            0
        } else {
            COMMAND_INTX_DISABLE
        };
        let command = self.command() | quiet;
        self.obeys = self.send(COMMAND, &command.to_le_bytes());
    }

    /// Writes to the device; false if that failed.
    fn send(&self, offset: usize, data: &[u8]) -> bool {
        let written = self.host.write(&self.region, offset as u64, data);
        if let Err(error) = &written {
            log::debug!("configuration space {offset:#x}: write of {data:x?} failed: {error}");
        }
        written.is_ok()
    }

    /// A device may refuse a D-state that it does not have: what counts is what it reads as after a write there.
    ///
    /// What the guest sees of its registers outlives D3hot, even where the device says that it forgets (No_Soft_Reset clear, PCI PM 1.2
    /// §5.4.1): vfio-pci saves them on the way down and restores them on the way up (vfio_pci_set_power_state in
    /// drivers/vfio/pci/vfio_pci_core.c). But the command register as it was on the way down, so it is sent again.
    fn see_power_state(&mut self, offset: usize, len: usize) {
        let Some(at) = self
            .found
            .power
            .filter(|at| (offset..offset + len).contains(at))
        else {
            return;
        };
        let mut status = [0];
        if self
            .host
            .read(&self.region, at as u64, &mut status)
            .is_err()
        {
            return;
        }
        let slept = self.power_state != 0;
        self.power_state = status[0] & POWER_STATE;
        if slept && self.power_state == 0 {
            self.send_command();
        }
    }

    /// The parts of an access that go to the device, in bytes from its start.
    fn runs(&self, offset: usize, len: usize) -> Vec<Range<usize>> {
        let theirs = |at: &usize| self.owned.get(offset + at) == Some(&0);
        let mut runs: Vec<Range<usize>> = Vec::new();
        for at in (0..len).filter(theirs) {
            match runs.last_mut() {
                Some(run) if run.end == at => run.end += 1,
                _ => runs.push(at..at + 1),
            }
        }
        runs
    }
}
