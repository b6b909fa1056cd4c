//! The in-kernel interrupt controllers as they are at power-on.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
};
use kvm_ioctls::VmFd;

use super::KvmError;

/// The PICs and the IOAPIC, read before the guest ran, to be written back at a reset.
pub struct IrqchipState([kvm_irqchip; 3]);

impl IrqchipState {
    /// Reads all three.
    pub fn read(vm: &VmFd) -> Result<Self, KvmError> {
        let mut chips = [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ]
        .map(|chip_id| kvm_irqchip {
            chip_id,
            ..Default::default()
        });
        for chip in &mut chips {
            vm.get_irqchip(chip)
                .map_err(KvmError::call("KVM_GET_IRQCHIP"))?;
        }
        Ok(Self(chips))
    }

    /// The registers of each, to compare.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> [[std::ffi::c_char; 512]; 3] {
        // SAFETY: `dummy` is as large as the union, and plain bytes.
        self.0.map(|chip| unsafe { chip.chip.dummy })
    }

    /// Writes all three back, with the vCPUs stopped.
    pub fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        let set = |chip| {
            vm.set_irqchip(chip)
                .map_err(KvmError::call("KVM_SET_IRQCHIP"))
        };
        self.0.iter().try_for_each(set)
    }
}
