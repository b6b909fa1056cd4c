//! How a function interrupts: by its pin, by MSI, by MSI-X.

use std::ops::Range;

use devices::pci::{
    msi::MsiLayout,
    msix::MsixLocation,
    registers::{CAP_EXPRESS, CAP_MSI, CAP_MSIX, COMMAND_INTX_DISABLE, INTERRUPT_PIN},
};

use super::{Known, config::ConfigSpace};
use crate::kernel::mapping::page_bytes;

/// The ways in which a function can interrupt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interrupts {
    /// By a pin.
    pub pin: Known<Option<Pin>>,
    /// By messages of one address.
    pub msi: Known<Option<MsiLayout>>,
    /// By messages of a table.
    pub msix: Known<Option<Msix>>,
}

/// An INTx pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// `A` to `D`.
    pub letter: char,
    /// It has the INTx disable bit, without which the host's line cannot be shared; unknown where neither its age nor its state
    /// proves it. What is not in any register is whether that bit works: the kernel has a list of functions where it does not
    /// (`quirk_broken_intx_masking` in drivers/pci/quirks.c).
    pub can_be_disabled: Known<bool>,
}

/// MSI-X.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msix {
    /// How many vectors, and where table and pending bits are.
    pub location: MsixLocation,
}

impl Interrupts {
    pub(super) fn of(config: &ConfigSpace) -> Self {
        let msi = config.capability(CAP_MSI);
        let msix = config.capability(CAP_MSIX);
        let location = |bytes| MsixLocation::parse(bytes).map(|location| Msix { location });
        Self {
            pin: Pin::of(config),
            // A capability that makes no sense is as good as none: the guest is not shown it either.
            msi: msi.map(|bytes| bytes.and_then(MsiLayout::parse)),
            msix: msix.map(|bytes| bytes.and_then(location)),
        }
    }
}

impl Pin {
    fn of(config: &ConfigSpace) -> Known<Option<Self>> {
        let letter = |pin: u8| {
            Some(char::from(
                b'A' + pin.checked_sub(1).filter(|&pin| pin < 4)?,
            ))
        };
        // PCI Express asks for the bit of every function that has a pin; PCI before 2.3 had none. One that is set is there.
        let is_set = config.command() & COMMAND_INTX_DISABLE != 0;
        let is_express = matches!(config.capability(CAP_EXPRESS), Known::Known(Some(_)));
        let can_be_disabled = match is_set || is_express {
            true => Known::Known(true),
            false => Known::Unknown,
        };
        config.byte(INTERRUPT_PIN).map(|pin| {
            letter(pin).map(|letter| Self {
                letter,
                can_be_disabled,
            })
        })
    }
}

impl Msix {
    /// How many bytes of BAR `index`, which has `size`, are in pages of the table or of the pending bits: no guest gets these
    /// pages.
    pub(super) fn withheld(&self, index: usize, size: u64) -> u64 {
        let page = page_bytes();
        let limit = size.checked_next_multiple_of(page).unwrap_or(u64::MAX);
        let [table, pba] = self.parts(index).map(|part| match part {
            Some(part) => part.start / page * page..part.end.next_multiple_of(page).min(limit),
            None => 0..0,
        });
        let len = |range: &Range<u64>| range.end.saturating_sub(range.start);
        let both = table.start.max(pba.start)..table.end.min(pba.end);
        len(&table) + len(&pba) - len(&both)
    }

    /// Whether other registers are in a page of the table or of the pending bits, so that the guest exits for each access to them.
    ///
    /// No register says so. What is told is whether something stands before them in the page: a device that keeps its table away
    /// from its registers (PCI 3.0 §6.8.2 asks for that) starts a page with it.
    pub fn shares_a_page(&self) -> bool {
        let page = page_bytes();
        let parts = [self.location.table(), self.location.pba()];
        let same_bar = self.location.table_bar == self.location.pba_bar;
        let table_page = parts[0].start / page..parts[0].end.div_ceil(page);
        let [table_alone, pba_alone] = parts.each_ref().map(|part| part.start.is_multiple_of(page));
        // Pending bits behind the table in a page that begins with it are in good company.
        let beside_table = same_bar && table_page.contains(&(parts[1].start / page));
        let pba_fine = pba_alone || beside_table && parts[1].start >= parts[0].end;
        let table_fine = table_alone || same_bar && pba_alone && beside_table;
        !(table_fine && pba_fine)
    }

