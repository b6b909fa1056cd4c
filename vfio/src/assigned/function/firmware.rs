//! What firmware would want to know of a function, before the guest runs.

use std::ops::Range;

use super::AssignedFunction;
use crate::assigned::specific::Specific;

impl AssignedFunction {
    /// Whether what the host had in its registers and memory is gone.
    pub fn was_reset(&self) -> bool {
        self.state().resets.done > 0
    }

    /// What is in its expansion ROM, where that can be read; a device's own can while it decodes memory.
    pub fn rom(&self) -> Option<Vec<u8>> {
        self.rom.as_ref()?.image()
    }

    /// The OpRegion of Intel's graphics, if this is such and it fits into `place`, where the guest will look for it.
    pub fn opregion(&self, place: Range<u32>) -> Option<Vec<u8>> {
        let room = place.end.saturating_sub(place.start);
        let read = |one: &Specific| one.opregion(&*self.host, room.into());
        let content = self.specific.iter().find_map(read)?;
        self.state().config.show_opregion_at(place.start);
        Some(content)
    }

    /// Where BAR `index` is in the guest, whether it decodes or not.
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        self.state().bars.address(index)
    }
}
