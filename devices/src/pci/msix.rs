//! MSI-X: table, pending bits and control register (PCI 3.0 §6.8.2, PCIe 6.0 §7.7.2).
//!
//! A model without I/O: every write answers with the vectors whose message changed, for `MsiVectors::route`. The specification
//! wants dword and aligned qword accesses; all others act as the bytes that they are made of.
//!
//! Left out: steering tags in the vector control of functions that have a TPH capability.

use std::ops::Range;

use super::registers::CAP_MSIX;
use crate::{interrupt::MsiMessage, register_file::RegisterFile};

/// Length of the capability in bytes.
pub const MSIX_CAPABILITY_LEN: usize = 12;

const CONTROL: usize = 2;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
const CONTROL_SIZE: u16 = 0x7ff;
const ENTRY_LEN: usize = 16;
const ENTRY_CONTROL: usize = 12;
const ENTRY_MASKED: u32 = 1;

/// Vectors whose message changed: `Some` to be routed, `None` to be left latching. As `MsiVectors::route` takes them.
pub type RouteChanges = Vec<(usize, Option<MsiMessage>)>;

/// Where a function keeps its table and pending bits, as its capability says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixLocation {
    /// BAR that holds the table: 0 to 5.
    pub table_bar: usize,
    /// Where the table starts in it, in bytes.
    pub table_offset: u64,
    /// BAR that holds the pending bits: 0 to 5.
    pub pba_bar: usize,
    /// Where they start in it, in bytes.
    pub pba_offset: u64,
    /// How many vectors there are: 1 to 2048.
    pub vectors: u16,
}

impl MsixLocation {
    /// Reads the 12 bytes of a capability; `None` if they are no MSI-X capability that makes sense. That the table lies inside its
    /// BAR is for the caller to check.
    pub fn parse(capability: &[u8]) -> Option<Self> {
        let capability: &[u8; MSIX_CAPABILITY_LEN] = capability.first_chunk()?;
        let [id, _, control_low, control_high, table @ .., p0, p1, p2, p3] = *capability;
        let (table_bar, table_offset) = bar_and_offset(table)?;
        let (pba_bar, pba_offset) = bar_and_offset([p0, p1, p2, p3])?;
        let control = u16::from_le_bytes([control_low, control_high]);
        (id == CAP_MSIX).then_some(Self {
            table_bar,
            table_offset,
            pba_bar,
            pba_offset,
            vectors: (control & CONTROL_SIZE) + 1,
        })
    }

    /// What its capability says of it: the last 8 bytes.
    pub fn registers(&self) -> [u8; 8] {
        let register = |bar: usize, offset: u64| (offset & !7 | bar as u64 & 7).to_le_bytes();
        let [a, b, c, d, ..] = register(self.table_bar, self.table_offset);
        let [e, f, g, h, ..] = register(self.pba_bar, self.pba_offset);
        [a, b, c, d, e, f, g, h]
    }

    /// Where the table is in its BAR. Offset and length have 32 bits at most: the sum has no overflow.
    pub fn table(&self) -> Range<u64> {
        self.table_offset..self.table_offset + self.table_len()
    }

    /// Where the pending bits are in their BAR.
    pub fn pba(&self) -> Range<u64> {
        self.pba_offset..self.pba_offset + self.pba_len()
    }

    /// Length of the table in bytes.
    pub fn table_len(&self) -> u64 {
        u64::from(self.vectors) * ENTRY_LEN as u64
    }

    /// Length of the pending bits in bytes: whole qwords.
    pub fn pba_len(&self) -> u64 {
        u64::from(self.vectors).div_ceil(64) * 8
    }
}

/// A BAR indicator in the low three bits, an offset in the others.
fn bar_and_offset(register: [u8; 4]) -> Option<(usize, u64)> {
    let register = u32::from_le_bytes(register);
    let bar = usize::try_from(register & 7).ok().filter(|&bar| bar < 6)?;
    Some((bar, u64::from(register & !7)))
}

/// The MSI-X state of one function, as the guest sees it.
#[derive(Debug, Clone)]
pub struct Msix {
    control: RegisterFile,
    table: RegisterFile,
    // What the caller was last told, so that only changes are told.
    routed: Vec<Option<MsiMessage>>,
}

