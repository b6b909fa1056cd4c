//! The PCI root: the functions on bus 0, and the ECAM that the guest reaches them by (PCIe 6.0 §7.2.2).
//!
//! Config accesses take no lock here: they search a snapshot, and the function locks itself. The root keeps one fact of its own about
//! functions, whether a device has several of them, since only it knows; everything else of configuration space is theirs.
//!
//! Left out: other buses (nobody is there: all-ones) and other segments.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::{
    Function, Slot,
    host_bridge::HostBridge,
    registers::{CONFIG_LEN, HEADER_MULTIFUNCTION, HEADER_TYPE},
};
use crate::bus::{Action, BusDevice};

/// Size of one bus in the ECAM, in bytes.
pub const ECAM_BUS_LEN: u64 = 1 << 20;

/// A function cannot be where it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Another function is there.
    #[error("slot {0} of the guest's bus is taken: choose another with addr=, or leave it out")]
    Taken(Slot),
    /// There is no such slot.
    #[error("there is no slot {0} on the guest's bus: slots are 01 to 1f, functions 0 to 7")]
    NoSuchSlot(Slot),
}

/// By device and function number: `Slot::devfn`.
type Functions = [Option<Arc<dyn Function>>; 256];

/// The functions on bus 0.
pub struct PciRoot {
    functions: ArcSwap<Functions>,
    writers: Mutex<()>,
}

impl Default for PciRoot {
    fn default() -> Self {
        Self::new()
    }
}

impl PciRoot {
    /// A bus with a host bridge in slot 00.0 and nothing else.
    pub fn new() -> Self {
        let mut functions = [const { None }; 256];
        functions[0] = Some(Arc::new(HostBridge::new()) as Arc<dyn Function>);
        Self {
            functions: ArcSwap::from_pointee(functions),
            writers: Mutex::new(()),
        }
    }

    /// Puts `function` into `slot`. A device needs a function 0 by the time its BARs are assigned, not before.
    pub fn add(&self, slot: Slot, function: Arc<dyn Function>) -> Result<(), SlotError> {
        if slot.device > 31 || slot.function > 7 {
            return Err(SlotError::NoSuchSlot(slot));
        }
        self.change(slot, |place| match place {
            Some(_) => Err(SlotError::Taken(slot)),
            None => {
                *place = Some(function);
                Ok(())
            }
        })
    }

    /// Takes the function in `slot` away from the guest's configuration space. Its BARs stay on the bus until the function is reset or
    /// dropped.
    pub fn remove(&self, slot: Slot) -> Option<Arc<dyn Function>> {
        self.change(slot, Option::take)
    }

    fn change<T>(&self, slot: Slot, change: impl FnOnce(&mut Option<Arc<dyn Function>>) -> T) -> T {
        let _one_writer = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut functions = Functions::clone(&self.functions.load());
        let result = change(&mut functions[usize::from(slot.devfn())]);
        self.functions.store(Arc::new(functions));
        result
    }

    /// The function in `slot`.
    pub fn get(&self, slot: Slot) -> Option<Arc<dyn Function>> {
        self.functions.load()[usize::from(slot.devfn())].clone()
    }

    /// All functions, by slot.
    pub fn functions(&self) -> Vec<(Slot, Arc<dyn Function>)> {
        let functions = self.functions.load();
        let slots = (0..=255_u8).map(Slot::from_devfn).zip(functions.iter());
        slots
            .filter_map(|(slot, function)| Some((slot, function.clone()?)))
            .collect()
    }

    /// The first slot whose device has no function at all.
    pub fn first_free(&self) -> Option<Slot> {
        let functions = self.functions.load();
        let free = (0..32).find(|&device| count(&functions, device) == 0)?;
        Some(Slot {
            device: free,
            function: 0,
        })
    }

    /// Resets every function, in the order of their slots. Their BAR addresses are lost: they want to be assigned again.
    pub fn reset(&self) {
        for (_, function) in self.functions() {
            function.reset();
        }
    }

    /// Takes those functions off the bus whose devices do not answer there any more; whether there was one.
    pub fn withdraw_silent(&self) -> bool {
        let functions = self.functions().into_iter();
        functions
            .filter(|(_, function)| function.withdraw_if_silent())
            .count()
            > 0
    }

    /// Reads configuration space at any width and offset; all-ones where no function is.
    pub(super) fn config_read(&self, devfn: u8, offset: u16, data: &mut [u8]) {
        let functions = self.functions.load();
        let Some(function) = &functions[usize::from(devfn)] else {
            return data.fill(0xff);
        };
        for (at, range) in pieces(offset, data.len()) {
            function.config_read(at, &mut data[range]);
        }
        let header_type = HEADER_TYPE.checked_sub(usize::from(offset));
        if let Some(header_type) = header_type.and_then(|at| data.get_mut(at)) {
            // PCI 3.0 §6.2.1. A card of several functions may be here in part: what its header says is about the host's bus.
            *header_type &= !HEADER_MULTIFUNCTION;
            if count(&functions, Slot::from_devfn(devfn).device) > 1 {
                *header_type |= HEADER_MULTIFUNCTION;
            }
        }
    }

