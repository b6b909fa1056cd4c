//! Reset: of one function, when the guest asks for it; of all that a machine has, at its start and when the guest reboots; and the
//! quiet that comes before.
//!
//! Opening a device resets it (vfio_pci_core_enable in drivers/vfio/pci/vfio_pci_core.c) if it can be reset alone, so at the start
//! only those are reset that this left as they were. A function whose FLR the guest asks for is never reset with its bus: the guest
//! may be using what else is there.

mod left;
mod plan;
mod together;

pub use together::{reset_devices, reset_opened};

use std::io;

use super::function::State;
use crate::{Assignable, kernel::HostFunction};

/// How a function is reset, and how often it was, for `--stats`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ResetStats {
    /// By what it was reset last, in the kernel's words: `flr`, `pm`, `bus`, …; `hot` with others on its bus; `none`.
    pub method: String,
    /// How often it was, its opening included.
    pub done: u64,
    /// How often it was not, though it was to be.
    pub failed: u64,
}

/// Takes the function off the bus, silences its interrupts and stops its DMA. In this order: first nobody can start anything new,
/// then nothing of it is heard any more, then it does nothing any more.
pub(super) fn stop(state: &mut State) {
    state.retain(0);
    state.interrupts.reset();
    state.config.reset();
}

/// What the guest sees goes back to power-on, and the device is stopped.
pub(super) fn quieten(state: &mut State) {
    stop(state);
    state.bars.reset();
}

/// What an FLR does: back to power-on goes the device, and what the guest sees of it.
pub(super) fn function_level(host: &dyn HostFunction, state: &mut State) {
    quieten(state);
    reset_alone(host, state);
}

/// Resets the device without any other one being reset.
fn reset_alone(host: &dyn HostFunction, state: &mut State) {
    let reset = match host.can_reset() {
        true => host.reset(),
        false => Err(io::ErrorKind::Unsupported.into()),
    };
    state.reset_ended(&own_method(host), &reset);
}

/// What the kernel resets a function by. Of what it lists it takes the first that works; before Linux 5.15 it lists nothing.
fn own_method(host: &dyn HostFunction) -> String {
    let first = host.reset_methods().into_iter().next();
    first.unwrap_or_else(|| "unknown".to_owned())
}

impl ResetStats {
    /// Of a function that was just opened, which resets it if it can be reset alone.
    pub(super) fn opened(host: &dyn HostFunction) -> Self {
        let done = host.can_reset();
        Self {
            method: if done {
                own_method(host)
            } else {
                "none".to_owned()
            },
            done: done.into(),
            failed: 0,
        }
    }
}

impl State {
    /// A reset of the device by `method` has ended.
    fn reset_ended(&mut self, method: &str, reset: &io::Result<()>) {
        match reset {
            Ok(()) => {
                self.resets.done += 1;
                method.clone_into(&mut self.resets.method);
                // Whatever it left behind, what the device and the guest's registers say is the same again.
                self.config.reset();
            }
            Err(error) => self.not_reset(|name| format!("{name}: {method} reset failed: {error}")),
        }
    }

    /// The device is as it was: `why` is said the first, the second, the fourth… time.
    fn not_reset(&mut self, why: impl FnOnce(&Assignable) -> String) {
        self.resets.failed += 1;
        if self.resets.failed.is_power_of_two() {
            log::warn!("{}", why(&self.name));
        }
    }
}
