//! What the property tests of this crate share: a seeded generator, and the comparison of access widths.

use std::ops::Range;

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
