//! Interrupts of the function: the guest's registers, the routes in the machine, the vectors and the pin of the device.
//!
//! A device has one kind at a time. What the guest enables last takes over; with no messages enabled the pin does.
//!
//! On the way up: routes, then the device. On the way down: routes, then the device, then what is latched. So a vector that signals
//! always finds its route or latches, and a latched signal of one driver never reaches the next.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use devices::{
    interrupt::{MsiSource, MsiVectors},
    pci::{
        msi::Msi,
        msix::{MSIX_CAPABILITY_LEN, Msix, RouteChanges},
    },
};

use super::{arming::Arming, failures::Failures, intx::Pin};
use crate::kernel::{HostFunction, IrqIndex};

/// A model of the guest's registers and where its capability is in configuration space.
pub(super) struct At<T> {
    pub(super) offset: usize,
    pub(super) model: T,
}

/// The interrupts of one function.
pub(super) struct Interrupts {
    vectors: Box<dyn MsiVectors>,
    state: Mutex<State>,
    failures: Failures,
}

struct State {
    msi: Option<At<Msi>>,
    msix: Option<At<Msix>>,
    pin: Option<Pin>,
    arming: Arming,
    /// How many MSI vectors the device was last asked for, which may be more than it got.
    msi_asked: usize,
}

impl Interrupts {
    pub(super) fn new(
        host: Arc<dyn HostFunction>,
        source: &dyn MsiSource,
        msi: Option<At<Msi>>,
        msix: Option<At<Msix>>,
        pin: Option<Pin>,
    ) -> io::Result<Self> {
        // One set of vectors for both: a function uses one or the other.
        let msi_count = msi.as_ref().map_or(0, |msi| msi.model.layout().vectors);
        let msix_count = msix.as_ref().map_or(0, |msix| msix.model.vectors());
        Ok(Self {
            vectors: source.vectors(msi_count.max(msix_count))?,
            state: Mutex::new(State {
                msi,
                msix,
                pin,
                arming: Arming::new(host),
                msi_asked: 0,
            }),
            failures: Failures::default(),
        })
    }

    /// Puts what the registers say over `data`, which was read at `offset` in configuration space.
    pub(super) fn config_read(&self, offset: usize, data: &mut [u8]) {
        let state = self.lock();
        if let Some(msi) = &state.msi
            && let Some(at) = msi.within(offset, msi.model.layout().capability_len())
        {
            let latched = |vector| self.vectors.is_latched(vector);
            msi.model.capability_read(at, data, latched);
        }
        if let Some(msix) = &state.msix
            && let Some(at) = msix.within(offset, MSIX_CAPABILITY_LEN)
        {
            msix.model.capability_read(at, data);
        }
    }

    /// Takes what the guest writes to its registers in configuration space.
    pub(super) fn config_write(&self, offset: usize, data: &[u8]) {
        let mut state = self.lock();
        if let Some(msi) = &mut state.msi
            && let Some(at) = msi.within(offset, msi.model.layout().capability_len())
        {
            let changes = msi.model.capability_write(at, data);
            self.follow_msi(&mut state, &changes);
        } else if let Some(msix) = &mut state.msix
            && let Some(at) = msix.within(offset, MSIX_CAPABILITY_LEN)
        {
            let changes = msix.model.capability_write(at, data);
            self.follow_msix(&mut state, &changes);
        }
    }

    /// Reads the MSI-X table, `offset` bytes from its start.
    pub(super) fn table_read(&self, offset: u64, data: &mut [u8]) {
        if let Some(msix) = &self.lock().msix {
            msix.model.table_read(offset, data);
        }
    }

