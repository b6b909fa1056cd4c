//! Capability lists over an image of configuration space (PCI 3.0 §6.7; the headers of extended ones as `PCI_EXT_CAP_ID`, `_VER` and
//! `_NEXT` in Linux's `pci_regs.h` take them apart).
//!
//! The image may come from a device, and a device can lie: a walk visits no offset twice, so a list that loops just ends, after at
//! most 48 capabilities (480 extended ones), and nothing is read outside the image.

use std::ops::Range;

use super::{msi::MsiLayout, msix::MSIX_CAPABILITY_LEN, registers::*};

const MOST: usize = (EXTENDED - HEADER_END) / 4;
// The smallest extended capability is a header and one register.
const MOST_EXTENDED: usize = (CONFIG_LEN - EXTENDED) / 8;

/// A capability of the first 256 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub id: u8,
    /// Where it starts, in bytes.
    pub offset: usize,
}

/// An extended capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtendedCapability {
    /// What it is.
    pub id: u16,
    /// Version of its layout.
    pub version: u8,
    /// Where it starts, in bytes.
    pub offset: usize,
}

/// The capabilities in `config`, in the order of their list.
pub fn standard(config: &[u8]) -> impl Iterator<Item = Capability> {
    let has_list = word(config, STATUS).is_some_and(|status| status & STATUS_CAPABILITIES != 0);
    let first = config.get(CAPABILITIES).filter(|_| has_list);
    let next = |at: usize| config.get(at + 1).map(|&next| usize::from(next & !3));
    offsets(first.map(|&first| usize::from(first & !3)), MOST, next)
        .take_while(|&offset| offset >= HEADER_END)
        .map_while(|offset| {
            let id = *config.get(offset)?;
            // What answers all-ones is not there.
            (id != 0xff).then_some(Capability { id, offset })
        })
}

/// The extended capabilities in `config`, in the order of their list. Null capabilities (ID 0) are links only and not told.
pub fn extended(config: &[u8]) -> impl Iterator<Item = ExtendedCapability> {
    extended_headers(config).filter(|capability| capability.id != 0)
}

/// The same with null capabilities.
pub fn extended_headers(config: &[u8]) -> impl Iterator<Item = ExtendedCapability> {
    offsets(Some(EXTENDED), MOST_EXTENDED, |at| {
        header(config, at).map(Header::next)
    })
    .take_while(|&offset| offset >= EXTENDED)
    .map_while(|offset| {
        let header = header(config, offset).filter(|header| header.0 != 0 && header.0 != !0)?;
        Some(ExtendedCapability {
            id: header.id(),
            version: header.version(),
            offset,
        })
    })
}

/// The offset of the first capability `id`.
pub fn find(config: &[u8], id: u8) -> Option<usize> {
    let found = standard(config).find(|capability| capability.id == id)?;
    Some(found.offset)
}

/// The offset of the first extended capability `id`.
pub fn find_extended(config: &[u8], id: u16) -> Option<usize> {
    let found = extended(config).find(|capability| capability.id == id)?;
    Some(found.offset)
}

/// Unlinks the capabilities that `hidden` names and clears their bytes. Answers with what was cleared, so that the same bytes can be
/// kept from the device. What is left is a list that ends, whatever it was before: a guest's walk may have no bound.
pub fn hide(config: &mut [u8], hidden: impl Fn(Capability) -> bool) -> Vec<Range<usize>> {
    let all = standard(config).map(|c| (c.offset, hidden(c)));
    let (gone, kept) = divide(all);
    // Each link holds the offset of the next that is kept, and the last one zero.
    let links = std::iter::once(CAPABILITIES).chain(kept.iter().map(|offset| offset + 1));
    for (link, target) in links.zip(kept.iter().copied().chain([0])) {
        if let (Some(byte), Ok(target)) = (config.get_mut(link), u8::try_from(target)) {
            *byte = target;
        }
    }
    clear(config, &gone, &kept, length, EXTENDED)
}

/// Unlinks the extended capabilities that `hidden` names and clears their bytes; answers with what was cleared. This list ends, too.
///
/// The list has no head to point elsewhere: it starts at 0x100, whatever is there. A first capability that is hidden becomes a null
/// capability (ID 0, version 0), which has a link and nothing else; if it is the last too, that is how an empty list is written.
pub fn hide_extended(
    config: &mut [u8],
    hidden: impl Fn(ExtendedCapability) -> bool,
) -> Vec<Range<usize>> {
    let all = extended_headers(config).map(|c| (c.offset, c.id != 0 && hidden(c)));
    let (gone, kept) = divide(all);
    let cleared = clear(config, &gone, &kept, extended_length, CONFIG_LEN);
    let first_is_gone = gone.contains(&EXTENDED);
    let links = first_is_gone
        .then_some(EXTENDED)
        .into_iter()
        .chain(kept.iter().copied());
    let targets = kept
        .iter()
        .copied()
        .skip(usize::from(!first_is_gone))
        .chain([0]);
    for (link, target) in links.zip(targets) {
        set_next(config, link, target);
    }
    cleared
}

