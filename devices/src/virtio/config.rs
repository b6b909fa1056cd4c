//! A device's own configuration (virtio 1.2 §2.5): what its driver reads of it, and how it is told that something changed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The bytes that a driver sees, shared between the device, which may change them while it runs, and its registers. Their number stays.
#[derive(Debug, Clone, Default)]
pub struct Config(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    generation: u8,
}

impl From<Vec<u8>> for Config {
    fn from(bytes: Vec<u8>) -> Self {
        let generation = 0;
        Self(Arc::new(Mutex::new(State { bytes, generation })))
    }
}

impl Config {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.state().bytes.len()
    }

    /// Reads from `offset` on; zeroes beyond the end.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let state = self.state();
        let stored = state.bytes.iter().skip(offset);
        data.iter_mut()
            .zip(stored)
            .for_each(|(to, from)| *to = *from);
    }

    /// Replaces what is at `offset`; whether that changed anything.
    pub fn put(&self, offset: usize, value: &[u8]) -> bool {
        let state = &mut *self.state();
        let place = state.bytes.iter_mut().skip(offset).zip(value);
        let mut has_changed = false;
        for (byte, new) in place {
            has_changed |= byte != new;
            *byte = *new;
        }
        state.generation = state.generation.wrapping_add(has_changed.into());
        has_changed
    }

    /// Changes with the bytes, so that who read several of them knows whether they belong together (§4.1.4.3.1).
    pub(super) fn generation(&self) -> u8 {
        self.state().generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_with_another_generation_and_what_changes_nothing_is_none() {
        let config = Config::from(vec![1, 2, 3]);
        assert!(!config.put(1, &[2, 3]));
        assert_eq!(config.generation(), 0);
        assert!(config.put(2, &[4, 5, 6]));
        assert_eq!((config.generation(), config.len()), (1, 3));
        let mut read = [9; 4];
        config.read(1, &mut read);
        assert_eq!(read, [2, 4, 0, 0]);
    }
}