    /// Writes configuration space at any width and offset.
    pub(super) fn config_write(&self, devfn: u8, offset: u16, data: &[u8]) -> Action {
        let functions = self.functions.load();
        let mut asked = Action::None;
        if let Some(function) = &functions[usize::from(devfn)] {
            for (at, range) in pieces(offset, data.len()) {
                let action = function.config_write(at, &data[range]);
                asked = if action == Action::None {
                    asked
                } else {
                    action
                };
            }
        }
        asked
    }
}

/// How many functions `device` has.
fn count(functions: &Functions, device: u8) -> usize {
    let first = usize::from(device) * 8;
    functions[first..first + 8].iter().flatten().count()
}

/// Cuts an access into naturally aligned ones of at most a dword, which is what functions are promised.
fn pieces(offset: u16, len: usize) -> impl Iterator<Item = (u16, std::ops::Range<usize>)> {
    let (mut at, mut done) = (offset, 0);
    std::iter::from_fn(move || {
        let left = len - done;
        let width = [4_u8, 2]
            .into_iter()
            .find(|&w| at.is_multiple_of(w.into()) && left >= w.into());
        let width = width.filter(|_| left > 0).unwrap_or(u8::from(left > 0));
        let piece = (at, done..done + usize::from(width));
        // Wraps only past the last piece: an access does not leave its function's 4096 bytes.
        at = at.wrapping_add(width.into());
        done += usize::from(width);
        (width > 0).then_some(piece)
    })
}

/// The enhanced configuration access mechanism: configuration space as memory, 1 MiB a bus.
pub struct Ecam(Arc<PciRoot>);

impl Ecam {
    /// To be placed at the address that MCFG names for bus 0.
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self(root)
    }
}