/// The offsets of capabilities that are hidden, and of the others, each in the order of the list.
fn divide(capabilities: impl Iterator<Item = (usize, bool)>) -> (Vec<usize>, Vec<usize>) {
    let (mut gone, mut kept) = (Vec::new(), Vec::new());
    for (offset, is_hidden) in capabilities {
        if is_hidden { &mut gone } else { &mut kept }.push(offset);
    }
    (gone, kept)
}

/// Clears each capability of `gone`. One whose length is not known ends where the next that we know of starts.
fn clear(
    config: &mut [u8],
    gone: &[usize],
    kept: &[usize],
    length: impl Fn(&[u8], usize) -> Option<usize>,
    end: usize,
) -> Vec<Range<usize>> {
    let end = end.min(config.len());
    let extent = |&start: &usize| {
        let later = gone
            .iter()
            .chain(kept)
            .copied()
            .filter(|&other| other > start);
        let next = later.min().unwrap_or(end).min(end);
        let known = length(config, start).and_then(|length| start.checked_add(length));
        start..known.map_or(next, |known| known.min(next))
    };
    let ranges: Vec<_> = gone.iter().map(extent).collect();
    for range in &ranges {
        if let Some(bytes) = config.get_mut(range.clone()) {
            bytes.fill(0);
        }
    }
    ranges
}

/// Length in bytes of the capability at `at`, where its ID tells. Registers of the device's own may follow, so guessing long is bad.
fn length(config: &[u8], at: usize) -> Option<usize> {
    let capability = config.get(at..)?;
    match *capability.first()? {
        CAP_POWER => Some(8),
        CAP_MSI => MsiLayout::parse(capability).map(|layout| layout.capability_len()),
        CAP_VENDOR => capability.get(2).map(|&length| usize::from(length).max(3)),
        CAP_EXPRESS => Some(0x3c),
        CAP_MSIX => Some(MSIX_CAPABILITY_LEN),
        CAP_ADVANCED_FEATURES => Some(6),
        _ => None,
    }
}

/// The same for extended ones; the lengths are those of Linux's `pci_regs.h`.
fn extended_length(config: &[u8], at: usize) -> Option<usize> {
    match header(config, at)?.id() {
        EXT_ARI | EXT_ATS | EXT_PASID => Some(8),
        EXT_PRI => Some(16),
        EXT_SRIOV => Some(0x40),
        _ => None,
    }
}

/// Follows `next` from `first`, until it fails or an offset comes again.
fn offsets(
    first: Option<usize>,
    most: usize,
    next: impl Fn(usize) -> Option<usize>,
) -> impl Iterator<Item = usize> {
    let mut seen = [0_u64; CONFIG_LEN / 4 / 64];
    let mut at = first;
    std::iter::from_fn(move || {
        let offset = at.filter(|offset| offset / 4 < CONFIG_LEN / 4)?;
        let (word, bit) = (&mut seen[offset / 4 / 64], 1 << (offset / 4 % 64));
        if *word & bit != 0 {
            return None;
        }
        *word |= bit;
        at = next(offset);
        Some(offset)
    })
    .take(most)
}

/// The header of an extended capability: ID, version, next.
#[derive(Clone, Copy)]
struct Header(u32);