impl Msix {
    /// `vectors` of them (1 to 2048), all masked, MSI-X disabled.
    pub fn new(vectors: u16) -> Self {
        let vectors = vectors.clamp(1, CONTROL_SIZE + 1);
        let mut control = RegisterFile::new(2);
        control.set(0, &(vectors - 1).to_le_bytes());
        control.allow(0, &(CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes());
        let vectors = usize::from(vectors);
        let mut table = RegisterFile::new(vectors * ENTRY_LEN);
        for entry in 0..vectors {
            // PCI 3.0 §6.8.2.6, .7 and .9: address bits 1:0 are zero, of the vector control only the mask bit is there.
            table.allow(entry * ENTRY_LEN, &[0xfc]);
            table.allow(entry * ENTRY_LEN + 1, &[0xff; 11]);
            table.allow(entry * ENTRY_LEN + ENTRY_CONTROL, &[1]);
            table.set(entry * ENTRY_LEN + ENTRY_CONTROL, &[1]);
        }
        Self {
            control,
            table,
            routed: vec![None; vectors],
        }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> usize {
        self.routed.len()
    }

    /// Whether the guest enabled MSI-X (and INTx and MSI are out of use).
    pub fn is_enabled(&self) -> bool {
        self.control.word(0) & CONTROL_ENABLE != 0
    }

    /// Whether `vector` has a message to go to now.
    pub fn is_routed(&self, vector: usize) -> bool {
        self.routed.get(vector).is_some_and(Option::is_some)
    }

    /// The message control register.
    pub fn control(&self) -> u16 {
        self.control.word(0)
    }

    /// Reads at `offset` in the capability. Only the message control is this model's; `data` elsewhere stays as it is.
    pub fn capability_read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let CONTROL | 3 = at {
                self.control.read(at - CONTROL, std::slice::from_mut(byte));
            }
        }
    }

    /// Writes at `offset` in the capability: the message control takes its part, the rest is read-only.
    pub fn capability_write(&mut self, offset: usize, data: &[u8]) -> RouteChanges {
        let old = self.control();
        for (at, byte) in (offset..).zip(data) {
            if let CONTROL | 3 = at {
                self.control.write(at - CONTROL, &[*byte]);
            }
        }
        if self.control() == old {
            return Vec::new();
        }
        self.changes(0..self.vectors())
    }

    /// Reads the table, `offset` bytes from its start.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        self.table.read(position(offset), data);
    }

    /// Writes the table. An unmasked entry follows every write at once: to change one is undefined by the specification, and a
    /// guest that does so means the new message.
    pub fn table_write(&mut self, offset: u64, data: &[u8]) -> RouteChanges {
        let first = position(offset);
        self.table.write(first, data);
        let end = first.saturating_add(data.len()).div_ceil(ENTRY_LEN);
        self.changes(first / ENTRY_LEN..end.min(self.vectors()))
    }

    /// Reads the pending bits, `offset` bytes from their start. `is_latched` answers for a vector without a route
    /// (`MsiVectors::is_latched`): one with a route is delivered, not pending.
    pub fn pba_read(&self, offset: u64, data: &mut [u8], is_latched: impl Fn(usize) -> bool) {
        for (at, byte) in (position(offset)..).zip(data) {
            let vectors = (0..8).map(|bit| (bit, 8 * at + bit));
            let pending =
                vectors.filter(|&(_, v)| v < self.vectors() && !self.is_routed(v) && is_latched(v));
            *byte = pending.fold(0, |byte, (bit, _)| byte | 1 << bit);
        }
    }

    /// The messages of all vectors that have one to go to now.
    pub fn routes(&self) -> RouteChanges {
        messages(&self.routed)
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        let vectors = u16::try_from(self.vectors()).unwrap_or(CONTROL_SIZE + 1);
        *self = Self::new(vectors);
    }

    fn changes(&mut self, vectors: Range<usize>) -> RouteChanges {
        let mut changes = Vec::new();
        for vector in vectors {
            let message = self.message(vector);
            if self.routed[vector] != message {
                self.routed[vector] = message;
                changes.push((vector, message));
            }
        }
        changes
    }

    // PCIe 6.0 §6.1.4.3: while Enable is clear the function may not signal, whatever the mask bits say; the function mask goes over
    // those of the entries.
    fn message(&self, vector: usize) -> Option<MsiMessage> {
        let entry = vector * ENTRY_LEN;
        let unmasked = self.table.dword(entry + ENTRY_CONTROL) & ENTRY_MASKED == 0;
        let enabled = self.control() & (CONTROL_ENABLE | CONTROL_MASK_ALL) == CONTROL_ENABLE;
        (enabled && unmasked).then(|| MsiMessage {
            address: u64::from(self.table.dword(entry + 4)) << 32
                | u64::from(self.table.dword(entry)),
            data: self.table.dword(entry + 8),
        })
    }
}

/// What a table of messages, by vector, amounts to.
pub(super) fn messages(routed: &[Option<MsiMessage>]) -> RouteChanges {
    let vectors = routed.iter().copied().enumerate();
    vectors.filter(|(_, message)| message.is_some()).collect()
}

