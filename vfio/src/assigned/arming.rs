//! Which vectors of the device signal in the host.
//!
//! Not what the guest has masked or routed: a vector that was armed once stays so until that kind of interrupt is disabled, and
//! what it signals while masked latches in its eventfd. Host vectors are taken only as far as the guest uses them; where the kernel
//! cannot add any to an enabled set (VFIO_IRQ_INFO_NORESIZE), the set is made anew.

use std::{collections::BTreeSet, io, sync::Arc};

use devices::interrupt::MsiVectors;

use crate::kernel::{HostFunction, IrqIndex};

/// The device's side of message-signalled interrupts.
pub(super) struct Arming {
    host: Arc<dyn HostFunction>,
    enabled: Option<Enabled>,
}

struct Enabled {
    index: IrqIndex,
    can_grow: bool,
    /// Vectors that can be armed without making the set anew.
    room: usize,
    armed: BTreeSet<usize>,
}

impl Arming {
    pub(super) fn new(host: Arc<dyn HostFunction>) -> Self {
        Self {
            host,
            enabled: None,
        }
    }

    /// Whether `index` is enabled on the device.
    pub(super) fn is_enabled(&self, index: IrqIndex) -> bool {
        matches!(&self.enabled, Some(enabled) if enabled.index == index)
    }

    /// Enables `index` on the device if it is not, and arms the vectors `used` that are not. `expected` is how many vectors will
    /// likely be used, for a set that cannot grow.
    pub(super) fn arm(
        &mut self,
        index: IrqIndex,
        used: &[usize],
        expected: usize,
        vectors: &dyn MsiVectors,
    ) -> io::Result<()> {
        if !self.is_enabled(index) {
            // A device has one kind at a time; a guest that enables a second one means the second.
            self.disarm();
        }
        let Some(enabled) = &self.enabled else {
            return self.make(index, used.iter().copied().collect(), expected, vectors);
        };
        let new: BTreeSet<_> = used.iter().copied().collect();
        let new: BTreeSet<_> = new.difference(&enabled.armed).copied().collect();
        if enabled.can_grow || new.iter().all(|&vector| vector < enabled.room) {
            return self.add(index, new, vectors);
        }
        let old = enabled.armed.clone();
        let all = enabled.armed.union(&new).copied().collect();
        self.disarm();
        let made = self.make(index, all, expected, vectors);
        if made.is_err() {
            // No reason to lose what worked.
            self.make(index, old.clone(), 0, vectors)?;
        }
        self.signal(index, &old);
        made
    }

    /// Signals vectors that the device may have signalled while they were not armed. Once too often does no harm: a message can
    /// come late on hardware, too. Once too few, and a driver waits for ever.
    fn signal(&self, index: IrqIndex, vectors: &BTreeSet<usize>) {
        for vector in vectors.iter().filter_map(|&v| u32::try_from(v).ok()) {
            if let Err(error) = self.host.signal(index, vector) {
                log::debug!("{index:?} vector {vector} cannot be signalled: {error}");
            }
        }
    }

    /// Disables what is enabled; false if nothing is.
    pub(super) fn disarm(&mut self) -> bool {
        let Some(Enabled { index, .. }) = self.enabled.take() else {
            return false;
        };
        if let Err(error) = self.host.disarm(index) {
            log::warn!("{index:?} interrupts cannot be disabled: {error}");
        }
        true
    }

    /// Enables `index` with the vectors `armed`. With none at all it is enabled all the same, as the specification has it: some
    /// cards wait for that (PCIe 6.0 §6.1.4: Enable and the masks are different things).
    fn make(
        &mut self,
        index: IrqIndex,
        armed: BTreeSet<usize>,
        expected: usize,
        vectors: &dyn MsiVectors,
    ) -> io::Result<()> {
        let can_grow = self.host.irq(index)?.can_grow;
        if can_grow {
            // One vector of the host's for now, and those in use added in place: not all that lie below the highest.
            self.host.arm(index, 0, &[None])?;
            self.enabled = Some(Enabled::new(index, can_grow, 1));
            return self.add(index, armed, vectors);
        }
        let needed = armed.last().map_or(1, |&highest| highest + 1);
        let room = needed.max(expected);
        let made = self.make_with_room(index, &armed, room, vectors);
        if made.is_err() && room > needed {
            return self.make_with_room(index, &armed, needed, vectors);
        }
        made
    }

    /// Enables a set that cannot grow, of `room` vectors.
    fn make_with_room(
        &mut self,
        index: IrqIndex,
        armed: &BTreeSet<usize>,
        room: usize,
        vectors: &dyn MsiVectors,
    ) -> io::Result<()> {
        let eventfds: Vec<_> = (0..room)
            .map(|vector| armed.contains(&vector).then(|| vectors.eventfd(vector)))
            .map(Option::transpose)
            .collect::<io::Result<_>>()?;
        self.host.arm(index, 0, &eventfds)?;
        let mut enabled = Enabled::new(index, false, room);
        enabled.armed.clone_from(armed);
        self.enabled = Some(enabled);
        Ok(())
    }

    /// Arms `new` in place, neighbours in one call.
    fn add(
        &mut self,
        index: IrqIndex,
        new: BTreeSet<usize>,
        vectors: &dyn MsiVectors,
    ) -> io::Result<()> {
        for run in runs(&new) {
            let eventfds: Vec<_> = run
                .clone()
                .map(|vector| vectors.eventfd(vector).map(Some))
                .collect::<io::Result<_>>()?;
            let start = u32::try_from(run.start).map_err(|_| io::ErrorKind::InvalidInput)?;
            self.host.arm(index, start, &eventfds)?;
            if let Some(enabled) = &mut self.enabled {
                enabled.armed.extend(run);
            }
        }
        Ok(())
    }
}

