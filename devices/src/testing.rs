//! What the tests of this crate share: a seeded generator, the comparison of access widths, and fakes of a card and a device.

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{
    bus::{Action, BusDevice},
    interrupt::IrqLine,
    pci::{
        Function,
        bar::{BarSpec, Bars},
        config::{ConfigSpace, Identity},
    },
    virtio::net::{Offloads, Wire},
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

/// The end of a wire: remembers what is sent, and has packets to be received.
pub(crate) struct Cable {
    pub(crate) stirs: EventFd,
    pub(crate) sent: Mutex<Vec<Vec<u8>>>,
    pub(crate) coming: Mutex<VecDeque<Vec<u8>>>,
    pub(crate) taken: Mutex<Option<Offloads>>,
    pub(crate) is_attached: Mutex<bool>,
    /// What it fails with.
    pub(crate) fails: Mutex<Option<io::ErrorKind>>,
}

pub(crate) fn cable() -> Arc<Cable> {
    Arc::new(Cable {
        stirs: EventFd::new(EFD_NONBLOCK).unwrap(),
        sent: Mutex::default(),
        coming: Mutex::default(),
        taken: Mutex::default(),
        is_attached: Mutex::new(true),
        fails: Mutex::default(),
    })
}

impl AsRawFd for Cable {
    fn as_raw_fd(&self) -> RawFd {
        self.stirs.as_raw_fd()
    }
}

impl Wire for Cable {
    fn send(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<()> {
        if let Some(kind) = *self.fails.lock().unwrap() {
            return Err(kind.into());
        }
        let mut packet = Vec::new();
        for piece in pieces {
            let start = packet.len();
            packet.resize(start + piece.len(), 0);
            piece.copy_to(&mut packet[start..]);
        }
        self.sent.lock().unwrap().push(packet);
        Ok(())
    }

    fn receive(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<usize> {
        if let Some(kind) = *self.fails.lock().unwrap() {
            return Err(kind.into());
        }
        let packet = self.coming.lock().unwrap().pop_front();
        let packet = packet.ok_or(io::ErrorKind::WouldBlock)?;
        let mut left = &packet[..];
        for piece in pieces {
            let (now, later) = left.split_at(left.len().min(piece.len()));
            piece.copy_from(now);
            left = later;
        }
        Ok(packet.len() - left.len())
    }

    fn offload(&self, offloads: Offloads) -> io::Result<()> {
        *self.taken.lock().unwrap() = Some(offloads);
        Ok(())
    }

    fn attach(&self, is_attached: bool) -> io::Result<()> {
        *self.is_attached.lock().unwrap() = is_attached;
        Ok(())
    }
}

impl Cable {
    /// A packet comes.
    pub(crate) fn bring(&self, packet: Vec<u8>) {
        self.coming.lock().unwrap().push_back(packet);
        self.stirs.write(1).unwrap();
    }
}
