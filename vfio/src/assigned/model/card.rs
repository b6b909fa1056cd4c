//! A card as a person would describe it: what it has, the bytes that say so, and whose each byte is. Nothing here is parsed: the
//! description comes first.

use std::ops::Range;

use devices::pci::{
    bar::{BarKind, BarSpec},
    msi::MsiLayout,
    msix::MsixLocation,
};

/// The ROM is the BAR after the sixth.
pub(super) const ROM: usize = 6;

/// A capability of the first 256 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Capability {
    /// With the D-states that there are.
    Power([bool; 4]),
    Vpd,
    Msi(MsiLayout),
    Vendor {
        len: u8,
    },
    Express {
        version: u8,
        kind: u8,
        flr: bool,
    },
    Msix(MsixLocation),
    AdvancedFeatures,
    EnhancedAllocation,
}

/// Extended capabilities that cards here have: ID, length, and whether a guest must not see it. What a hidden one's own length does
/// not say goes with it up to the next, as nobody knows what it is.
pub(super) const EXTENDED: [(u16, usize, bool); 9] = [
    (0x01, 0x48, false),
    (0x03, 0x0c, false),
    (0x0b, 0x20, false),
    (0x0e, 0x08, true),
    (0x0f, 0x08, true),
    (0x10, 0x40, true),
    (0x15, usize::MAX, true),
    (0x18, usize::MAX, true),
    (0x1b, 0x08, true),
];

#[derive(Debug)]
pub(super) struct Card {
    pub(super) bars: Vec<BarSpec>,
    /// The kernel lets BARs be mapped.
    pub(super) maps: bool,
    /// But for a page in the middle of each.
    pub(super) is_sparse: bool,
    /// With their offsets, in the order of the list.
    pub(super) capabilities: Vec<(usize, Capability)>,
    /// Offset and place in `EXTENDED`.
    pub(super) extended: Vec<(usize, usize)>,
    /// The last capability's link leads back to the first.
    pub(super) loops: bool,
    pub(super) config_len: usize,
    pub(super) pin: u8,
    /// The bits of the command register that it has.
    pub(super) command: u16,
    pub(super) can_reset: bool,
}

/// Whose a byte of configuration space is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Read and written live.
    Device,
    /// Always this.
    Fixed(u8),
    Command,
    Bar,
    /// Interrupt line.
    Line,
    /// Byte of the MSI capability.
    Msi(usize),
    /// Byte of MSI-X's message control.
    Msix(usize),
}

/// Whose an access to a BAR is.
pub(super) enum Part {
    Device,
    /// So far into the MSI-X table.
    Table(u64),
    /// So far into the pending bits.
    Pending(u64),
    /// It runs into table or pending bits.
    Both,
    /// The ROM, which nobody writes.
    Rom,
}

impl Capability {
    fn id(self) -> u8 {
        match self {
            Self::Power(_) => 0x01,
            Self::Vpd => 0x03,
            Self::Msi(_) => 0x05,
            Self::Vendor { .. } => 0x09,
            Self::Express { .. } => 0x10,
            Self::Msix(_) => 0x11,
            Self::AdvancedFeatures => 0x13,
            Self::EnhancedAllocation => 0x14,
        }
    }

    pub(super) fn len(self) -> usize {
        match self {
            Self::Power(_) | Self::Vpd => 8,
            Self::Msi(MsiLayout { wide, masking, .. }) => match (wide, masking) {
                (false, false) => 10,
                (true, false) => 14,
                (false, true) => 20,
                (true, true) => 24,
            },
            Self::Vendor { len } => len.into(),
            Self::Express { .. } => 0x3c,
            Self::Msix(_) => 12,
            Self::AdvancedFeatures => 6,
            Self::EnhancedAllocation => 0x14,
        }
    }

    /// What follows ID and link, as far as it is not just anything.
    fn body(self) -> Vec<u8> {
        match self {
            Self::Power(states) => {
                let [_, d1, d2, _] = states.map(u8::from);
                vec![0x03, d1 << 1 | d2 << 2, 0, 0]
            }
            Self::Msi(MsiLayout {
                wide,
                masking,
                vectors,
            }) => {
                let capable = u8::try_from(vectors.ilog2()).unwrap();
                vec![capable << 1 | u8::from(wide) << 7, masking.into()]
            }
            Self::Vendor { len } => vec![len],
            Self::Express { version, kind, flr } => {
                vec![
                    version | kind << 4,
                    0,
                    0,
                    0,
                    0,
                    u8::from(flr) << 4,
                    0x10,
                    0x00,
                ]
            }
            Self::Msix(at) => {
                let mut body = (at.vectors - 1).to_le_bytes().to_vec();
                for (bar, offset) in [(at.table_bar, at.table_offset), (at.pba_bar, at.pba_offset)]
                {
                    body.extend(u32::try_from(offset | bar as u64).unwrap().to_le_bytes());
                }
                body
            }
            Self::AdvancedFeatures => vec![6, 3, 0, 0],
            Self::Vpd | Self::EnhancedAllocation => vec![0; 2],
        }
    }

