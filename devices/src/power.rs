//! Power: the sleep registers of hardware-reduced ACPI (ACPI 6.5 §4.8.3.7), the reset control register of Intel's chipsets (port 0xcf9),
//! and the register behind ACPI's generic event device (§5.6.9), with the power button in it.
//!
//! Where they stand is the machine's to say, and what the numbers of `_S5` and of the events are, is what its DSDT says. Left out:
//! every sleep state but soft-off; nothing ever wakes.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use crate::{
    bus::{Action, BusDevice},
    interrupt::IrqLine,
};

/// How many ports the sleep registers take: control, then status.
pub const SLEEP_REGISTERS_LEN: u64 = 2;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE: u8 = 0b111;

const RESET_HARD: u8 = 1 << 1;
const RESET_CPU: u8 = 1 << 2;
const RESET_FULL: u8 = 1 << 3;

/// Sleep control and sleep status.
#[derive(Debug)]
pub struct SleepRegisters {
    soft_off: u8,
}

impl SleepRegisters {
    /// `soft_off` is the SLP_TYP that `_S5` names: 0 to 7.
    pub fn new(soft_off: u8) -> Self {
        Self { soft_off }
    }
}

impl BusDevice for SleepRegisters {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // SLP_EN is write-only, and the wake status is never set.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let control = data.first().copied().filter(|_| offset == 0).unwrap_or(0);
        let sleep_type = control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE;
        if control & SLEEP_ENABLE == 0 {
            Action::None
        } else if sleep_type == self.soft_off {
            Action::PowerOff
        } else {
            log::debug!("the guest asked for sleep type {sleep_type}, which there is not");
            Action::None
        }
    }
}

/// The reset control register. A byte with bit 2 set resets; bits 1 and 3, how hard, are kept and mean nothing here.
#[derive(Debug, Default)]
pub struct ResetRegister(AtomicU8);

impl BusDevice for ResetRegister {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.0.load(Ordering::Relaxed);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let Some(&byte) = data.first().filter(|_| offset == 0) else {
            return Action::None;
        };
        self.0
            .store(byte & (RESET_HARD | RESET_FULL), Ordering::Relaxed);
        if byte & RESET_CPU == 0 {
            Action::None
        } else {
            Action::Reset
        }
    }
}

/// The one thing of an 8042 keyboard controller that guests without a keyboard still use: its line to the CPU's reset (`reboot=k`).
/// Command and status register, port 0x64. There is never anything to read and always room to write.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyboardReset;

/// "Pulse output port" commands are 0xf0 to 0xff, with a zero in the low nibble for each line pulsed; line 0 is reset.
const PULSE: u8 = 0xf0;
const PULSE_NOT_RESET: u8 = 1 << 0;

impl BusDevice for KeyboardReset {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Action {
        match data.first() {
            Some(command) if command & PULSE == PULSE && command & PULSE_NOT_RESET == 0 => {
                Action::Reset
            }
            _ => Action::None,
        }
    }
}

/// What an event register reports, a bit each, as the DSDT's `_EVT` knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Events(u8);

impl Events {
    /// The power button was pressed.
    pub const POWER_BUTTON: Self = Self(1 << 0);
}

/// Tells the guest of events: one port that reads as those since the last read, and a line that is pulsed for each.
pub struct EventRegister {
    pending: AtomicU8,
    line: Arc<dyn IrqLine>,
}

impl EventRegister {
    /// `line` is the interrupt that the generic event device names.
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        Self {
            pending: AtomicU8::new(0),
            line,
        }
    }

    /// Reports `events`.
    pub fn raise(&self, events: Events) -> std::io::Result<()> {
        // The bit before the edge: the guest reads on the edge, and whoever reads between the two has taken the event already.
        self.pending.fetch_or(events.0, Ordering::AcqRel);
        self.line.pulse()
    }

    /// Presses the power button: a guest with an operating system shuts itself down.
    pub fn press_power_button(&self) -> std::io::Result<()> {
        self.raise(Events::POWER_BUTTON)
    }
}

impl BusDevice for EventRegister {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.pending.swap(0, Ordering::AcqRel);
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Action {
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{CountingLine, widths_agree};

    #[test]
    fn soft_off_powers_off_and_no_other_sleep_type_does() {
        let registers = SleepRegisters::new(5);
        assert_eq!(registers.write(0, &[0x34]), Action::PowerOff);
        assert_eq!(registers.write(0, &[0x14]), Action::None);
        assert_eq!(registers.write(0, &[0x24]), Action::None);
        assert_eq!(registers.write(1, &[0x34]), Action::None);
        let mut data = [0xff; 2];
        registers.read(0, &mut data);
        assert_eq!(data, [0, 0]);
    }

    #[test]
    fn what_linux_writes_to_cf9_resets() {
        // As in native_machine_emergency_restart: first how hard, then the reset itself.
        for code in [0x06, 0x0e] {
            let register = ResetRegister::default();
            assert_eq!(register.write(0, &[code & !0x04]), Action::None);
            let mut data = [0];
            register.read(0, &mut data);
            assert_eq!(data, [code & !0x04]);
            assert_eq!(register.write(0, &[code]), Action::Reset);
        }
    }

    #[test]
    fn an_event_is_read_once() {
        let line = Arc::new(CountingLine::default());
        let register = EventRegister::new(line.clone());
        register.press_power_button().unwrap();
        assert_eq!(line.pulses(), 1);
        let mut data = [0xff; 2];
        register.read(0, &mut data);
        assert_eq!(data, [1, 0]);
        register.read(0, &mut data);
        assert_eq!(data, [0, 0]);
    }

    #[test]
    fn byte_and_word_accesses_agree() {
        fn write<T: BusDevice>(device: &mut T, at: u64, data: &[u8]) {
            let _ = device.write(at, data);
        }
        widths_agree(
            ResetRegister::default,
            (0..4, 4),
            ResetRegister::read,
            write,
            10_000,
        );
        let sleep = || SleepRegisters::new(5);
        widths_agree(sleep, (0..2, 2), SleepRegisters::read, write, 10_000);
        let events = || EventRegister::new(Arc::new(CountingLine::default()));
        widths_agree(events, (0..4, 4), EventRegister::read, write, 10_000);
    }

    #[test]
    fn only_a_pulse_of_the_reset_line_resets() {
        assert_eq!(KeyboardReset.write(0, &[0xfe]), Action::Reset);
        assert_eq!(KeyboardReset.write(0, &[0xff]), Action::None);
        assert_eq!(KeyboardReset.write(0, &[0xaa]), Action::None);
        let mut status = [0xff];
        KeyboardReset.read(0, &mut status);
        assert_eq!(status, [0], "a guest that waits for room does not wait");
    }
}
