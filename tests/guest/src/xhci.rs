//! The interrupters of an xHCI controller (xHCI 1.2, 4.17 and 5.5.2), each with a vector of its own; driven without a driver, which
//! would use one of them.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::function::{self, BUS_MASTER, Function, MEMORY_DECODE};
use crate::mapping::Mapping;
use crate::message::{self, VECTORS};

/// Registers of the first part of the BAR; the others are where these say.
const CAPABILITY_LEN: usize = 0x00;
const RUNTIME_OFFSET: usize = 0x18;
/// In the command register, the first after the capabilities.
const RESET: u32 = 1 << 1;
const INTERRUPTS: u32 = 1 << 2;
/// Of an interrupter, after the runtime part's own 32 bytes.
const FIRST_INTERRUPTER: usize = 0x20;
const INTERRUPTER_LEN: usize = 0x20;
const MANAGEMENT: usize = 0x00;
const TABLE_LEN: usize = 0x08;
const TABLE: usize = 0x10;
const DEQUEUE: usize = 0x18;
const ENABLE: u32 = 1 << 1;
const HANDLER_BUSY: u32 = 1 << 3;
/// The least that a ring may have, and what one event takes.
const RING_EVENTS: u32 = 16;
const EVENT_LEN: u64 = 16;
/// Where in memory the segment table of an interrupter is, and its ring.
const TABLE_STRIDE: usize = 64;
const RINGS: usize = 0x1_0000;
const RING_STRIDE: usize = 0x1000;
/// What an interrupt may take, in emulation.
const LIMIT: Duration = Duration::from_secs(20);

/// A controller whose interrupters have rings in `memory`.
struct Controller {
    function: Function,
    registers: Mapping,
    memory: Mapping,
    runtime: usize,
}

/// Has each of three interrupters raise so many interrupts, and sees each come by its own vector.
pub(crate) fn interrupt(slot: &str, times: u32) -> io::Result<String> {
    let controller = Controller::open(slot)?;
    for number in 0..VECTORS.len() {
        controller.set_up(number)?;
    }
    message::aim(&controller.function, 0, VECTORS[0].0, 2)?;
    for _ in 0..times {
        for number in 0..VECTORS.len() {
            let mut wanted = counts()?;
            wanted[number] += 1;
            controller.raise(number)?;
            expect_counts(&wanted)?;
        }
    }
    message::silence(&controller.function)?;
    Ok(format!(
        "{times} messages from each of {} interrupters",
        VECTORS.len()
    ))
}

fn counts() -> io::Result<Vec<u64>> {
    let lines = VECTORS.iter();
    lines.map(|(_, line)| function::counted(line)).collect()
}

/// Waits for the one that has to come. Another instead, or as well, is seen here or by the next that is waited for.
fn expect_counts(wanted: &[u64]) -> io::Result<()> {
    let end = Instant::now() + LIMIT;
    loop {
        let counted = counts()?;
        if counted == wanted {
            return Ok(());
        }
        if Instant::now() > end {
            let what = format!("{VECTORS:?} count {counted:?}, not {wanted:?}");
            return Err(io::Error::other(what));
        }
        thread::yield_now();
    }
}

impl Controller {
    /// The one at this address, as after its reset.
    fn open(slot: &str) -> io::Result<Self> {
        let function = Function::open(slot)?;
        function.command(MEMORY_DECODE | BUS_MASTER, 0)?;
        let registers = function.bar(0)?;
        let command = usize::from(registers.read::<u8>(CAPABILITY_LEN));
        registers.write(command, RESET);
        let end = Instant::now() + LIMIT;
        while registers.read::<u32>(command) & RESET != 0 {
            if Instant::now() > end {
                return Err(io::Error::other("the controller's reset does not end"));
            }
            thread::yield_now();
        }
        registers.write(command, INTERRUPTS);
        let runtime = registers.read::<u32>(RUNTIME_OFFSET) & !0x1f;
        let runtime = usize::try_from(runtime).map_err(io::Error::other)?;
        Ok(Self {
            function,
            registers,
            memory: Mapping::own()?,
            runtime,
        })
    }

    fn set(&self, interrupter: usize, register: usize, value: u32) {
        let start = self.runtime + FIRST_INTERRUPTER + interrupter * INTERRUPTER_LEN;
        self.registers.write(start + register, value);
    }

    /// Lower half first: the controller acts upon the upper one.
    fn set_address(&self, interrupter: usize, register: usize, address: u64) {
        let [low, high] = halves(address);
        self.set(interrupter, register, low);
        self.set(interrupter, register + 4, high);
    }

    fn ring(&self, interrupter: usize) -> io::Result<u64> {
        Ok(self.memory.physical()? + (RINGS + interrupter * RING_STRIDE) as u64)
    }

    /// Gives the interrupter an empty ring, and lets it interrupt.
    fn set_up(&self, interrupter: usize) -> io::Result<()> {
        let (table, ring) = (interrupter * TABLE_STRIDE, self.ring(interrupter)?);
        self.memory.write(table, ring);
        self.memory.write(table + 8, u64::from(RING_EVENTS));
        self.set(interrupter, MANAGEMENT, ENABLE);
        self.set(interrupter, TABLE_LEN, 1);
        self.set_address(interrupter, DEQUEUE, ring);
        let table = self.memory.physical()? + table as u64;
        self.set_address(interrupter, TABLE, table);
        Ok(())
    }

    /// Says that its handler is done, but not with all events: it interrupts again. That there was no event is nothing that QEMU's
    /// controller looks at; it compares where it writes with where is read.
    fn raise(&self, interrupter: usize) -> io::Result<()> {
        let [low, _] = halves(self.ring(interrupter)? + EVENT_LEN);
        self.set(interrupter, DEQUEUE, low | HANDLER_BUSY);
        Ok(())
    }
}

fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [[a, b, c, d], [e, f, g, h]].map(u32::from_le_bytes)
}
