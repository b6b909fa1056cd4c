//! Devices that root has bound beforehand, for a process that may change nothing on this host.

use devices::pci::Bdf;

use super::{BindingError, Host, is_vfio};

impl Host {
    /// Whether a guest can have `devices` as they are, with nothing changed and nothing written down: all are on a driver of VFIO's,
    /// and nobody else has taken one.
    pub(super) fn are_prepared(&self, devices: &[Bdf]) -> Result<bool, BindingError> {
        let entries = self.journal_entries()?;
        for &device in devices {
            let owner = entries.get(&device).and_then(|entry| entry.owner.as_ref());
            if let Some(owner) = owner.filter(|owner| self.is_alive(owner)) {
                let holders = vec![self.holder(owner.pid)];
                return Err(BindingError::InUse { device, holders });
            }
        }
        let on_vfio = |&device| self.driver_of(device).as_deref().is_some_and(is_vfio);
        Ok(devices.iter().all(on_vfio))
    }
}
