//! What KVM has to know of assigned devices: its VFIO device (Documentation/virt/kvm/devices/vfio.rst).
//!
//! Two things hang on it. A device whose DMA does not snoop the caches is coherent only if KVM heeds the guest's memory types and
//! its WBINVD, both of which it ignores for guests that have no such device. And a guest that has a device's registers mapped gets
//! the mitigations that only those need (Documentation/admin-guide/hw-vuln/processor_mmio_stale_data.rst).

use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::KvmError;

/// The VM's VFIO device. It keeps the files that it was told of open, and the VM alive, until it is dropped.
pub struct VfioDevice {
    device: DeviceFd,
}

impl VfioDevice {
    /// A VM has one at most.
    pub fn create(vm: &VmFd) -> Result<Self, KvmError> {
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
            ..Default::default()
        };
        let device = vm.create_device(&mut device);
        let device = device.map_err(KvmError::call("KVM_CREATE_DEVICE of type VFIO"))?;
        Ok(Self { device })
    }

    /// Tells KVM of a VFIO group (whose container has its IOMMU by now: that is where KVM learns about coherency). To be called
    /// before devices of it are opened.
    pub fn add(&self, file: BorrowedFd<'_>) -> Result<(), KvmError> {
        let number = file.as_raw_fd();
        let pointer = &raw const number;
        let attribute = kvm_device_attr {
            group: KVM_DEV_VFIO_FILE,
            attr: KVM_DEV_VFIO_FILE_ADD.into(),
            addr: pointer.expose_provenance() as u64,
            ..Default::default()
        };
        self.device
            .set_device_attr(&attribute)
            .map_err(KvmError::call("KVM_DEV_VFIO_FILE_ADD"))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use super::*;
    use crate::kvm::Vm;

    #[test]
    fn a_file_that_is_none_of_vfio_is_refused_by_kvm() {
        let device = Vm::create()
            .map_err(|error| error.to_string())
            .and_then(|vm| VfioDevice::create(&vm.fd).map_err(|error| error.to_string()));
        let device = match device {
            Ok(device) => device,
            Err(reason) => return println!("SKIPPED ({reason})"),
        };
        let file = File::open("/dev/null").unwrap();
        let refused = device.add(file.as_fd()).unwrap_err();
        let KvmError::Call { source, .. } = refused else {
            panic!("{refused}");
        };
        // Not EFAULT or ENXIO: the number was read, and it is the file that is wrong.
        assert_eq!(source.errno(), libc::EINVAL);
    }
}