/// An offset that the guest chose, as an index. What no table reaches is past the end of this one, with room to count on from there.
fn position(offset: u64) -> usize {
    const FAR: u64 = 1 << 30;
    usize::try_from(offset.min(FAR)).unwrap_or(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, widths_agree};

    const ENABLE: [u8; 2] = [0x00, 0x80];
    const ENABLE_ALL_MASKED: [u8; 2] = [0x00, 0xc0];
    const DISABLE: [u8; 2] = [0x00, 0x00];

    fn message(n: u32) -> MsiMessage {
        MsiMessage {
            address: 0xfee0_0000 | u64::from(n) << 12,
            data: 0x40 + n,
        }
    }

    /// Writes entry `vector` as a driver does: address, data, and then unmasks it.
    fn program(msix: &mut Msix, vector: u64, message: MsiMessage) -> RouteChanges {
        let entry = 16 * vector;
        let mut changes = msix.table_write(entry, &message.address.to_le_bytes());
        changes.extend(msix.table_write(entry + 8, &message.data.to_le_bytes()));
        changes.extend(msix.table_write(entry + 12, &[0; 4]));
        changes
    }

    #[test]
    fn what_a_capability_says_is_what_it_was_parsed_from() {
        let capability = [CAP_MSIX, 0, 2, 0, 3, 0x10, 0, 0, 4, 0x20, 1, 0x80];
        let location = MsixLocation::parse(&capability).unwrap();
        assert_eq!(location.registers(), capability[4..]);
    }

    #[test]
    fn vectors_unmasked_under_the_function_mask_are_routed_in_one_batch() {
        let mut msix = Msix::new(3);
        assert_eq!(msix.capability_write(2, &ENABLE_ALL_MASKED), []);
        assert!(msix.is_enabled());
        assert_eq!(program(&mut msix, 0, message(0)), []);
        assert_eq!(program(&mut msix, 2, message(2)), []);
        let changes = msix.capability_write(2, &ENABLE);
        assert_eq!(changes, [(0, Some(message(0))), (2, Some(message(2)))]);
        assert_eq!(
            msix.capability_write(2, &ENABLE_ALL_MASKED),
            [(0, None), (2, None)]
        );
    }

    #[test]
    fn nothing_is_routed_while_disabled() {
        let mut msix = Msix::new(1);
        assert_eq!(program(&mut msix, 0, message(0)), []);
        assert_eq!(msix.capability_write(2, &ENABLE), [(0, Some(message(0)))]);
        assert_eq!(msix.capability_write(2, &DISABLE), [(0, None)]);
    }

    #[test]
    fn a_masked_entry_changes_without_a_route_change() {
        let mut msix = Msix::new(2);
        msix.capability_write(2, &ENABLE);
        assert_eq!(msix.table_write(16 + 8, &7_u32.to_le_bytes()), []);
        assert_eq!(msix.table_write(16, &0xfee0_1000_u64.to_le_bytes()), []);
    }

    #[test]
    fn an_unmasked_entry_follows_each_write() {
        let mut msix = Msix::new(2);
        msix.capability_write(2, &ENABLE);
        program(&mut msix, 1, message(1));
        let moved = MsiMessage {
            data: 9,
            ..message(1)
        };
        assert_eq!(
            msix.table_write(24, &9_u32.to_le_bytes()),
            [(1, Some(moved))]
        );
        assert_eq!(msix.table_write(24, &9_u32.to_le_bytes()), []);
        assert_eq!(msix.table_write(28, &1_u32.to_le_bytes()), [(1, None)]);
    }

    #[test]
    fn pending_bits_are_the_latched_vectors_that_have_no_route() {
        let mut msix = Msix::new(70);
        msix.capability_write(2, &ENABLE);
        program(&mut msix, 1, message(1));
        let latched = |vector| [0, 1, 65].contains(&vector);
        let mut data = [0; 8];
        msix.pba_read(0, &mut data, latched);
        assert_eq!(u64::from_le_bytes(data), 0b01);
        msix.pba_read(8, &mut data, latched);
        assert_eq!(u64::from_le_bytes(data), 0b10);
        msix.pba_read(u64::MAX, &mut data, |_| true);
        assert_eq!(data, [0; 8]);
    }

    #[test]
    fn the_pending_bits_past_the_last_vector_are_clear() {
        let msix = Msix::new(70);
        let mut data = [0; 16];
        msix.pba_read(0, &mut data, |_| true);
        assert_eq!(u128::from_le_bytes(data), (1 << 70) - 1);
    }

    #[test]
    fn the_message_control_is_the_third_and_fourth_byte_and_only_its_two_bits_are_written() {
        let mut msix = Msix::new(0x234);
        let control = |msix: &Msix| {
            let mut data = [0xaa; 8];
            msix.capability_read(0, &mut data);
            data
        };
        // ID and next pointer, and what is behind, are the caller's.
        let [id, next, low, high] = [0xaa, 0xaa, 0x33, 0x02];
        assert_eq!(
            control(&msix),
            [id, next, low, high, 0xaa, 0xaa, 0xaa, 0xaa]
        );
        msix.capability_write(2, &[0xff]);
        assert_eq!(control(&msix)[2..4], [low, high]);
        msix.capability_write(3, &[0xff]);
        assert_eq!(control(&msix)[2..4], [low, high | 0xc0]);
        assert!(msix.is_enabled());
    }

    #[test]
    fn reset_leaves_no_route_and_masks_every_entry() {
        let mut msix = Msix::new(2);
        msix.capability_write(2, &ENABLE);
        program(&mut msix, 1, message(1));
        assert_eq!(msix.routes(), [(1, Some(message(1)))]);
        msix.reset();
        assert_eq!(msix.routes(), []);
        assert!(!msix.is_enabled());
        let mut control = [0; 4];
        msix.table_read(28, &mut control);
        assert_eq!(control, [1, 0, 0, 0]);
        assert_eq!(msix.control(), 1);
    }

    #[test]
    fn writes_past_the_table_are_ignored() {
        let mut msix = Msix::new(1);
        assert_eq!(msix.table_write(12, &[0; 8]), []);
        assert_eq!(msix.table_write(16, &[0; 8]), []);
        assert_eq!(msix.table_write(u64::MAX, &[0; 8]), []);
        let mut data = [0; 4];
        msix.table_read(16, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn the_capability_says_where_the_table_is() {
        let capability = [0x11, 0, 0x09, 0x00, 0x03, 0, 0, 0, 0x04, 0x20, 0, 0];
        let location = MsixLocation::parse(&capability).unwrap();
        let expected = MsixLocation {
            table_bar: 3,
            table_offset: 0,
            pba_bar: 4,
            pba_offset: 0x2000,
            vectors: 10,
        };
        assert_eq!(location, expected);
        assert_eq!((location.table_len(), location.pba_len()), (160, 8));
        assert_eq!((location.table(), location.pba()), (0..160, 0x2000..0x2008));
        let moved = MsixLocation {
            table_offset: 0x1000,
            ..expected
        };
        assert_eq!(moved.table(), 0x1000..0x10a0);
        assert_eq!(MsixLocation::parse(&capability[..11]), None);
        for bar in [6, 7] {
            let no_such_bar = [0x11, 0, 0, 0, bar, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(MsixLocation::parse(&no_such_bar), None);
        }
    }

    #[test]
    fn byte_word_dword_and_qword_accesses_to_the_table_agree() {
        let write = |msix: &mut Msix, at, data: &[u8]| drop(msix.table_write(at, data));
        widths_agree(
            || Msix::new(5),
            (0..96, 8),
            Msix::table_read,
            write,
            100_000,
        );
    }

    #[test]
    fn byte_word_and_dword_accesses_to_the_capability_agree() {
        let at = |offset: u64| usize::try_from(offset).unwrap();
        widths_agree(
            || Msix::new(64),
            (0..12, 4),
            |msix, offset, data| msix.capability_read(at(offset), data),
            |msix, offset, data| drop(msix.capability_write(at(offset), data)),
            20_000,
        );
    }

    // The naive model: what the table, the masks and the enable bit say now, computed anew after each write.
    #[test]
    fn the_changes_add_up_to_what_the_registers_say() {
        let mut random = Random::new(2);
        let mut msix = Msix::new(4);
        let mut routes = [None; 4];
        let (mut changed, mut routed) = (0, 0);
        for _ in 0..100_000 {
            let value = random.value().to_le_bytes();
            let changes = match random.within(0..8) {
                0 => msix.capability_write(2, &value[..2]),
                1 => msix.table_write(random.within(0..70), &value[..1]),
                2 => msix.table_write(random.within(0..8) * 8, &value),
                _ => msix.table_write(random.within(0..18) * 4, &value[..4]),
            };
            for (vector, message) in changes {
                assert_ne!(routes[vector], message, "a change that is none");
                routes[vector] = message;
                changed += 1;
            }
            for (vector, route) in routes.iter().enumerate() {
                let mut entry = [0; 16];
                msix.table_read(16 * vector as u64, &mut entry);
                let signals = msix.control() >> 14 == 0b10 && entry[12] & 1 == 0;
                let message = MsiMessage {
                    address: u64::from_le_bytes(*entry.first_chunk().unwrap()),
                    data: u32::from_le_bytes(*entry[8..].first_chunk().unwrap()),
                };
                assert_eq!(*route, signals.then_some(message));
                routed += usize::from(signals);
            }
        }
        assert!(
            changed > 1000 && routed > 1000,
            "{changed} changed, {routed} routed"
        );
    }
}
