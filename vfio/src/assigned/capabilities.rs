//! Which capabilities of the device a guest is shown, and how.
//!
//! PCI 3.0 §6.7, PCIe 6.0 §7.5.3 (PCI Express capability); numbers as in Linux's `pci_regs.h`.
//!
//! vfio-pci hides some itself, those it has no rules for (`vfio_ecap_init` in drivers/vfio/pci/vfio_pci_config.c). They are out of the
//! list before we look; where they were is, as everything between capabilities, read and written as the device has it, because some
//! devices keep registers there (be2net's, that file says).

use std::ops::Range;

use devices::pci::{
    capabilities::{self, Capability, ExtendedCapability},
    registers::{CAP_ADVANCED_FEATURES, CAP_EXPRESS, CAP_MSI, CAP_MSIX, CAP_POWER, EXTENDED},
};

/// Enhanced Allocation: addresses of BARs that are not in the BARs, which nobody here would follow.
const CAP_ENHANCED_ALLOCATION: u8 = 0x14;

/// Extended capabilities that stay the host's.
///
/// They move memory or requester IDs, change the size of a BAR under us, or talk about a link, a bus or an IOMMU that the guest
/// does not have.
const HIDDEN_EXTENDED: &[u16] = &[
    0x02, // virtual channel
    0x05, // root complex link declaration
    0x08, // multi-function virtual channel
    0x09, // virtual channel, beside a multi-function one
    0x0d, // access control services
    0x0e, // ARI
    0x0f, // ATS
    0x10, // SR-IOV
    0x11, // multi-root IOV
    0x12, // multicast
    0x13, // page requests
    0x15, // resizable BAR
    0x17, // TPH: its steering tags may be in the MSI-X table, where there is no place for them
    0x18, // latency tolerance
    0x19, // secondary PCI Express
    0x1b, // PASID
    0x1d, // downstream port containment
    0x1e, // L1 PM substates
    0x1f, // precision time
    0x24, // VF resizable BAR
    0x25, // data link feature
    0x26, // physical layer 16 GT/s
    0x27, // lane margining
    0x2a, // physical layer 32 GT/s
];

/// PCI Express capability, offsets in it.
mod express {
    pub(super) const FLAGS: usize = 0x02;
    pub(super) const DEVICE_CAPABILITIES: usize = 0x04;
    pub(super) const DEVICE_CONTROL: usize = 0x08;
    pub(super) const LINK: std::ops::Range<usize> = 0x0c..0x14;
    /// In capabilities of version 2 and later.
    pub(super) const LINK_2: std::ops::Range<usize> = 0x2c..0x34;
    /// Device capabilities: function level reset.
    pub(super) const FLR: u32 = 1 << 28;
    pub(super) const TYPE_ENDPOINT: u8 = 0;
    pub(super) const TYPE_LEGACY_ENDPOINT: u8 = 1;
    pub(super) const TYPE_INTEGRATED_ENDPOINT: u8 = 9;
}

/// Where the registers are that need more than to be shown.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Bytes of configuration space that are ours: the device neither answers nor sees them.
    pub(super) owned: Vec<Range<usize>>,
    /// MSI capability.
    pub(super) msi: Option<usize>,
    /// MSI-X capability.
    pub(super) msix: Option<usize>,
    /// Power management control and status.
    pub(super) power: Option<usize>,
    /// Bytes and bits of them that start a function level reset when written as one.
    pub(super) function_resets: Vec<(usize, u8)>,
}

/// Rewrites the capabilities in `image`, which was read from the device, into those that the guest is shown.
pub(super) fn rewrite(image: &mut [u8], keep_msi: bool, keep_msix: bool) -> Found {
    let hidden = |capability: Capability| match capability.id {
        CAP_ENHANCED_ALLOCATION => true,
        CAP_MSI => !keep_msi,
        CAP_MSIX => !keep_msix,
        _ => false,
    };
    let hidden_extended = |capability: ExtendedCapability| HIDDEN_EXTENDED.contains(&capability.id);
    let mut found = Found::default();
    found.owned.extend(capabilities::hide(image, hidden));
    found
        .owned
        .extend(capabilities::hide_extended(image, hidden_extended));
    let shown: Vec<_> = capabilities::standard(image).collect();
    for Capability { id, offset } in shown {
        // ID and link are ours: the list is.
        found.owned.push(offset..offset + 2);
        match id {
            CAP_MSI => found.msi = found.msi.or(Some(offset)),
            CAP_MSIX => found.msix = found.msix.or(Some(offset)),
            CAP_POWER => found.power = found.power.or(Some(offset + 4)),
            CAP_ADVANCED_FEATURES => found.advanced_features(image, offset),
            CAP_EXPRESS => found.express(image, offset),
            _ => {}
        }
    }
    // Null capabilities, too: vfio-pci shows one at the start of the list where it hides what is
    // there, and its link is rewritten.
    for ExtendedCapability { offset, .. } in capabilities::extended_headers(image) {
        found.owned.push(offset..offset + 4);
    }
    found
}

