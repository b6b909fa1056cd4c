//! Cards of every shape, drawn at random.

use devices::pci::{
    bar::{BarKind, BarSpec},
    msi::MsiLayout,
    msix::MsixLocation,
};

use super::card::{Capability, Card, EXTENDED, ROM, is_wide};
use crate::assigned::random::Random;

impl Card {
    pub(super) fn draw(random: &mut Random) -> Self {
        let bars = bars(random);
        let capabilities = capabilities(random, &bars);
        let is_express = capabilities
            .iter()
            .any(|(_, c)| matches!(c, Capability::Express { .. }));
        let config_len = if is_express && !random.once_in(4) {
            4096
        } else {
            256
        };
        let extended = match config_len {
            4096 => extended(random),
            _ => Vec::new(),
        };
        Self {
            maps: !random.once_in(5),
            is_sparse: random.once_in(3),
            loops: random.once_in(4),
            pin: if random.once_in(2) { 1 } else { 0 },
            // A VF has neither I/O nor memory space enable.
            command: random.pick(&[0x0147, 0x0157, 0x0004]),
            can_reset: !random.once_in(4),
            bars,
            capabilities,
            extended,
            config_len,
        }
    }
}

fn bars(random: &mut Random) -> Vec<BarSpec> {
    let mut bars = Vec::new();
    let mut index = 0;
    while index < 6 {
        let prefetchable = random.once_in(2);
        let kind = match random.below(4) {
            0 => BarKind::Io,
            1 => BarKind::Memory32 { prefetchable },
            2 if index < 5 => BarKind::Memory64 { prefetchable },
            _ => {
                index += 1;
                continue;
            }
        };
        let size = match kind {
            BarKind::Io => 4 << random.below(7),
            BarKind::Memory64 { .. } if random.once_in(5) => 1 << (28 + random.below(6)),
            // Smaller than a page as often as not.
            _ => 16 << random.below(13),
        };
        bars.push(BarSpec { index, kind, size });
        index += if is_wide(kind) { 2 } else { 1 };
    }
    if random.once_in(2) {
        bars.push(BarSpec {
            index: ROM,
            kind: BarKind::Memory32 {
                prefetchable: false,
            },
            size: 2048 << random.below(5),
        });
    }
    bars
}

fn capabilities(random: &mut Random, bars: &[BarSpec]) -> Vec<(usize, Capability)> {
    let mut wanted = vec![
        Capability::Power([true, random.once_in(2), random.once_in(2), true]),
        Capability::Vpd,
        Capability::Msi(MsiLayout {
            wide: random.once_in(2),
            masking: random.once_in(2),
            vectors: 1 << random.below(6),
        }),
        Capability::Vendor {
            len: u8::try_from(3 + random.below(20)).unwrap(),
        },
        Capability::Express {
            version: random.pick(&[0, 1, 2, 2]),
            kind: random.pick(&[0, 0, 1, 9]),
            flr: random.once_in(2),
        },
        Capability::AdvancedFeatures,
        Capability::EnhancedAllocation,
    ];
    wanted.extend(msix(random, bars).map(Capability::Msix));
    random.shuffle(&mut wanted);
    wanted.truncate(random.below(wanted.len() + 1));
    let mut placed = Vec::new();
    let mut next = 0x40;
    for capability in wanted {
        let at = next + 4 * random.below(3);
        next = (at + capability.len()).next_multiple_of(4);
        if next <= 0x100 {
            placed.push((at, capability));
        }
    }
    // The list need not go by address.
    random.shuffle(&mut placed);
    placed
}

/// A table that has room somewhere: at a BAR's start, at its very end, in between.
fn msix(random: &mut Random, bars: &[BarSpec]) -> Option<MsixLocation> {
    let memory = bars.iter().filter(|bar| bar.kind.is_memory());
    let memory: Vec<_> = memory.filter(|bar| bar.index != ROM).collect();
    if memory.is_empty() {
        return None;
    }
    let vectors: u16 = random.pick(&[1, 2, 3, 16, 64, 65, 2048]);
    let mut place = |len: u64| {
        let bar = random.pick(&memory);
        let room = bar.size.checked_sub(len)?.min(1 << 20);
        let offset = match random.below(3) {
            0 => 0,
            1 => room,
            _ => random.next() % (room + 1),
        };
        Some((bar.index, offset & !7))
    };
    let (table_bar, table_offset) = place(u64::from(vectors) * 16)?;
    let pba_len = u64::from(vectors).div_ceil(64) * 8;
    let (pba_bar, pba_offset) = place(pba_len)?;
    let table_end = table_offset + u64::from(vectors) * 16;
    let apart =
        table_bar != pba_bar || pba_offset >= table_end || pba_offset + pba_len <= table_offset;
    apart.then_some(MsixLocation {
        table_bar,
        table_offset,
        pba_bar,
        pba_offset,
        vectors,
    })
}

/// The first at 0x100, as it has to be, and the others anywhere behind.
fn extended(random: &mut Random) -> Vec<(usize, usize)> {
    let mut which: Vec<_> = (0..EXTENDED.len()).collect();
    random.shuffle(&mut which);
    which.truncate(random.below(which.len() + 1));
    let mut placed = Vec::new();
    let mut next = 0x100;
    for which in which {
        placed.push((next, which));
        let len = match EXTENDED[which].1 {
            usize::MAX => 0x20,
            len => len,
        };
        next += len + 4 * random.below(8);
    }
    if let Some(others) = placed.get_mut(1..) {
        random.shuffle(others);
    }
    placed
}
