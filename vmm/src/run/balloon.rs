//! Whether the guest can have a balloon.

use super::RunError;
use crate::machine::Config;

/// What a Linux of today needs to be of any use: its kernel, and a few programs. With less it takes the pages back, if it gets to that.
const LEAST_MIB: u64 = 96;

/// Looks at what contradicts it.
pub(super) fn check(config: &Config) -> Result<(), RunError> {
    let Some(balloon) = &config.balloon else {
        return Ok(());
    };
    let memory_mib = config.memory_bytes >> 20;
    let mib = u64::from(balloon.pages).div_ceil(256);
    let left_mib = memory_mib.saturating_sub(mib);
    if let Some(assigned) = config.assigned.first() {
        let device = assigned.device.clone();
        // As --memory takes it.
        let fits_mib = (mib > 0).then(|| (left_mib & !1).max(LEAST_MIB));
        return Err(RunError::BalloonWithDevice { device, fits_mib });
    }
    if config.backing.pages.pool_page().is_some() {
        return Err(RunError::BalloonOfPool);
    }
    if mib > 0 && left_mib < LEAST_MIB {
        return Err(RunError::BalloonTooLarge {
            mib,
            memory_mib,
            least_mib: LEAST_MIB,
            fits_mib: memory_mib.saturating_sub(LEAST_MIB),
        });
    }
    Ok(())
}
