//! Its interrupts: by the pin, taken by `uio_pci_generic`, and by MSI.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::{ACKNOWLEDGE, Edu, INTERRUPTS, LIMIT, RAISE, expect_same};
use crate::function::{self, INTX_DISABLE};
use crate::mapping::readable;
use crate::message::{self, VECTORS};

/// How long is waited for an interrupt that must not come.
const SILENCE_MS: i32 = 300;
/// The pin's interrupts as uio_pci_generic gives them: one disables the pin (bit 10 of the command register) and is read from
/// the file; the pin is enabled again by whoever reads.
struct Pin<'a> {
    edu: &'a Edu,
    events: File,
}

impl<'a> Pin<'a> {
    fn bind(edu: &'a Edu) -> io::Result<Self> {
        fs::write(edu.function.file("driver_override"), "uio_pci_generic")?;
        fs::write("/sys/bus/pci/drivers_probe", edu.function.address())?;
        let uio = fs::read_dir(edu.function.file("uio"))?.next();
        let uio = uio.ok_or_else(|| io::Error::other("uio_pci_generic makes no device"))??;
        let events = File::open(Path::new("/dev").join(uio.file_name()))?;
        Ok(Self { edu, events })
    }

    fn enable(&self) -> io::Result<()> {
        self.edu.function.command(0, INTX_DISABLE)
    }

    fn comes(&mut self, limit_ms: i32) -> io::Result<bool> {
        let there = readable(&self.events, limit_ms)?;
        if there {
            self.events.read_exact(&mut [0; 4])?;
        }
        Ok(there)
    }

    /// Waits for an interrupt that has to come.
    fn expect(&mut self, what: &str) -> io::Result<()> {
        if self.comes(i32::try_from(LIMIT.as_millis()).unwrap_or(i32::MAX))? {
            return Ok(());
        }
        Err(io::Error::other(format!("no interrupt {what}")))
    }

    fn expect_none(&mut self, what: &str) -> io::Result<()> {
        if self.comes(SILENCE_MS)? {
            return Err(io::Error::other(format!("an interrupt {what}")));
        }
        Ok(())
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        // Nobody to tell, and the next one who binds it finds out.
        let _ = fs::write(
            self.edu.function.file("driver/unbind"),
            self.edu.function.address(),
        );
        let _ = fs::write(self.edu.function.file("driver_override"), "\n");
    }
}

impl Edu {
    /// Raises so many interrupts by the pin, one after the other, and looks at what a level is: it stays until it is
    /// acknowledged, and waits while the pin is disabled.
    pub(crate) fn interrupt_by_pin(&self, times: u32) -> io::Result<String> {
        let mut pin = Pin::bind(self)?;
        let line = self.function.irq()?;
        let before = function::counted(&line)?;
        for time in 1..=times {
            self.set(RAISE, time);
            pin.expect("that was raised")?;
            expect_same("interrupt status", self.get(INTERRUPTS), time)?;
            self.set(ACKNOWLEDGE, time);
            pin.enable()?;
        }
        pin.expect_none("after the last was acknowledged")?;
        let came = function::counted(&line)? - before;
        expect_same("interrupts counted", came, u64::from(times))?;
        self.expect_a_level(&mut pin)?;
        Ok(format!("{came} interrupts on line {line}"))
    }

    fn expect_a_level(&self, pin: &mut Pin<'_>) -> io::Result<()> {
        self.set(RAISE, 1);
        pin.expect("that was raised")?;
        pin.enable()?;
        pin.expect("again, for the pin is still asserted")?;
        self.set(ACKNOWLEDGE, 1);
        pin.enable()?;
        pin.expect_none("after it was acknowledged")?;
        self.function.command(INTX_DISABLE, 0)?;
        self.set(RAISE, 2);
        pin.expect_none("while the pin is disabled")?;
        pin.enable()?;
        pin.expect("once the pin is enabled")?;
        self.set(ACKNOWLEDGE, 2);
        pin.enable()
    }

    /// Raises so many interrupts by MSI at each of two processors, one after the other.
    pub(crate) fn interrupt_by_message(&self, times: u32) -> io::Result<String> {
        let processors = fs::read_to_string("/sys/devices/system/cpu/online")?;
        let targets = if processors.trim() == "0" { 0..1 } else { 0..2 };
        let (vector, line) = VECTORS[2];
        let before = function::counted(line)?;
        for target in targets.clone() {
            message::aim(&self.function, target, vector, 0)?;
            for _ in 0..times {
                let so_far = function::counted(line)?;
                self.set(RAISE, 1);
                let came = || function::counted(line).is_ok_and(|count| count > so_far);
                self.wait("a message", came)?;
                self.set(ACKNOWLEDGE, 1);
            }
        }
        let came = function::counted(line)? - before;
        expect_same(
            "messages counted",
            came,
            u64::from(times) * targets.len() as u64,
        )?;
        message::silence(&self.function)?;
        Ok(format!("{came} messages to {} processors", targets.len()))
    }
}