/// Function and register at `offset` in the ECAM, if bus 0 is meant and the access stays in one function.
fn decode(offset: u64, len: usize) -> Option<(u8, u16)> {
    let bus_offset = u32::try_from(offset)
        .ok()
        .filter(|_| offset < ECAM_BUS_LEN)?;
    let [low, middle, high, _] = bus_offset.to_le_bytes();
    let register = u16::from_le_bytes([low, middle & 0x0f]);
    let fits = usize::from(register) + len <= CONFIG_LEN;
    fits.then_some((high << 4 | middle >> 4, register))
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match decode(offset, data.len()) {
            Some((devfn, register)) => self.0.config_read(devfn, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        match decode(offset, data.len()) {
            Some((devfn, register)) => self.0.config_write(devfn, register, data),
            None => Action::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pci::bar::{BarKind, BarSpec},
        testing::{Card, widths_agree},
    };

    fn slot(text: &str) -> Slot {
        text.parse().unwrap()
    }

    fn ecam_read<const N: usize>(ecam: &Ecam, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        ecam.read(offset, &mut data);
        data
    }

    fn ecam_with(slots: &[&str]) -> (Arc<PciRoot>, Ecam) {
        let root = Arc::new(PciRoot::new());
        for name in slots {
            let device = 0x1000 + u16::from(slot(name).devfn());
            root.add(slot(name), Card::new(device, &[])).unwrap();
        }
        (root.clone(), Ecam::new(root))
    }

    #[test]
    fn the_host_bridge_is_in_slot_zero() {
        let (_, ecam) = ecam_with(&[]);
        assert_eq!(u32::from_le_bytes(ecam_read(&ecam, 0)), 0x29c0_8086);
        assert_eq!(ecam_read::<4>(&ecam, 8), [0, 0, 0, 6]);
    }

    #[test]
    fn an_offset_names_device_function_and_register() {
        let (_, ecam) = ecam_with(&["06", "1f.7"]);
        assert_eq!(ecam_read::<2>(&ecam, 0x30002), [0x30, 0x10]);
        assert_eq!(ecam_read::<2>(&ecam, 0xff002), [0xff, 0x10]);
    }

    #[test]
    fn absent_functions_and_other_buses_read_all_ones() {
        let (_, ecam) = ecam_with(&["06"]);
        for offset in [
            0x31000,
            0x38000,
            ECAM_BUS_LEN,
            ECAM_BUS_LEN + 0x30000,
            u64::MAX - 8,
        ] {
            assert_eq!(ecam_read::<4>(&ecam, offset), [0xff; 4]);
            assert_eq!(ecam.write(offset, &[0; 4]), Action::None);
        }
        // Past the end of one function is not the next one.
        assert_eq!(ecam_read::<8>(&ecam, 0x30ffc), [0xff; 8]);
    }

    #[test]
    fn a_device_shows_as_multifunction_exactly_while_it_is() {
        let (root, ecam) = ecam_with(&["06", "07", "07.1"]);
        let header_types = || [0x3000e, 0x3800e, 0x3900e].map(|at| ecam_read::<1>(&ecam, at)[0]);
        assert_eq!(header_types(), [0x00, 0x80, 0x80]);
        assert_eq!(ecam_read::<4>(&ecam, 0x3800c)[2], 0x80);
        assert!(root.remove(slot("07.1")).is_some());
        assert_eq!(header_types(), [0x00, 0x00, 0xff]);
        let card = Card::new(1, &[]);
        card.config
            .lock()
            .unwrap()
            .registers()
            .set(HEADER_TYPE, &[0x80]);
        root.add(slot("08"), card).unwrap();
        assert_eq!(ecam_read::<1>(&ecam, 0x4000e), [0x00]);
    }

    #[test]
    fn a_taken_slot_is_refused_and_a_free_one_found() {
        let (root, _) = ecam_with(&["01", "02.3"]);
        let refused = root.add(slot("01"), Card::new(1, &[]));
        assert_eq!(refused, Err(SlotError::Taken(slot("01"))));
        let refused = root.add(slot("00"), Card::new(1, &[]));
        assert_eq!(refused, Err(SlotError::Taken(slot("00"))));
        let nowhere = Slot {
            device: 32,
            function: 0,
        };
        assert_eq!(
            root.add(nowhere, Card::new(1, &[])),
            Err(SlotError::NoSuchSlot(nowhere))
        );
        assert_eq!(root.first_free(), Some(slot("03")));
        assert!(root.get(slot("02.3")).is_some());
        assert!(root.get(slot("02")).is_none());
    }

    /// A function that asks for a reset when its first register is written, and may be silent.
    struct Asking {
        is_silent: bool,
    }

    impl Function for Asking {
        fn config_read(&self, _offset: u16, data: &mut [u8]) {
            data.fill(0);
        }

        fn config_write(&self, offset: u16, _data: &[u8]) -> Action {
            match offset {
                0 => Action::Reset,
                _ => Action::None,
            }
        }

        fn bars(&self) -> Vec<BarSpec> {
            Vec::new()
        }

        fn assign_bar(&self, _index: usize, _address: u64) {}

        fn reset(&self) {}

        fn withdraw_if_silent(&self) -> bool {
            self.is_silent
        }
    }

    #[test]
    fn what_a_part_of_a_wide_write_asks_for_is_not_lost_to_the_other_part() {
        let (root, ecam) = ecam_with(&[]);
        let asking = Asking { is_silent: false };
        root.add(slot("01"), Arc::new(asking)).unwrap();
        assert_eq!(ecam.write(0x8000, &[0; 8]), Action::Reset);
        assert_eq!(ecam.write(0x8000, &[0; 4]), Action::Reset);
        assert_eq!(ecam.write(0x8004, &[0; 8]), Action::None);
    }

    #[test]
    fn a_silent_device_is_told_from_a_bus_on_which_all_answer() {
        let (root, _) = ecam_with(&["01"]);
        let add = |name, is_silent| root.add(slot(name), Arc::new(Asking { is_silent }));
        add("02", false).unwrap();
        assert!(!root.withdraw_silent());
        add("03", true).unwrap();
        assert!(root.withdraw_silent());
    }

    #[test]
    fn reset_reaches_every_function_and_the_host_bridge() {
        let root = Arc::new(PciRoot::new());
        let bar = BarSpec {
            index: 0,
            kind: BarKind::Io,
            size: 32,
        };
        let card = Card::new(1, &[bar]);
        root.add(slot("1f.7"), card.clone()).unwrap();
        card.assign_bar(0, 0xc040);
        let ecam = Ecam::new(root.clone());
        let command = || ecam_read::<2>(&ecam, 4);
        assert_eq!(ecam.write(4, &[0x07, 0x00]), Action::None);
        assert_eq!(command(), [0x07, 0x00]);
        root.reset();
        assert_eq!((command(), card.address(0)), ([0, 0], 0));
    }

    #[test]
    fn an_access_is_cut_where_dwords_end() {
        let cut = |offset, len| pieces(offset, len).collect::<Vec<_>>();
        assert_eq!(cut(4, 4), [(4, 0..4)]);
        assert_eq!(cut(4, 8), [(4, 0..4), (8, 4..8)]);
        assert_eq!(cut(5, 4), [(5, 0..1), (6, 1..3), (8, 3..4)]);
        assert_eq!(cut(0xffff, 1), [(0xffff, 0..1)]);
        assert_eq!(cut(0, 0), []);
    }

    #[test]
    fn all_widths_agree_across_the_whole_bus() {
        let model = || ecam_with(&["01", "01.1", "1f"]).1;
        let write =
            |ecam: &mut Ecam, at, data: &[u8]| assert_eq!(ecam.write(at, data), Action::None);
        for base in [0, 0x8000, 0x9000, 0xf8000] {
            widths_agree(model, (base..base + 0x48, 8), Ecam::read, write, 30_000);
        }
        widths_agree(model, (0..ECAM_BUS_LEN, 8), Ecam::read, write, 100_000);
    }
}