impl Enabled {
    fn new(index: IrqIndex, can_grow: bool, room: usize) -> Self {
        Self {
            index,
            can_grow,
            room,
            armed: BTreeSet::new(),
        }
    }
}

/// The set as ranges without holes.
fn runs(set: &BTreeSet<usize>) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for &vector in set {
        match runs.last_mut() {
            Some(run) if run.end == vector => run.end += 1,
            _ => runs.push(vector..vector + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::{
        super::fake::{FakeHost, FakeVectors},
        *,
    };

    const MSIX: IrqIndex = IrqIndex::Msix;

    fn arming(host: FakeHost) -> (Arc<FakeHost>, Arming) {
        let host = Arc::new(host);
        (host.clone(), Arming::new(host))
    }

    #[test]
    fn enabling_with_every_vector_masked_enables_on_the_device() {
        let (host, mut arming) = arming(FakeHost::default());
        arming.arm(MSIX, &[], 0, &FakeVectors::new()).unwrap();
        assert_eq!(host.take_calls(), ["arm Msix 0 [-]"]);
        assert!(arming.is_enabled(MSIX));
    }

    #[test]
    fn a_set_that_can_grow_takes_only_the_vectors_in_use() {
        let (host, mut arming) = arming(FakeHost::default().that_can_grow());
        let vectors = FakeVectors::new();
        arming.arm(MSIX, &[5, 6, 40], 64, &vectors).unwrap();
        assert_eq!(
            host.take_calls(),
            ["arm Msix 0 [-]", "arm Msix 5 [fd fd]", "arm Msix 40 [fd]"]
        );
        arming.arm(MSIX, &[5, 7], 64, &vectors).unwrap();
        assert_eq!(host.take_calls(), ["arm Msix 7 [fd]"]);
    }

    #[test]
    fn a_set_that_cannot_grow_is_made_anew_only_past_its_room() {
        let (host, mut arming) = arming(FakeHost::default());
        let vectors = FakeVectors::new();
        arming.arm(MSIX, &[0], 3, &vectors).unwrap();
        assert_eq!(host.take_calls(), ["arm Msix 0 [fd - -]"]);
        arming.arm(MSIX, &[2], 3, &vectors).unwrap();
        assert_eq!(host.take_calls(), ["arm Msix 2 [fd]"]);
        arming.arm(MSIX, &[3], 0, &vectors).unwrap();
        assert_eq!(
            host.take_calls()[..2],
            ["disarm Msix", "arm Msix 0 [fd - fd fd]"]
        );
    }

    #[test]
    fn what_is_armed_is_not_armed_again() {
        let (host, mut arming) = arming(FakeHost::default());
        let vectors = FakeVectors::new();
        arming.arm(MSIX, &[0, 1], 2, &vectors).unwrap();
        host.take_calls();
        arming.arm(MSIX, &[1], 2, &vectors).unwrap();
        assert!(host.take_calls().is_empty());
    }

    #[test]
    fn another_kind_of_interrupt_takes_over() {
        let (host, mut arming) = arming(FakeHost::default());
        let vectors = FakeVectors::new();
        arming.arm(MSIX, &[0], 1, &vectors).unwrap();
        arming.arm(IrqIndex::Msi, &[0], 1, &vectors).unwrap();
        assert_eq!(
            host.take_calls(),
            ["arm Msix 0 [fd]", "disarm Msix", "arm Msi 0 [fd]"]
        );
        arming.disarm();
        arming.disarm();
        assert_eq!(host.take_calls(), ["disarm Msi"]);
    }

    #[test]
    fn a_host_with_too_few_vectors_gives_those_in_use() {
        let (host, mut arming) = arming(FakeHost::default());
        *host.most_vectors.lock().unwrap() = Some(4);
        let vectors = FakeVectors::new();
        arming.arm(MSIX, &[0, 1], 64, &vectors).unwrap();
        assert!(host.is_armed(MSIX, 0) && host.is_armed(MSIX, 1));
    }

    #[test]
    fn vectors_that_cannot_be_added_leave_the_others_as_they_are() {
        for host in [FakeHost::default(), FakeHost::default().that_can_grow()] {
            let (host, mut arming) = arming(host);
            *host.most_vectors.lock().unwrap() = Some(2);
            let vectors = FakeVectors::new();
            arming.arm(MSIX, &[0, 1], 2, &vectors).unwrap();
            assert!(arming.arm(MSIX, &[7], 8, &vectors).is_err());
            assert!(host.is_armed(MSIX, 0) && host.is_armed(MSIX, 1));
            assert!(arming.is_enabled(MSIX) && !host.is_armed(MSIX, 7));
        }
    }

    #[test]
    fn what_could_be_lost_while_a_set_is_made_anew_is_signalled_after_it() {
        let (host, mut arming) = arming(FakeHost::default());
        let vectors = FakeVectors::new();
        arming.arm(MSIX, &[0, 2], 3, &vectors).unwrap();
        host.take_calls();
        arming.arm(MSIX, &[3], 0, &vectors).unwrap();
        assert_eq!(host.take_calls()[2..], ["signal Msix 0", "signal Msix 2"]);
    }
}
