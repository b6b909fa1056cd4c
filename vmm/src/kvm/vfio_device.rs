//! What KVM has to know of assigned devices: its VFIO device (Documentation/virt/kvm/devices/vfio.rst).
//!
//! Two things hang on it. A device whose DMA does not snoop the caches is coherent only if KVM heeds the guest's memory types and
//! its WBINVD, both of which it ignores for guests that have no such device. And a guest that has a device's registers mapped gets
//! the mitigations that only those need (Documentation/admin-guide/hw-vuln/processor_mmio_stale_data.rst).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};
use vfio::kernel::GuestLink;

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

    fn change(&self, what: u32, file: BorrowedFd<'_>) -> io::Result<()> {
        let number = file.as_raw_fd();
        let pointer = &raw const number;
        let attribute = kvm_device_attr {
            group: KVM_DEV_VFIO_FILE,
            attr: what.into(),
            addr: pointer.expose_provenance() as u64,
            ..Default::default()
        };
        self.device
            .set_device_attr(&attribute)
            .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))
    }
}

impl GuestLink for VfioDevice {
    fn add(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.change(KVM_DEV_VFIO_FILE_ADD, file)
    }

    fn remove(&self, file: BorrowedFd<'_>) {
        if let Err(error) = self.change(KVM_DEV_VFIO_FILE_DEL, file) {
            log::error!(
                "KVM does not let go of a device's file before the guest has ended: {error}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use super::*;
    use crate::tiny_guest;

    #[test]
    fn a_file_that_is_none_of_vfio_is_refused_by_kvm() {
        let Some(vm) = tiny_guest::vm() else { return };
        let device = match VfioDevice::create(&vm.fd) {
            Err(KvmError::Call { source, .. }) if source.errno() == libc::ENODEV => {
                return tiny_guest::skipped("this KVM has no VFIO device");
            }
            made => made.unwrap(),
        };
        let file = File::open("/dev/null").unwrap();
        let refused = device.add(file.as_fd()).unwrap_err();
        // Not EFAULT or ENXIO: the number was read, and it is the file that is wrong.
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        // A file that it was not told of.
        let unknown = device.change(KVM_DEV_VFIO_FILE_DEL, file.as_fd());
        assert_eq!(unknown.unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }
}