    fn is_hidden(self) -> bool {
        matches!(self, Self::EnhancedAllocation)
    }
}

impl Card {
    /// What it has at `find`'s choice, with its offset.
    pub(super) fn capability<T>(
        &self,
        find: impl Fn(Capability) -> Option<T>,
    ) -> Option<(usize, T)> {
        let mut all = self.capabilities.iter();
        all.find_map(|&(at, capability)| Some((at, find(capability)?)))
    }

    pub(super) fn msi(&self) -> Option<(usize, MsiLayout)> {
        self.capability(|capability| match capability {
            Capability::Msi(layout) => Some(layout),
            _ => None,
        })
    }

    pub(super) fn msix(&self) -> Option<(usize, MsixLocation)> {
        self.capability(|capability| match capability {
            Capability::Msix(location) => Some(location),
            _ => None,
        })
    }

    /// Where its D-state is, and which there are.
    pub(super) fn power(&self) -> Option<(usize, [bool; 4])> {
        let found = self.capability(|capability| match capability {
            Capability::Power(states) => Some(states),
            _ => None,
        });
        found.map(|(at, states)| (at + 4, states))
    }

    /// Whose `len` bytes at `offset` of a BAR are.
    pub(super) fn part(&self, bar: usize, offset: u64, len: u64) -> Part {
        if bar == ROM {
            return Part::Rom;
        }
        let Some((_, msix)) = self.msix() else {
            return Part::Device;
        };
        let count = |start: u64, size: u64| {
            let bytes = offset..offset + len;
            bytes
                .filter(|byte| (start..start + size).contains(byte))
                .count() as u64
        };
        let vectors = u64::from(msix.vectors);
        let (table, pending) = (
            if msix.table_bar == bar {
                count(msix.table_offset, 16 * vectors)
            } else {
                0
            },
            if msix.pba_bar == bar {
                count(msix.pba_offset, vectors.div_ceil(64) * 8)
            } else {
                0
            },
        );
        match (table, pending) {
            (0, 0) => Part::Device,
            (all, 0) if all == len => Part::Table(offset - msix.table_offset),
            (0, all) if all == len => Part::Pending(offset - msix.pba_offset),
            _ => Part::Both,
        }
    }

    /// The page, if there is one, that the kernel keeps for itself in a BAR of `size` bytes.
    pub(super) fn withheld(&self, size: u64) -> Option<Range<u64>> {
        let middle = size / 2;
        let is_withheld = self.is_sparse && middle >= 0x2000;
        is_withheld.then_some(middle..middle + 0x1000)
    }

    /// The bytes and bits that reset it.
    pub(super) fn resets(&self) -> Vec<(usize, u8)> {
        let resets = self.capabilities.iter();
        resets
            .filter_map(|&(at, capability)| match capability {
                Capability::Express { flr: true, .. } => Some((at + 9, 0x80)),
                Capability::AdvancedFeatures => Some((at + 4, 1)),
                _ => None,
            })
            .collect()
    }

