//! Interrupts of the function: the guest's registers, the routes in the machine, the vectors and the pin of the device.
//!
//! A device has one kind at a time, the one in force. What the guest enables last takes over; with no messages enabled the pin does.
//! A guest must not enable MSI and MSI-X at once (PCIe 6.0 §6.1.4). Should it do so, the one that was enabled first waits, and is back in
//! force when the other is disabled: whatever a guest has done, it is cured by disabling what it does not want.
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
    /// Whose messages are routed and whose vectors are armed: MSI, MSI-X or neither. Both have the same vectors.
    in_force: Option<IrqIndex>,
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
                in_force: None,
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
            let latched = |vector| self.is_pending(&state, IrqIndex::Msi, vector);
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
            let was_enabled = msi.model.is_enabled();
            let changes = msi.model.capability_write(at, data);
            self.follow(&mut state, IrqIndex::Msi, was_enabled, &changes);
        } else if let Some(msix) = &mut state.msix
            && let Some(at) = msix.within(offset, MSIX_CAPABILITY_LEN)
        {
            let was_enabled = msix.model.is_enabled();
            let changes = msix.model.capability_write(at, data);
            self.follow(&mut state, IrqIndex::Msix, was_enabled, &changes);
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
            let is_enabled = msix.model.is_enabled();
            let changes = msix.model.table_write(offset, data);
            self.follow(&mut state, IrqIndex::Msix, is_enabled, &changes);
        }
    }

    /// Reads the MSI-X pending bits.
    pub(super) fn pba_read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        if let Some(msix) = &state.msix {
            let latched = |vector| self.is_pending(&state, IrqIndex::Msix, vector);
            msix.model.pba_read(offset, data, latched);
        }
    }

    /// Back to power-on: nothing routed, nothing armed, nothing latched.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        self.route(&silenced(state.routes()));
        state.in_force = None;
        if let Some(msi) = &mut state.msi {
            msi.model.reset();
        }
        if let Some(msix) = &mut state.msix {
            msix.model.reset();
        }
        self.stop(&mut state);
    }

    /// Listens to the pin if the function is switched on and sends no messages. Whether it is heard.
    pub(super) fn follow_pin(&self, is_on: bool) -> bool {
        let state = &mut *self.lock();
        let sends_messages = state.in_force.is_some();
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

    /// Follows the guest's registers of `kind`, which it has written, with routes and vectors. `changes` are in that kind's messages.
    fn follow(&self, state: &mut State, kind: IrqIndex, was_enabled: bool, changes: &RouteChanges) {
        let (old, new) = (state.in_force, state.heir(kind, was_enabled));
        if old == new {
            if new == Some(kind) {
                self.route(changes);
                self.arm(state, changes);
            }
            return;
        }
        // What was in force has been disabled, and the changes say so; or it waits from now on.
        match old {
            Some(old) if old == kind => self.route(changes),
            _ => self.route(&silenced(state.routes())),
        }
        state.in_force = new;
        if old.is_some() {
            self.stop(state);
        }
        let routes = state.routes();
        self.route(&routes);
        self.arm(state, &routes);
    }

    /// Has the device signal the vectors of the kind in force, some of which have just got another route.
    fn arm(&self, state: &mut State, changes: &RouteChanges) {
        match state.in_force {
            Some(IrqIndex::Msi) => self.arm_msi(state),
            Some(IrqIndex::Msix) => self.arm_msix(state, changes),
            _ => {}
        }
    }

    fn arm_msi(&self, state: &mut State) {
        let Some(msi) = &state.msi else { return };
        // The device picks a vector by the number that was enabled (Multiple Message Enable), so all of those are armed.
        let in_use = msi.model.vectors_in_use();
        let arming = &mut state.arming;
        if arming.is_enabled(IrqIndex::Msi) && state.msi_asked == in_use {
            return;
        }
        state.msi_asked = in_use;
        state.pin.iter_mut().for_each(Pin::hush);
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

    fn arm_msix(&self, state: &mut State, changes: &RouteChanges) {
        let Some(msix) = &state.msix else { return };
        let routed = changes.iter().filter(|(_, message)| message.is_some());
        let used: Vec<_> = routed.map(|&(vector, _)| vector).collect();
        let arming = &mut state.arming;
        state.pin.iter_mut().for_each(Pin::hush);
        if !used.is_empty() || !arming.is_enabled(IrqIndex::Msix) {
            let expected = written(&msix.model);
            self.report(arming.arm(IrqIndex::Msix, &used, expected, &*self.vectors));
        }
    }

    /// What latches is of the kind in force.
    fn is_pending(&self, state: &State, kind: IrqIndex, vector: usize) -> bool {
        state.in_force == Some(kind) && self.vectors.is_latched(vector)
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
    fn is_enabled(&self, kind: IrqIndex) -> bool {
        match kind {
            IrqIndex::Msi => self.msi.as_ref().is_some_and(|at| at.model.is_enabled()),
            IrqIndex::Msix => self.msix.as_ref().is_some_and(|at| at.model.is_enabled()),
            _ => false,
        }
    }

    /// The kind in force once the registers of `kind` were written, which was enabled before or not.
    fn heir(&self, kind: IrqIndex, was_enabled: bool) -> Option<IrqIndex> {
        if self.is_enabled(kind) && !was_enabled {
            return Some(kind);
        }
        let mut kinds = self
            .in_force
            .into_iter()
            .chain([IrqIndex::Msi, IrqIndex::Msix]);
        kinds.find(|&kind| self.is_enabled(kind))
    }

    /// The messages of the kind in force.
    fn routes(&self) -> RouteChanges {
        let routes = match self.in_force {
            Some(IrqIndex::Msi) => self.msi.as_ref().map(|at| at.model.routes()),
            Some(IrqIndex::Msix) => self.msix.as_ref().map(|at| at.model.routes()),
            _ => None,
        };
        routes.unwrap_or_default()
    }
}

impl<T> At<T> {
    /// Where `offset` is in the capability, if it is in its `len` bytes.
    fn within(&self, offset: usize, len: usize) -> Option<usize> {
        offset.checked_sub(self.offset).filter(|&at| at < len)
    }
}

/// The same vectors without a message.
fn silenced(routes: RouteChanges) -> RouteChanges {
    routes
        .into_iter()
        .map(|(vector, _)| (vector, None))
        .collect()
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
mod tests;