    /// Writes the MSI-X table.
    pub(super) fn table_write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        if let Some(msix) = &mut state.msix {
            let changes = msix.model.table_write(offset, data);
            self.follow_msix(&mut state, &changes);
        }
    }

    /// Reads the MSI-X pending bits.
    pub(super) fn pba_read(&self, offset: u64, data: &mut [u8]) {
        if let Some(msix) = &self.lock().msix {
            let latched = |vector| self.vectors.is_latched(vector);
            msix.model.pba_read(offset, data, latched);
        }
    }

    /// Back to power-on: nothing routed, nothing armed, nothing latched.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        let State { msi, msix, .. } = &mut *state;
        let msi = msi.as_mut().map(|msi| msi.model.reset());
        let msix = msix.as_mut().map(|msix| msix.model.reset());
        self.route(&msi.into_iter().chain(msix).flatten().collect());
        self.stop(&mut state);
    }

    /// Listens to the pin if the function is switched on and sends no messages. Whether it is heard.
    pub(super) fn follow_pin(&self, is_on: bool) -> bool {
        let state = &mut *self.lock();
        let sends_messages = state.sends_messages();
        let Some(pin) = &mut state.pin else {
            return false;
        };
        if is_on && !sends_messages {
            self.report(pin.listen());
        } else {
            pin.hush();
        }
        pin.is_heard()
    }

    /// Whether the host lets the pin be listened to. The device is quiet on it.
    pub(super) fn try_pin(&self) -> io::Result<()> {
        let mut state = self.lock();
        let Some(pin) = &mut state.pin else {
            return Ok(());
        };
        let listened = pin.listen();
        pin.hush();
        listened
    }

    /// Leaves the pin unconnected, for good.
    pub(super) fn give_up_pin(&self) {
        self.lock().pin = None;
    }

    /// Follows the guest's MSI registers with routes and vectors.
    fn follow_msi(&self, state: &mut State, changes: &RouteChanges) {
        self.route(changes);
        let State {
            msi: Some(msi),
            pin,
            arming,
            msi_asked,
            ..
        } = state
        else {
            return;
        };
        if !msi.model.is_enabled() {
            if arming.is_enabled(IrqIndex::Msi) {
                self.stop(state);
            }
            return;
        }
        // The device picks a vector by the number that was enabled (Multiple Message Enable), so all of those are armed.
        let in_use = msi.model.vectors_in_use();
        if arming.is_enabled(IrqIndex::Msi) && *msi_asked == in_use {
            return;
        }
        *msi_asked = in_use;
        pin.iter_mut().for_each(Pin::hush);
        let all: Vec<_> = (0..in_use).collect();
        let armed = arming.arm(IrqIndex::Msi, &all, all.len(), &*self.vectors);
        if let Err(error) = armed {
            if let Some(number) = self.failures.count() {
                log::warn!(
                    "{in_use} MSI vectors cannot be had (failure {number}): {error}; trying one"
                );
            }
            // Without interrupt remapping a host gives a function one. The device then signals vector 0 for all.
            let one = arming.arm(IrqIndex::Msi, &[0], 1, &*self.vectors);
            self.report(one);
        }
    }

    /// Follows the guest's MSI-X registers with routes and vectors.
    fn follow_msix(&self, state: &mut State, changes: &RouteChanges) {
        self.route(changes);
        let State {
            msix: Some(msix),
            pin,
            arming,
            ..
        } = state
        else {
            return;
        };
        if !msix.model.is_enabled() {
            if arming.is_enabled(IrqIndex::Msix) {
                self.stop(state);
            }
            return;
        }
        let routed = changes.iter().filter(|(_, message)| message.is_some());
        let used: Vec<_> = routed.map(|&(vector, _)| vector).collect();
        pin.iter_mut().for_each(Pin::hush);
        if !used.is_empty() || !arming.is_enabled(IrqIndex::Msix) {
            let expected = written(&msix.model);
            self.report(arming.arm(IrqIndex::Msix, &used, expected, &*self.vectors));
        }
    }

    fn stop(&self, state: &mut State) {
        let pin = state.pin.as_mut();
        match state.arming.disarm() {
            true => pin.into_iter().for_each(|pin| pin.requiet()),
            false => pin.into_iter().for_each(Pin::hush),
        }
        self.vectors.clear_latched();
    }

    fn route(&self, changes: &RouteChanges) {
        if !changes.is_empty()
            && let Err(error) = self.vectors.route(changes)
            && let Some(number) = self.failures.count()
        {
            log::error!(
                "interrupts of an assigned function cannot be routed (failure {number}): {error}"
            );
        }
    }

    /// A host that fails to give an interrupt costs the guest that interrupt, not its life.
    fn report(&self, armed: io::Result<()>) {
        if let Err(error) = armed
            && let Some(number) = self.failures.count()
        {
            log::error!(
                "interrupts of an assigned function cannot be enabled (failure {number}): {error}"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn sends_messages(&self) -> bool {
        let msi = self.msi.as_ref().is_some_and(|at| at.model.is_enabled());
        msi || self.msix.as_ref().is_some_and(|at| at.model.is_enabled())
    }
}

impl<T> At<T> {
    /// Where `offset` is in the capability, if it is in its `len` bytes.
    fn within(&self, offset: usize, len: usize) -> Option<usize> {
        offset.checked_sub(self.offset).filter(|&at| at < len)
    }
}

/// How many vectors have a message written to them: a guest writes those that it is going to use before it unmasks the first.
fn written(msix: &Msix) -> usize {
    let has_address = |&vector: &usize| {
        let mut address = [0; 8];
        msix.table_read(vector as u64 * 16, &mut address);
        address != [0; 8]
    };
    let highest = (0..msix.vectors()).rev().find(has_address);
    highest.map_or(0, |vector| vector + 1)
}

#[cfg(test)]
mod tests {
    use devices::interrupt::MsiMessage;

    use super::{
        super::{
            fake::{FakeHost, FakeSource},
            random::Random,
        },
        *,
    };

    const CAP: usize = 0x70;
    const ENABLE: u8 = 0x80;
    const MASK_ALL: u8 = 0x40;

    fn msix(host: &Arc<FakeHost>, source: &FakeSource) -> Interrupts {
        let msix = At {
            offset: CAP,
            model: Msix::new(3),
        };
        Interrupts::new(host.clone(), source, None, Some(msix), None).unwrap()
    }

    fn write_entry(interrupts: &Interrupts, vector: u64, address: u32, masked: u8) {
        interrupts.table_write(vector * 16, &address.to_le_bytes());
        interrupts.table_write(vector * 16 + 8, &[0x31, 0, 0, 0]);
        interrupts.table_write(vector * 16 + 12, &[masked, 0, 0, 0]);
    }

    fn control(interrupts: &Interrupts, high: u8) {
        interrupts.config_write(CAP + 3, &[high]);
    }

    #[test]
    fn linux_enables_msix_with_one_routing_update_and_one_growth() {
        let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
        let interrupts = msix(&host, &source);
        control(&interrupts, ENABLE | MASK_ALL);
        assert_eq!(host.take_calls(), ["arm Msix 0 [-]"]);
        (0..3).for_each(|vector| write_entry(&interrupts, vector, 0xfee0_0000, 1));
        control(&interrupts, ENABLE);
        assert!(source.take_routes().is_empty());
        write_entry(&interrupts, 1, 0xfee0_0000, 0);
        let message = MsiMessage {
            address: 0xfee0_0000,
            data: 0x31,
        };
        assert_eq!(source.take_routes(), [vec![(1, Some(message))]]);
        assert_eq!(host.take_calls(), ["disarm Msix", "arm Msix 0 [- fd -]"]);
        write_entry(&interrupts, 2, 0xfee0_0000, 0);
        assert_eq!(host.take_calls(), ["arm Msix 2 [fd]"]);
    }

    #[test]
    fn unmasking_the_function_routes_all_vectors_in_one_update() {
        let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
        let interrupts = msix(&host, &source);
        control(&interrupts, ENABLE | MASK_ALL);
        (0..3).for_each(|vector| write_entry(&interrupts, vector, 0xfee0_0000, 0));
        host.take_calls();
        control(&interrupts, ENABLE);
        assert_eq!(source.take_routes().len(), 1);
        assert_eq!(host.take_calls(), ["disarm Msix", "arm Msix 0 [fd fd fd]"]);
    }

    #[test]
    fn masking_a_vector_leaves_it_armed_and_shows_what_latches() {
        let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
        let interrupts = msix(&host, &source);
        control(&interrupts, ENABLE);
        write_entry(&interrupts, 0, 0xfee0_0000, 0);
        host.take_calls();
        source.take_routes();
        interrupts.table_write(12, &[1]);
        assert_eq!(source.take_routes(), [vec![(0, None)]]);
        assert!(host.take_calls().is_empty());
        source.latch(0);
        let mut pending = [0xff; 8];
        interrupts.pba_read(0, &mut pending);
        assert_eq!(pending, [1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn disabling_unroutes_then_disarms_and_forgets_what_latched() {
        let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
        let interrupts = msix(&host, &source);
        control(&interrupts, ENABLE);
        write_entry(&interrupts, 0, 0xfee0_0000, 0);
        source.latch(1);
        source.take_routes();
        host.take_calls();
        control(&interrupts, 0);
        assert_eq!(source.take_routes(), [vec![(0, None)]]);
        assert_eq!(host.take_calls(), ["disarm Msix"]);
        assert!(!source.is_latched(1));
    }

    #[test]
    fn msi_arms_as_many_vectors_as_the_guest_enabled() {
        let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
        let layout = devices::pci::msi::MsiLayout {
            wide: true,
            masking: false,
            vectors: 4,
        };
        let msi = At {
            offset: 0x50,
            model: Msi::new(layout),
        };
        let interrupts = Interrupts::new(host.clone(), &source, Some(msi), None, None).unwrap();
        interrupts.config_write(0x54, &0xfee0_1000u32.to_le_bytes());
        interrupts.config_write(0x5c, &[0x40, 0]);
        interrupts.config_write(0x52, &[0x11, 0]);
        assert_eq!(host.take_calls(), ["arm Msi 0 [fd fd]"]);
        assert_eq!(source.take_routes()[0].len(), 2);
        interrupts.config_write(0x52, &[0, 0]);
        assert_eq!(host.take_calls(), ["disarm Msi"]);
    }

    #[test]
    fn a_device_that_got_one_msi_vector_for_several_keeps_it_while_others_are_masked() {
        let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
        *host.most_vectors.lock().unwrap() = Some(1);
        let layout = devices::pci::msi::MsiLayout {
            wide: true,
            masking: true,
            vectors: 4,
        };
        let msi = At {
            offset: 0x50,
            model: Msi::new(layout),
        };
        let interrupts = Interrupts::new(host.clone(), &source, Some(msi), None, None).unwrap();
        interrupts.config_write(0x52, &[0x21, 0]);
        assert!(host.is_armed(IrqIndex::Msi, 0));
        host.take_calls();
        interrupts.config_write(0x60, &[2, 0, 0, 0]);
        interrupts.config_write(0x60, &[0, 0, 0, 0]);
        assert_eq!(host.take_calls(), [""; 0]);
    }

    #[test]
    fn whatever_the_guest_writes_a_vector_with_a_route_is_armed() {
        for host in [FakeHost::default(), FakeHost::default().that_can_grow()] {
            let (host, source) = (Arc::new(host), FakeSource::default());
            let interrupts = msix(&host, &source);
            let (mut random, mut routed) = (Random::new(1), [false; 3]);
            for step in 0..20_000 {
                match random.below(4) {
                    0 => control(&interrupts, random.pick(&[0, ENABLE, ENABLE | MASK_ALL])),
                    1 if random.once_in(50) => interrupts.reset(),
                    _ => {
                        let at = random.below(12) as u64 * 4;
                        interrupts.table_write(at, &[random.byte() & 1, 0, 0, 0]);
                    }
                }
                for (vector, message) in source.take_routes().into_iter().flatten() {
                    routed[vector] = message.is_some();
                }
                host.take_calls();
                for vector in (0..3).filter(|&vector| routed[vector]) {
                    assert!(
                        host.is_armed(IrqIndex::Msix, vector),
                        "{vector}, step {step}"
                    );
                }
            }
        }
    }
}
