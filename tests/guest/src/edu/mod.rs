//! QEMU's educational device, driven without a driver: docs/specs/edu.rst of QEMU. It computes, interrupts when it is told to,
//! and copies memory, so everything that an assigned function must do can be asked of it exactly.

mod dma;
mod interrupts;

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::function::{BUS_MASTER, Function, MEMORY_DECODE};
use crate::mapping::Mapping;

const IDENTIFICATION: usize = 0x00;
const LIVENESS: usize = 0x04;
const FACTORIAL: usize = 0x08;
const STATUS: usize = 0x20;
const INTERRUPTS: usize = 0x24;
const RAISE: usize = 0x60;
const ACKNOWLEDGE: usize = 0x64;
/// In `STATUS`: it is still computing.
const COMPUTING: u32 = 1;
/// What anything that it does may take: it works with a timer of 100 ms, in emulation.
const LIMIT: Duration = Duration::from_secs(20);

/// The device.
#[derive(Debug)]
pub(crate) struct Edu {
    function: Function,
    registers: Mapping,
}

impl Edu {
    /// The one at this address, decoding memory and allowed to reach it.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let function = Function::open(name)?;
        function.command(MEMORY_DECODE | BUS_MASTER, 0)?;
        let edu = Self {
            registers: function.bar(0)?,
            function,
        };
        let identification = edu.get(IDENTIFICATION);
        if identification & 0xffff == 0x00ed {
            return Ok(edu);
        }
        let what = format!("identification {identification:#x}: not an edu device");
        Err(io::Error::other(what))
    }

    /// Has it compute, and says what.
    pub(crate) fn compute(&self) -> io::Result<String> {
        self.set(LIVENESS, 0x1234_5678);
        expect_same("liveness", self.get(LIVENESS), !0x1234_5678)?;
        for number in 0..=12 {
            self.set(FACTORIAL, number);
            self.wait("a factorial", || self.get(STATUS) & COMPUTING == 0)?;
            let product = (1..=number).product();
            expect_same("factorial", self.get(FACTORIAL), product)?;
        }
        Ok("factorials of 0 to 12".into())
    }

    fn get(&self, register: usize) -> u32 {
        self.registers.read(register)
    }

    fn set(&self, register: usize, value: u32) {
        self.registers.write(register, value);
    }

    /// It has no event for this. Yields, because it may share its processor with whom it waits for.
    fn wait(&self, what: &str, done: impl Fn() -> bool) -> io::Result<()> {
        let end = Instant::now() + LIMIT;
        while !done() {
            if Instant::now() > end {
                return Err(io::Error::other(format!("{what}: not within {LIMIT:?}")));
            }
            thread::yield_now();
        }
        Ok(())
    }
}

fn expect_same<T: PartialEq + std::fmt::LowerHex>(what: &str, is: T, wanted: T) -> io::Result<()> {
    if is == wanted {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{what}: {is:#x}, not {wanted:#x}"
    )))
}
