//! pvpanic: the port by which a guest says that its kernel panicked. The events are those of Linux's `misc/pvpanic.h`.

use std::sync::Once;

use crate::bus::{Action, BusDevice};

/// The kernel panicked.
const PANICKED: u8 = 1 << 0;
/// The kernel panicked and a crash kernel takes over: the guest is not dead, it saves its memory.
const CRASH_LOADED: u8 = 1 << 1;

/// One port: reads say which events there are, writes report them.
#[derive(Debug, Default)]
pub struct Pvpanic;

impl BusDevice for Pvpanic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (0, Some(events)) = (offset, data.first_mut()) {
            *events = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let events = data.first().copied().filter(|_| offset == 0).unwrap_or(0);
        if events & PANICKED != 0 {
            return Action::Panicked;
        }
        if events & CRASH_LOADED != 0 {
            // Once: a guest may say so in a loop.
            static SAID: Once = Once::new();
            SAID.call_once(|| log::warn!("the guest panicked; its crash kernel takes over"));
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_finds_both_events() {
        let mut data = [0];
        Pvpanic.read(0, &mut data);
        assert_eq!(data, [0b11]);
    }

    #[test]
    fn a_panic_is_reported_and_a_crash_kernel_is_left_to_run() {
        assert_eq!(Pvpanic.write(0, &[PANICKED]), Action::Panicked);
        assert_eq!(
            Pvpanic.write(0, &[PANICKED | CRASH_LOADED]),
            Action::Panicked
        );
        assert_eq!(Pvpanic.write(0, &[CRASH_LOADED]), Action::None);
        assert_eq!(Pvpanic.write(0, &[0xf0]), Action::None);
        assert_eq!(Pvpanic.write(1, &[PANICKED]), Action::None);
    }
}
