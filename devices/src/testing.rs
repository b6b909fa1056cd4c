//! What the tests of this crate share: a seeded generator, the comparison of access widths, and fakes of a card and a device.

use std::{
    io,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    bus::{Action, BusDevice},
    interrupt::IrqLine,
    pci::{
        Function,
        bar::{BarSpec, Bars},
        config::{ConfigSpace, Identity},
    },
};

/// A xorshift generator: the same numbers in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number in `range`.
    pub(crate) fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// What software likes to write: all-ones, zero, or anything.
    pub(crate) fn value(&mut self) -> u64 {
        match self.within(0..4) {
            0 => 0,
            1 => u64::MAX,
            _ => self.next(),
        }
    }
}

/// Writes and reads registers through `write` and `read` of two equal models, the one whole, the other byte by byte, and asserts
/// that they stay equal. Accesses of 1, 2, 4 (and 8 where `widest` says) bytes, naturally aligned, within `offsets`.
pub(crate) fn widths_agree<T>(
    mut model: impl FnMut() -> T,
    (offsets, widest): (Range<u64>, u32),
    read: impl Fn(&T, u64, &mut [u8]),
    write: impl Fn(&mut T, u64, &[u8]),
    steps: u32,
) {
    let mut random = Random::new(0x5eed);
    let (mut whole, mut bytes) = (model(), model());
    for step in 0..steps {
        let len = 1 << random.within(0..u64::from(widest.ilog2()) + 1);
        let offset = random.within(offsets.clone()) / len * len;
        let len = usize::try_from(len).unwrap();
        if offset < offsets.start || offset + len as u64 > offsets.end {
            continue;
        }
        let value = &random.value().to_le_bytes()[..len];
        write(&mut whole, offset, value);
        for (at, byte) in (offset..).zip(value) {
            write(&mut bytes, at, &[*byte]);
        }
        let (mut one, mut many) = ([0; 8], [0; 8]);
        read(&whole, offset, &mut one[..len]);
        for (at, byte) in (offset..).zip(&mut many[..len]) {
            read(&bytes, at, std::slice::from_mut(byte));
        }
        assert_eq!(one, many, "step {step}: {len} bytes at {offset:#x}");
    }
}

/// A function with BARs and nothing behind them.
pub(crate) struct Card {
    pub(crate) config: Mutex<ConfigSpace>,
    pub(crate) bars: Mutex<Bars>,
}

impl Card {
    pub(crate) fn new(device: u16, bars: &[BarSpec]) -> Arc<Self> {
        let identity = Identity {
            vendor: 0x1af4,
            device,
            ..Identity::default()
        };
        Arc::new(Self {
            config: Mutex::new(ConfigSpace::new(&identity)),
            bars: Mutex::new(Bars::new(bars).unwrap()),
        })
    }

    pub(crate) fn address(&self, index: usize) -> u64 {
        self.bars.lock().unwrap().address(index).unwrap()
    }
}

impl Function for Card {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        assert!(
            data.len() <= 4 && usize::from(offset) % data.len() == 0,
            "not a piece"
        );
        match Bars::contains(offset) {
            true => self.bars.lock().unwrap().read(offset, data),
            false => self.config.lock().unwrap().read(offset, data),
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Action {
        assert!(
            data.len() <= 4 && usize::from(offset) % data.len() == 0,
            "not a piece"
        );
        match Bars::contains(offset) {
            true => self.bars.lock().unwrap().write(offset, data),
            false => self.config.lock().unwrap().write(offset, data),
        }
        Action::None
    }

    fn bars(&self) -> Vec<BarSpec> {
        self.bars.lock().unwrap().specs().to_vec()
    }

    fn assign_bar(&self, index: usize, address: u64) {
        self.bars.lock().unwrap().assign(index, address);
    }

    fn reset(&self) {
        self.bars.lock().unwrap().reset();
    }
}

/// A device that reads as one byte everywhere, and remembers what was written.
pub(crate) struct Scratch {
    pub(crate) reads: u8,
    pub(crate) written: Mutex<Vec<(u64, Vec<u8>)>>,
    pub(crate) answers: Action,
}

impl Scratch {
    pub(crate) fn new(reads: u8, answers: Action) -> Arc<Self> {
        Arc::new(Self {
            reads,
            written: Mutex::default(),
            answers,
        })
    }
}

impl BusDevice for Scratch {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.reads);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        self.written.lock().unwrap().push((offset, data.to_vec()));
        self.answers
    }
}

/// An interrupt that counts.
#[derive(Default)]
pub(crate) struct CountingLine(AtomicUsize);

impl CountingLine {
    pub(crate) fn pulses(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl IrqLine for CountingLine {
    fn pulse(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}