impl Header {
    fn id(self) -> u16 {
        let [low, high, ..] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    fn version(self) -> u8 {
        self.0.to_le_bytes()[2] & 0xf
    }

    fn next(self) -> usize {
        let [.., low, high] = self.0.to_le_bytes();
        usize::from(u16::from_le_bytes([low, high]) >> 4) & !3
    }
}

fn header(config: &[u8], at: usize) -> Option<Header> {
    let bytes = config.get(at..)?.first_chunk()?;
    Some(Header(u32::from_le_bytes(*bytes)))
}

fn set_next(config: &mut [u8], at: usize, next: usize) {
    let (Some(Header(old)), Ok(next)) = (header(config, at), u32::try_from(next)) else {
        return;
    };
    let new = old & 0x000f_ffff | next << 20;
    config[at..at + 4].copy_from_slice(&new.to_le_bytes());
}

fn word(config: &[u8], at: usize) -> Option<u16> {
    let bytes = config.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn config(standard: &[(usize, u8)], extended: &[(usize, u16)]) -> Vec<u8> {
        let mut config = vec![0; CONFIG_LEN];
        config[STATUS] = 0x10;
        let mut link = CAPABILITIES;
        for &(offset, id) in standard {
            config[link] = u8::try_from(offset).unwrap();
            config[offset..offset + 8].copy_from_slice(&[id, 0, 1, 2, 3, 4, 5, 6]);
            link = offset + 1;
        }
        let mut last = None;
        for &(offset, id) in extended {
            config[offset..offset + 8].copy_from_slice(&[0, 0, 1, 0, 3, 4, 5, 6]);
            config[offset..offset + 2].copy_from_slice(&id.to_le_bytes());
            if let Some(last) = last.replace(offset) {
                set_next(&mut config, last, offset);
            }
        }
        config
    }

    fn ids(config: &[u8]) -> Vec<u8> {
        standard(config).map(|capability| capability.id).collect()
    }

    fn extended_ids(config: &[u8]) -> Vec<u16> {
        extended(config).map(|capability| capability.id).collect()
    }

    #[test]
    fn a_walk_follows_the_list_and_not_the_addresses() {
        let config = config(
            &[(0x70, 0x11), (0x40, 0x01), (0xa0, 0x10)],
            &[(0x100, 1), (0x140, 3)],
        );
        assert_eq!(ids(&config), [0x11, 0x01, 0x10]);
        assert_eq!(find(&config, 0x10), Some(0xa0));
        assert_eq!(extended_ids(&config), [1, 3]);
        assert_eq!(find_extended(&config, 3), Some(0x140));
        assert_eq!(find_extended(&config, 4), None);
    }

    #[test]
    fn a_header_says_id_version_and_the_next_and_all_ones_are_none() {
        let mut config = config(&[], &[(0x100, 1), (0x140, 3), (0x180, 0xe)]);
        config[0x142] = 0x02;
        let second = extended(&config).nth(1).unwrap();
        assert_eq!((second.id, second.version, second.offset), (3, 2, 0x140));
        // A function that no longer responds reads as all-ones.
        config[0x140..0x144].fill(0xff);
        assert_eq!(extended_ids(&config), [1]);
    }

    #[test]
    fn what_is_hidden_is_cleared_in_the_length_of_its_kind() {
        // PCI PM 1.2 §3.2; PCI 3.0 §6.8.1 (MSI's four layouts), §6.8.2, appendix H (vendor: its third byte); PCIe 6.0 §7.5.3;
        // the ECN of Advanced Features. What is not known goes up to the next.
        let kinds: [(u8, [u8; 3], usize); 11] = [
            (0x01, [0; 3], 8),
            (0x05, [0, 0x00, 0x00], 10),
            (0x05, [0, 0x80, 0x00], 14),
            (0x05, [0, 0x00, 0x01], 20),
            (0x05, [0, 0x80, 0x01], 24),
            (0x09, [0, 0x14, 0], 0x14),
            (0x09, [0, 0, 0], 3),
            (0x10, [0; 3], 0x3c),
            (0x11, [0; 3], 12),
            (0x13, [0; 3], 6),
            (0x0d, [0; 3], 0x80),
        ];
        for (id, following, len) in kinds {
            let mut config = config(&[(0x40, id), (0xc0, 2)], &[]);
            config[0x42..0x44].copy_from_slice(&following[1..]);
            config[0x44..0xc0].fill(0xaa);
            let cleared = hide(&mut config, |capability| capability.id == id);
            assert_eq!(cleared.len(), 1);
            assert_eq!(cleared[0], 0x40..0x40 + len, "{id:#x} {following:?}");
            assert!(config[0x40..0x40 + len].iter().all(|&byte| byte == 0));
            assert_eq!(config[0x40 + len.max(4)] == 0xaa, len < 0x80);
        }
        for (id, len) in [
            (0x0e, 8),
            (0x0f, 8),
            (0x10, 0x40),
            (0x13, 16),
            (0x1b, 8),
            (2, 0x80),
        ] {
            let mut config = config(&[], &[(0x100, 1), (0x140, id), (0x1c0, 3)]);
            let cleared = hide_extended(&mut config, |capability| capability.id == id);
            assert_eq!(cleared.len(), 1);
            assert_eq!(cleared[0], 0x140..0x140 + len, "{id:#x}");
        }
    }

    #[test]
    fn without_the_status_bit_there_is_no_list() {
        let mut config = config(&[(0x40, 0x01)], &[]);
        config[STATUS] = 0;
        assert_eq!(ids(&config), []);
        assert!(extended_ids(&config).is_empty());
    }

    #[test]
    fn a_list_that_loops_ends() {
        let mut config = config(&[(0x40, 1), (0x50, 2)], &[(0x100, 1), (0x140, 3)]);
        config[0x51] = 0x40;
        set_next(&mut config, 0x140, 0x140);
        assert_eq!(ids(&config), [1, 2]);
        assert_eq!(extended_ids(&config), [1, 3]);
    }

    #[test]
    fn a_list_that_loops_is_shown_as_one_that_ends() {
        let mut config = config(&[(0x40, 1), (0x50, 2)], &[(0x100, 1), (0x140, 3)]);
        config[0x51] = 0x40;
        set_next(&mut config, 0x140, 0x140);
        assert_eq!(hide(&mut config, |_| false), []);
        assert_eq!(hide_extended(&mut config, |_| false), []);
        assert_eq!((config[0x41], config[0x51]), (0x50, 0));
        assert_eq!(config[0x140..0x144], [3, 0, 1, 0]);
        assert_eq!(
            (ids(&config), extended_ids(&config)),
            (vec![1, 2], vec![1, 3])
        );
    }

    #[test]
    fn the_middle_the_first_and_the_last_can_be_hidden() {
        let offsets = [(0x40, 1), (0x50, 2), (0x60, 3)];
        for hidden in 1..=3 {
            let mut config = config(&offsets, &[]);
            let cleared = hide(&mut config, |capability| capability.id == hidden);
            let left: Vec<_> = (1..=3).filter(|&id| id != hidden).collect();
            assert_eq!(ids(&config), left);
            let start = offsets[usize::from(hidden) - 1].0;
            assert_eq!(cleared[0].start, start);
            assert_eq!(config[start..start + 8], [0; 8]);
        }
    }

    #[test]
    fn all_can_be_hidden() {
        let mut config = config(&[(0x40, 1), (0x50, 2)], &[(0x100, 1), (0x140, 3)]);
        hide(&mut config, |_| true);
        hide_extended(&mut config, |_| true);
        assert_eq!(config[CAPABILITIES], 0);
        assert!(config[0x40..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_hidden_first_extended_capability_leaves_only_its_link() {
        let mut config = config(&[], &[(0x100, 0xe), (0x140, 0x10), (0x200, 3), (0x180, 1)]);
        let cleared = hide_extended(&mut config, |capability| {
            [0xe, 0x10].contains(&capability.id)
        });
        assert_eq!(extended_ids(&config), [3, 1]);
        assert_eq!(config[0x100..0x108], [0, 0, 0, 0x20, 0, 0, 0, 0]);
        assert_eq!(cleared, [0x100..0x108, 0x140..0x180]);
        // Hiding once more, with the null capability already there.
        hide_extended(&mut config, |capability| capability.id == 3);
        assert_eq!(extended_ids(&config), [1]);
    }

    #[test]
    fn hidden_extended_capabilities_are_unlinked_wherever_they_stand() {
        let mut config = config(&[], &[(0x100, 1), (0x140, 0x10), (0x200, 3), (0x300, 0x15)]);
        hide_extended(&mut config, |capability| {
            [0x10, 0x15].contains(&capability.id)
        });
        assert_eq!(extended_ids(&config), [1, 3]);
        assert_eq!(config[0x300..0x308], [0; 8]);
    }

    #[test]
    fn garbage_of_any_length_is_survived() {
        let mut random = Random::new(3);
        for _ in 0..2_000 {
            let len = usize::try_from(random.within(0..0x1100)).unwrap();
            let mut config: Vec<u8> = (0..len).map(|_| random.next().to_le_bytes()[3]).collect();
            if let Some(status) = config.get_mut(STATUS) {
                *status |= 0x10;
            }
            let kept = |id: u16| !id.is_multiple_of(3);
            let expected: Vec<_> = standard(&config).filter(|c| kept(c.id.into())).collect();
            hide(&mut config, |capability| !kept(capability.id.into()));
            assert_eq!(standard(&config).collect::<Vec<_>>(), expected);
            let expected: Vec<_> = extended(&config).filter(|c| kept(c.id)).collect();
            hide_extended(&mut config, |capability| !kept(capability.id));
            assert_eq!(extended(&config).collect::<Vec<_>>(), expected);
        }
    }
}
