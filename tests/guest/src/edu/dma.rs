//! Its copying between memory and a buffer of its own.

use std::io;
use std::path::Path;

use super::{ACKNOWLEDGE, Edu, INTERRUPTS, expect_same};
use crate::mapping::Mapping;
use crate::random::Random;

const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const COMMAND: usize = 0x98;
const START: u64 = 1;
/// From the buffer to memory; without it, the other way.
const TO_MEMORY: u64 = 1 << 1;
/// Interrupt afterwards, with this status.
const INTERRUPT: u64 = 1 << 2;
const DONE: u32 = 0x100;

/// The buffer, as the device addresses it.
const BUFFER: u64 = 0x4_0000;
const BUFFER_LEN: usize = 4096;
/// How much of memory is looked at: what is copied, and something around it.
const WINDOW: usize = 4 * BUFFER_LEN;
/// First byte and number of bytes of each copy: whole, single, odd, over the end of a page, up to the window's last byte.
const COPIES: [(usize, usize); 6] = [
    (4096, 4096),
    (4096, 1),
    (8191, 1),
    (4097, 4095),
    (8000, 4096),
    (WINDOW - BUFFER_LEN, BUFFER_LEN),
];

/// A part of memory, and where it is for the device.
struct Window {
    memory: Mapping,
    address: u64,
}

impl Window {
    /// A part of this process's, or at a physical address that the kernel does not use.
    fn open(address: Option<u64>) -> io::Result<Self> {
        let memory = match address {
            Some(address) => Mapping::of(Path::new("/dev/mem"), address, WINDOW)?,
            None => Mapping::own()?,
        };
        let address = address.map_or_else(|| memory.physical(), Ok)?;
        Ok(Self { memory, address })
    }

    fn fill(&self, mut byte: impl FnMut() -> u8) {
        for offset in 0..WINDOW {
            self.memory.write(offset, byte());
        }
    }

    fn content(&self) -> Vec<u8> {
        (0..WINDOW).map(|offset| self.memory.read(offset)).collect()
    }
}

impl Edu {
    /// Copies out of memory and into it, and looks at every byte; in a window of 16 KiB at this address, or one of its own.
    pub(crate) fn copy(&self, address: Option<u64>) -> io::Result<String> {
        let window = Window::open(address)?;
        for (number, (first, count)) in COPIES.into_iter().enumerate() {
            let mut random = Random(number as u64);
            window.fill(|| random.next().to_le_bytes()[0]);
            let mut wanted = window.content();
            let at = window.address + first as u64;
            self.transfer(at, BUFFER, count, 0)?;
            window.fill(|| 0xa5);
            self.transfer(BUFFER, at, count, TO_MEMORY)?;
            let copied = first..first + count;
            for (offset, byte) in wanted.iter_mut().enumerate() {
                if !copied.contains(&offset) {
                    *byte = 0xa5;
                }
            }
            expect_content(&window, &wanted)?;
        }
        let last = window.address + WINDOW as u64 - 1;
        let count = COPIES.len();
        Ok(format!(
            "{count} copies there and back, the last byte at {last:#x}"
        ))
    }

    /// Has it write to an address where no memory of this machine's is, and read from there: says whether anything came.
    pub(crate) fn stray(&self, address: u64) -> io::Result<String> {
        let window = Window::open(None)?;
        window.fill(|| 0x5a);
        self.transfer(window.address, BUFFER, BUFFER_LEN, 0)?;
        self.transfer(BUFFER, address, BUFFER_LEN, TO_MEMORY)?;
        self.transfer(address, BUFFER, BUFFER_LEN, 0)?;
        self.transfer(BUFFER, window.address, BUFFER_LEN, TO_MEMORY)?;
        let content = window.content();
        let first = content[0];
        let is_one = content[..BUFFER_LEN].iter().all(|byte| *byte == first);
        let what = if is_one {
            "all of it"
        } else {
            "from there on something else"
        };
        Ok(format!("read {first:#04x}, {what}, at {address:#x}"))
    }

    fn transfer(&self, from: u64, to: u64, count: usize, direction: u64) -> io::Result<()> {
        self.registers.write(SOURCE, from);
        self.registers.write(DESTINATION, to);
        self.registers.write(COUNT, count as u64);
        self.registers.write(COMMAND, START | direction | INTERRUPT);
        let done = || self.registers.read::<u64>(COMMAND) & START == 0;
        self.wait("a copy", done)?;
        // It says that it is done before it says that it interrupts.
        self.wait("a copy's interrupt", || self.get(INTERRUPTS) == DONE)?;
        self.set(ACKNOWLEDGE, DONE);
        expect_same("interrupt status", self.get(INTERRUPTS), 0)
    }
}

fn expect_content(window: &Window, wanted: &[u8]) -> io::Result<()> {
    for (offset, (is, wanted)) in window.content().iter().zip(wanted).enumerate() {
        let address = window.address + offset as u64;
        expect_same(&format!("the byte at {address:#x}"), *is, *wanted)?;
    }
    Ok(())
}
