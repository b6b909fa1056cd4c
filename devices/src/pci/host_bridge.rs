//! The host bridge: 8086:29c0, the memory controller of Q35, as identity and nothing else.
//!
//! Left out: all registers of the chipset (PCIEXBAR, PAM, SMRAM). A guest finds the ECAM through ACPI's MCFG.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{
    Function,
    bar::BarSpec,
    config::{ConfigSpace, Identity},
};
use crate::bus::Action;

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x29c0,
    revision: 0,
    // Base class 06 (bridge), subclass 00 (host): PCI 3.0 appendix D.
    class: 0x06_00_00,
    subsystem_vendor: 0,
    subsystem: 0,
};

/// The function at 00:00.0.
pub struct HostBridge(Mutex<ConfigSpace>);

impl HostBridge {
    /// As at power-on.
    pub fn new() -> Self {
        Self(Mutex::new(ConfigSpace::new(&IDENTITY)))
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl Function for HostBridge {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Action {
        self.config().write(offset, data);
        Action::None
    }

    fn bars(&self) -> Vec<BarSpec> {
        Vec::new()
    }

    fn assign_bar(&self, _index: usize, _address: u64) {}

    fn reset(&self) {
        self.config().reset();
    }
}