impl Found {
    /// Advanced Features (`PCI_AF_CAP_FLR`, `PCI_AF_CTRL_FLR`): byte 3 bit 1 says that byte 4 bit 0 resets the function.
    fn advanced_features(&mut self, image: &[u8], offset: usize) {
        let features = image.get(offset + 3).copied().unwrap_or(0);
        let control = offset + 4;
        // A list can put it where it does not fit: what lies behind is not its own.
        if features & 2 != 0 && control < EXTENDED {
            self.function_resets.push((control, 1));
        }
    }

    /// On the root bus there is no link: an endpoint is shown as integrated into the root complex, and its link registers are
    /// empty (PCIe 6.0 §7.5.3: they are for functions that have one). Windows fails an endpoint that
    /// has no port above it (code 10). One that is integrated already has none of these registers: its capability is shorter, and
    /// what follows may be anything.
    fn express(&mut self, image: &mut [u8], offset: usize) {
        use express::{
            DEVICE_CAPABILITIES, DEVICE_CONTROL, FLAGS, FLR, LINK, LINK_2, TYPE_ENDPOINT,
            TYPE_INTEGRATED_ENDPOINT, TYPE_LEGACY_ENDPOINT,
        };
        let Some(flags) = image.get_mut(offset + FLAGS) else {
            return;
        };
        // There is no version 0, which the VFs of Intel's 82599 say they have (its erratum 35): Windows fails those, too.
        let (version, kind) = ((*flags & 0xf).max(1), *flags >> 4);
        let has_link = kind == TYPE_ENDPOINT || kind == TYPE_LEGACY_ENDPOINT;
        let shown = match has_link {
            true => TYPE_INTEGRATED_ENDPOINT,
            false => kind,
        };
        *flags = version | shown << 4;
        self.owned.push(offset + FLAGS..offset + FLAGS + 2);
        let links: &[Range<usize>] = match (has_link, version) {
            (false, _) => &[],
            (true, 1) => &[LINK],
            (true, _) => &[LINK, LINK_2],
        };
        for link in links {
            // A list can put it where it does not fit: what lies behind is not its own.
            let range = offset + link.start..(offset + link.end).min(EXTENDED);
            if let Some(registers) = image.get_mut(range.clone()) {
                registers.fill(0);
                self.owned.push(range);
            }
        }
        let at = offset + DEVICE_CAPABILITIES;
        let device = image.get(at..).and_then(<[u8]>::first_chunk);
        if device.is_some_and(|&bytes| u32::from_le_bytes(bytes) & FLR != 0) {
            // Device control bit 15, Initiate Function Level Reset.
            self.function_resets
                .push((offset + DEVICE_CONTROL + 1, 0x80));
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::pci::registers::{CAPABILITIES, STATUS};

    use super::{super::random::Random, *};

    /// Configuration space with these capabilities (ID, offset, bytes after the link) and extended ones (ID, offset).
    fn space(standard: &[(u8, usize, &[u8])], extended: &[(u16, usize)]) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[STATUS] = 0x10;
        let mut link = CAPABILITIES;
        for &(id, offset, body) in standard {
            image[link] = u8::try_from(offset).unwrap();
            image[offset] = id;
            image[offset + 2..offset + 2 + body.len()].copy_from_slice(body);
            link = offset + 1;
        }
        for (at, &(id, offset)) in extended.iter().enumerate() {
            let next = extended.get(at + 1).map_or(0, |&(_, next)| next);
            let header = u32::from(id) | 1 << 16 | u32::try_from(next).unwrap() << 20;
            image[offset..offset + 4].copy_from_slice(&header.to_le_bytes());
            image[offset + 4] = 0xaa;
        }
        image
    }

    fn owns(found: &Found, offset: usize) -> bool {
        found.owned.iter().any(|range| range.contains(&offset))
    }

    #[test]
    fn the_first_extended_capability_can_be_hidden() {
        let mut image = space(&[], &[(0x10, 0x100), (0x03, 0x140), (0x0e, 0x150)]);
        let found = rewrite(&mut image, true, true);
        let shown: Vec<_> = capabilities::extended(&image)
            .map(|c| (c.id, c.offset))
            .collect();
        assert_eq!(shown, [(0x03, 0x140)]);
        assert_eq!((image[0x104], image[0x154]), (0, 0));
        assert!(owns(&found, 0x104) && owns(&found, 0x154) && !owns(&found, 0x144));
    }

    #[test]
    fn the_link_of_a_null_capability_is_the_rewritten_one() {
        // vfio-pci has hidden the first, and SR-IOV stays the host's.
        let mut image = space(&[], &[(0, 0x100), (0x10, 0x140), (0x03, 0x180)]);
        let found = rewrite(&mut image, true, true);
        assert_eq!(image[0x100..0x104], [0, 0, 1, 0x18]);
        assert!(owns(&found, 0x100) && owns(&found, 0x103) && !owns(&found, 0x104));
    }

    #[test]
    fn an_endpoint_becomes_integrated_and_loses_its_link() {
        let mut body = [0xff; 0x3a];
        body[0] = 0x02;
        let mut image = space(&[(CAP_EXPRESS, 0x80, &body)], &[]);
        let found = rewrite(&mut image, true, true);
        assert_eq!(image[0x82], 0x92);
        assert!(
            image[0x8c..0x94]
                .iter()
                .chain(&image[0xac..0xb4])
                .all(|&byte| byte == 0)
        );
        assert!(owns(&found, 0x8c) && owns(&found, 0xb3));
        assert!(!owns(&found, 0x88) && !owns(&found, 0xa8));
        assert_eq!(found.function_resets, [(0x89, 0x80)]);
    }

    #[test]
    fn a_capability_of_version_0_is_shown_as_version_1() {
        let mut image = space(&[(CAP_EXPRESS, 0x80, &[0; 0x3a])], &[]);
        let found = rewrite(&mut image, true, true);
        assert_eq!(image[0x82], 0x91);
        assert!(owns(&found, 0x8c) && !owns(&found, 0xac));
    }

    #[test]
    fn a_capability_that_runs_out_of_its_space_takes_nothing_beyond() {
        let mut image = space(&[(CAP_EXPRESS, 0xd4, &[2])], &[(1, 0x100)]);
        image[0x104..0x108].fill(0x55);
        let found = rewrite(&mut image, true, true);
        assert_eq!(image[0x100..0x108], [1, 0, 1, 0, 0x55, 0x55, 0x55, 0x55]);
        assert!(owns(&found, 0xe7) && !owns(&found, 0x104));
    }

    #[test]
    fn a_version_1_capability_has_no_second_link_registers() {
        let mut body = [0; 0x3a];
        body[0] = 0x11;
        let mut image = space(&[(CAP_EXPRESS, 0x80, &body)], &[]);
        let found = rewrite(&mut image, true, true);
        assert!(!owns(&found, 0xac));
        assert_eq!(found.function_resets, []);
    }

    #[test]
    fn an_endpoint_that_is_integrated_already_has_no_link_to_lose() {
        // Version 1, type 9: 12 bytes long (`PCI_CAP_EXP_RC_ENDPOINT_SIZEOF_V1`), and here another capability follows at once.
        let mut image = space(
            &[
                (CAP_EXPRESS, 0x80, &[0x91, 0]),
                (CAP_POWER, 0x8c, &[0x23, 0xc8]),
            ],
            &[],
        );
        let found = rewrite(&mut image, true, true);
        assert_eq!(image[0x82], 0x91);
        assert_eq!(image[0x8c..0x90], [CAP_POWER, 0, 0x23, 0xc8]);
        assert!(!owns(&found, 0x8e) && !owns(&found, 0x90));
        assert_eq!(found.power, Some(0x90));
    }

    #[test]
    fn msi_that_cannot_be_modelled_is_hidden() {
        let mut image = space(&[(CAP_MSI, 0x50, &[0; 10]), (CAP_POWER, 0x60, &[])], &[]);
        let found = rewrite(&mut image, false, true);
        assert_eq!(found.msi, None);
        assert_eq!(found.power, Some(0x64));
        assert_eq!(image[CAPABILITIES], 0x60);
        assert!(owns(&found, 0x52));
    }

    #[test]
    fn enhanced_allocation_is_always_hidden_and_msix_where_it_cannot_be_modelled() {
        for (id, keep_msix, is_shown) in [
            (CAP_ENHANCED_ALLOCATION, true, false),
            (CAP_MSIX, false, false),
            (CAP_MSIX, true, true),
        ] {
            let mut image = space(&[(id, 0x50, &[0; 10]), (CAP_POWER, 0x60, &[])], &[]);
            let found = rewrite(&mut image, true, keep_msix);
            assert_eq!(
                capabilities::find(&image, id).is_some(),
                is_shown,
                "{id:#x}"
            );
            assert_eq!(found.msix.is_some(), is_shown);
            assert_eq!(found.power, Some(0x64));
        }
    }

    #[test]
    fn advanced_features_reset_the_function_only_where_they_say_so() {
        // PCI_AF_CAP_TP alone, FLR alone, both (pci_regs.h of Linux).
        for (features, resets) in [(1, vec![]), (2, vec![(0x54, 1)]), (3, vec![(0x54, 1)])] {
            let mut image = space(&[(CAP_ADVANCED_FEATURES, 0x50, &[6, features])], &[]);
            let found = rewrite(&mut image, true, true);
            assert_eq!(found.function_resets, resets, "{features:#b}");
        }
    }

    #[test]
    fn a_capability_at_the_end_of_a_short_space_owns_and_resets_nothing_behind_it() {
        for id in [
            CAP_EXPRESS,
            CAP_ADVANCED_FEATURES,
            CAP_POWER,
            CAP_MSI,
            CAP_MSIX,
        ] {
            let mut image = space(&[(id, 0xfc, &[0xff; 2])], &[]);
            image.truncate(256);
            let found = rewrite(&mut image, true, true);
            assert_eq!(image.len(), 256);
            assert_eq!(capabilities::find(&image, id), Some(0xfc));
            assert!(owns(&found, 0xfd) && found.owned.iter().all(|range| range.end <= 256));
            assert_eq!(found.function_resets, []);
        }
    }

    #[test]
    fn whatever_a_device_lists_the_guest_reads_the_list_that_was_rewritten() {
        let mut random = Random::new(7);
        let (mut hidden, mut shown, mut modelled) = (0, 0, 0);
        for _ in 0..2000 {
            let mut image: Vec<u8> = (0..4096).map(|_| random.byte()).collect();
            image[STATUS] |= 0x10;
            // IDs and links that make sense now and then: null capabilities, those that are hidden,
            // and others.
            for at in (0x40..0x100).step_by(4) {
                let ids = [
                    CAP_EXPRESS,
                    CAP_POWER,
                    CAP_MSI,
                    CAP_MSIX,
                    CAP_ENHANCED_ALLOCATION,
                ];
                image[at] = random.pick(&ids);
            }
            for at in (EXTENDED..4096).step_by(4) {
                let id = random.pick(&[0, 0x01, 0x03, 0x0b, 0x10, 0x15]);
                let next = EXTENDED + random.below(64) * 4;
                let header = id | 1 << 16 | u32::try_from(next).unwrap() << 20;
                image[at..at + 4].copy_from_slice(&header.to_le_bytes());
            }
            let before = image.clone();
            let found = rewrite(&mut image, true, false);
            for capability in capabilities::standard(&image) {
                assert!(![CAP_MSIX, CAP_ENHANCED_ALLOCATION].contains(&capability.id));
                shown += 1;
            }
            for capability in capabilities::extended(&image) {
                assert!(!HIDDEN_EXTENDED.contains(&capability.id));
                shown += 1;
            }
            assert_eq!(found.msix, None);
            // The registers of a link that is taken away may lie over the rest of the list.
            if let Some(at) = capabilities::find(&image, CAP_MSI) {
                assert_eq!(found.msi, Some(at));
                modelled += 1;
            }
            if let Some(at) = capabilities::find(&image, CAP_POWER) {
                assert_eq!(found.power, Some(at + 4));
                modelled += 1;
            }
            // The device answers for every byte that is not owned. The pointer to the list is of
            // the header, which is owned elsewhere.
            let mut owned = vec![false; image.len()];
            owned[CAPABILITIES] = true;
            for range in &found.owned {
                owned[range.clone()].fill(true);
                hidden += usize::from(image[range.clone()].iter().all(|&byte| byte == 0));
            }
            let stray = (0..image.len()).find(|&at| image[at] != before[at] && !owned[at]);
            assert_eq!(stray, None);
        }
        assert!(
            hidden > 1000 && shown > 1000 && modelled > 1000,
            "{hidden} hidden, {shown} shown, {modelled} modelled"
        );
    }
}
