//! Reset: when the guest reboots and when it resets the function; and the quiet that the start and the end want. At the start the
//! kernel has reset the device by opening it.

use super::function::State;
use crate::kernel::HostFunction;

/// Takes the function off the bus, silences its interrupts and stops its DMA. In this order: first nobody can start anything new,
/// then nothing of it is heard any more, then it does nothing any more.
pub(super) fn stop(state: &mut State) {
    state.placements.clear();
    state.interrupts.reset();
    state.config.reset();
}

/// Back to power-on: the device, and what the guest sees of it.
pub(super) fn reset(host: &dyn HostFunction, state: &mut State) {
    stop(state);
    state.bars.reset();
    if host.can_reset()
        && let Err(error) = host.reset()
        && let Some(number) = state.failed_resets.count()
    {
        log::warn!(
            "{}: cannot be reset (failure {number}): {error}",
            state.name
        );
    }
    // Whatever the reset left behind, what the device and the guest's registers say is the same again.
    state.config.reset();
}