    /// Table and pending bits, as far as they are in BAR `index`.
    fn parts(&self, index: usize) -> [Option<Range<u64>>; 2] {
        let MsixLocation {
            table_bar, pba_bar, ..
        } = self.location;
        [
            (table_bar == index).then(|| self.location.table()),
            (pba_bar == index).then(|| self.location.pba()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with pin A and capabilities, one behind the other from 0x40 on.
    fn config(capabilities: &[&[u8]]) -> ConfigSpace {
        let mut bytes = vec![0; 256];
        bytes[0x06] = 0x10;
        bytes[INTERRUPT_PIN] = 1;
        let (mut link, mut at) = (0x34, 0x40);
        for capability in capabilities {
            bytes[link] = u8::try_from(at).unwrap();
            bytes[at..at + capability.len()].copy_from_slice(capability);
            (link, at) = (at + 1, at + 0x40);
        }
        bytes.into()
    }

    fn msix(table: u64, pba: u64) -> Msix {
        let location = MsixLocation {
            table_bar: 3,
            table_offset: table,
            pba_bar: 3,
            pba_offset: pba,
            vectors: 3,
        };
        Msix { location }
    }

    #[test]
    fn capabilities_say_how_many_vectors_there_are_and_where_the_table_is() {
        let found = Interrupts::of(&config(&[
            &[CAP_MSI, 0, 0x86, 0],
            &[CAP_MSIX, 0, 9, 0, 3, 0, 0, 0, 3, 0x20, 0, 0],
        ]));
        assert_eq!(found.msi.known().unwrap().unwrap().vectors, 8);
        let msix = found.msix.known().unwrap().unwrap();
        assert_eq!(msix.location.vectors, 10);
        assert_eq!(
            (msix.location.table_bar, msix.location.pba_offset),
            (3, 0x2000)
        );
        assert!(!msix.shares_a_page());
    }

    #[test]
    fn a_pin_is_sure_to_be_maskable_where_a_register_proves_it() {
        let pin = |config: &ConfigSpace| Interrupts::of(config).pin.known().unwrap().unwrap();
        assert_eq!(pin(&config(&[])).can_be_disabled, Known::Unknown);
        let express = pin(&config(&[&[CAP_EXPRESS]]));
        assert_eq!(
            (express.letter, express.can_be_disabled),
            ('A', Known::Known(true))
        );
        let mut disabled = vec![0; 256];
        (disabled[5], disabled[INTERRUPT_PIN]) = (4, 4);
        let disabled = pin(&disabled.into());
        assert_eq!(
            (disabled.letter, disabled.can_be_disabled),
            ('D', Known::Known(true))
        );
    }

    #[test]
    fn what_makes_no_sense_is_not_told() {
        for pin in [0, 5, 0xff] {
            let mut bytes = vec![0; 256];
            bytes[INTERRUPT_PIN] = pin;
            assert_eq!(
                Interrupts::of(&bytes.into()).pin,
                Known::Known(None),
                "{pin}"
            );
        }
        let odd = Interrupts::of(&config(&[
            &[CAP_MSI, 0, 0xff, 0xff],
            &[CAP_MSIX, 0, 0, 0, 7],
        ]));
        assert_eq!(
            (odd.msi, odd.msix),
            (Known::Known(None), Known::Known(None))
        );
    }

    #[test]
    fn unknown_stays_unknown() {
        for bytes in [vec![], vec![0xff; 256]] {
            let found = Interrupts::of(&bytes.into());
            assert_eq!((found.pin, found.msi), (Known::Unknown, Known::Unknown));
            assert_eq!(found.msix, Known::Unknown);
        }
    }

    #[test]
    fn a_page_is_shared_if_something_stands_before_the_table_or_the_pending_bits() {
        for (table, pba, shared) in [
            (0, 0x800, false),
            (0, 0x2000, false),
            (0x2000, 0x3000, false),
            (0x800, 0, false),
            (0x800, 0x2000, true),
            (0x2000, 0x3800, true),
            (0x480, 0x4c0, true),
        ] {
            assert_eq!(
                msix(table, pba).shares_a_page(),
                shared,
                "{table:#x} {pba:#x}"
            );
        }
    }

    #[test]
    fn the_pages_that_no_guest_gets_are_counted_once() {
        assert_eq!(msix(0, 0x800).withheld(3, 0x4000), 0x1000);
        assert_eq!(msix(0, 0x2000).withheld(3, 0x4000), 0x2000);
        assert_eq!(msix(0xff0, 0x2000).withheld(3, 0x4000), 0x3000);
        assert_eq!(msix(0, 0x2000).withheld(0, 0x4000), 0);
        // Behind the end of the BAR there is nothing to withhold.
        assert_eq!(msix(0x8000, 0x9000).withheld(3, 0x4000), 0);
    }
}