    /// Configuration space as the device has it; `noise` is what is in bytes that mean nothing here.
    pub(super) fn image(&self, mut noise: impl FnMut() -> u8) -> Vec<u8> {
        let mut image: Vec<u8> = (0..self.config_len).map(|_| noise()).collect();
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &[0x86, 0x80, 0xca, 0x10, 0, 0, 0x10, 0]);
        put(0x0e, &[0x80]);
        put(0x10, &[0; 0x18]);
        for bar in self.bars.iter().filter(|bar| bar.index != ROM) {
            let kind = match bar.kind {
                BarKind::Io => 1,
                BarKind::Memory32 { prefetchable } => u8::from(prefetchable) << 3,
                BarKind::Memory64 { prefetchable } => 4 | u8::from(prefetchable) << 3,
            };
            put(0x10 + 4 * bar.index, &[kind]);
        }
        put(0x3d, &[self.pin]);
        let first = self.capabilities.first().map_or(0, |&(at, _)| at);
        put(0x34, &[u8::try_from(first).unwrap()]);
        let links = self.capabilities.iter().skip(1).map(|&(at, _)| at);
        let links = links.chain([if self.loops { first } else { 0 }]);
        for (&(at, capability), link) in self.capabilities.iter().zip(links) {
            put(at, &[capability.id(), u8::try_from(link).unwrap()]);
            put(at + 2, &capability.body());
        }
        let links = self.extended.iter().skip(1).map(|&(at, _)| at);
        let links = links.chain([if self.loops { 0x100 } else { 0 }]);
        for (&(at, which), link) in self.extended.iter().zip(links) {
            put(at, &extended_header(EXTENDED[which].0, 1, link));
        }
        if self.config_len > 0x100 && self.extended.is_empty() {
            put(0x100, &[0; 4]);
        }
        image
    }

    /// Whose each byte of `image` is, and what the guest is shown of those that never change.
    pub(super) fn owners(&self, image: &[u8]) -> Vec<Owner> {
        let mut owners = vec![Owner::Device; image.len()];
        owners.resize(4096, Owner::Fixed(0xff));
        let mut set = |at: usize, all: &[Owner]| owners[at..at + all.len()].copy_from_slice(all);
        let fixed =
            |bytes: &[u8]| -> Vec<Owner> { bytes.iter().map(|&b| Owner::Fixed(b)).collect() };
        set(0x00, &fixed(&image[..4]));
        set(0x04, &[Owner::Command; 2]);
        set(0x0e, &fixed(&[0]));
        set(0x10, &[Owner::Bar; 0x18]);
        set(0x28, &fixed(&[0; 4]));
        set(0x30, &[Owner::Bar; 4]);
        set(0x3c, &[Owner::Line, Owner::Fixed(self.pin)]);

        for &(at, _) in self.capabilities.iter().filter(|(_, c)| c.is_hidden()) {
            set(at, &fixed(&vec![0; self.next_start(at, 0x100) - at]));
        }
        let shown: Vec<_> = self
            .capabilities
            .iter()
            .filter(|(_, c)| !c.is_hidden())
            .collect();
        let links: Vec<_> = shown.iter().map(|&&(at, _)| at).chain([0]).collect();
        set(0x34, &fixed(&[u8::try_from(links[0]).unwrap()]));
        for (&&(at, capability), &link) in shown.iter().zip(&links[1..]) {
            set(at, &fixed(&[capability.id(), u8::try_from(link).unwrap()]));
            match capability {
                Capability::Msi(_) => {
                    (2..capability.len()).for_each(|byte| set(at + byte, &[Owner::Msi(byte)]))
                }
                Capability::Msix(_) => {
                    set(at + 2, &[Owner::Msix(0), Owner::Msix(1)]);
                    set(at + 4, &fixed(&image[at + 4..at + 12]));
                }
                Capability::Express { version, kind, .. } => {
                    let integrated = if kind < 2 { 9 } else { kind };
                    set(
                        at + 2,
                        &fixed(&[version.max(1) | integrated << 4, image[at + 3]]),
                    );
                    if kind < 2 {
                        set(at + 0x0c, &fixed(&[0; 8]));
                    }
                    if kind < 2 && version > 1 {
                        set(at + 0x2c, &fixed(&[0; 8]));
                    }
                }
                _ => {}
            }
        }
        self.own_extended(&mut owners);
        owners
    }

    fn own_extended(&self, owners: &mut [Owner]) {
        let is_hidden = |which: usize| EXTENDED[which].2;
        let shown: Vec<_> = self
            .extended
            .iter()
            .filter(|&&(_, which)| !is_hidden(which))
            .collect();
        let mut links = shown.iter().map(|&&(at, _)| at).chain([0]);
        let mut set = |at: usize, byte: u8| owners[at] = Owner::Fixed(byte);
        for &(at, which) in self.extended.iter().filter(|&&(_, which)| is_hidden(which)) {
            let end = at.saturating_add(EXTENDED[which].1);
            (at..end.min(self.next_start(at, 4096))).for_each(|at| set(at, 0));
        }
        if self
            .extended
            .first()
            .is_some_and(|&(_, which)| !is_hidden(which))
        {
            links.next();
        } else if let Some(&(first, _)) = self.extended.first() {
            let header = extended_header(0, 0, links.next().unwrap());
            (first..).zip(header).for_each(|(at, byte)| set(at, byte));
        }
        for (&&(at, which), link) in shown.iter().zip(links) {
            let header = extended_header(EXTENDED[which].0, 1, link);
            (at..).zip(header).for_each(|(at, byte)| set(at, byte));
        }
    }

    /// Where the next capability starts behind `at`; `end` if there is none.
    fn next_start(&self, at: usize, end: usize) -> usize {
        let standard = self.capabilities.iter().map(|&(start, _)| start);
        let all = standard.chain(self.extended.iter().map(|&(start, _)| start));
        all.filter(|&start| start > at && start < end)
            .min()
            .unwrap_or(end)
    }
}

pub(super) fn is_wide(kind: BarKind) -> bool {
    matches!(kind, BarKind::Memory64 { .. })
}

fn extended_header(id: u16, version: u32, next: usize) -> [u8; 4] {
    (u32::from(id) | version << 16 | u32::try_from(next).unwrap() << 20).to_le_bytes()
}
