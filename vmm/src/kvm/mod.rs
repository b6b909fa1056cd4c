//! The kernel's side of the machine: the VM, its memory slots, its interrupt routes, its vCPUs.

pub mod doorbell;
pub mod eventfd;
#[cfg(test)]
mod interruptible;
pub mod intx;
pub mod irqchip;
pub mod memslots;
pub mod msi;
pub mod routes;
pub mod vcpu_state;
pub mod vfio_device;

use std::{io, os::fd::FromRawFd, sync::Arc};

use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VmFd};

use arch::{cpuid::Leaf, layout};

/// As kvm-ioctls wants it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "x86-64 has 64-bit addresses"
)]
const TSS: usize = layout::KVM_TSS as usize;

/// KVM is not there, or refused.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// /dev/kvm cannot be opened.
    #[error("cannot open /dev/kvm\n  {advice}")]
    Open {
        /// What the kernel said.
        source: io::Error,
        /// What to do about it.
        advice: &'static str,
    },
    /// A KVM of another age.
    #[error(
        "/dev/kvm speaks API version {0}, not {KVM_API_VERSION}\n  boot another kernel on the host: Linux has had this version since 2007"
    )]
    Version(i32),
    /// Something that every KVM since Linux 4.12 has is missing.
    #[error("this KVM lacks {0}\n  boot a later kernel on the host: any since Linux 4.12 has it")]
    Lacks(&'static str),
    /// An ioctl failed.
    #[error("{call} failed\n  see whether KVM said why:  dmesg | grep -i kvm | tail")]
    Call {
        /// Its name, and what it was about.
        call: &'static str,
        /// What the kernel said.
        source: kvm_ioctls::Error,
    },
}

impl KvmError {
    /// For `map_err`: the failure of `call`.
    pub fn call(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Call { call, source }
    }
}

/// A virtual machine with the full interrupt controller in the kernel, no memory and no vCPU yet.
pub struct Vm {
    /// The system handle.
    pub kvm: Kvm,
    /// The machine's handle.
    pub fd: Arc<VmFd>,
}

impl Vm {
    /// Opens /dev/kvm and makes a VM.
    pub fn create() -> Result<Self, KvmError> {
        let kvm = open_checked()?;
        let fd = kvm.create_vm().map_err(KvmError::call("KVM_CREATE_VM"))?;
        // Intel without unrestricted guest needs both; they must be set before the first vCPU exists.
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(KvmError::call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS)
            .map_err(KvmError::call("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip()
            .map_err(KvmError::call("KVM_CREATE_IRQCHIP"))?;
        Ok(Self {
            kvm,
            fd: Arc::new(fd),
        })
    }

    /// The CPUID that this host can give a guest.
    pub fn supported_cpuid(&self) -> Result<Vec<Leaf>, KvmError> {
        let cpuid = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(cpuid.as_slice().iter().map(vcpu_state::leaf).collect())
    }
}

/// Whether KVM is there, may be used, and has what a machine needs of it.
pub fn check() -> Result<(), KvmError> {
    open_checked().map(drop)
}

fn open_checked() -> Result<Kvm, KvmError> {
    let kvm = open()?;
    let version = kvm.get_api_version();
    if version != i32::try_from(KVM_API_VERSION).unwrap_or(i32::MAX) {
        return Err(KvmError::Version(version));
    }
    for (cap, name) in [
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::IrqfdResample, "KVM_CAP_IRQFD_RESAMPLE"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Lacks(name));
        }
    }
    Ok(kvm)
}

fn open() -> Result<Kvm, KvmError> {
    match Kvm::open_with_cloexec(true) {
        // SAFETY: open_with_cloexec just returned this descriptor, of /dev/kvm, and nobody else owns it.
        Ok(fd) => Ok(unsafe { Kvm::from_raw_fd(fd) }),
        Err(errno) => Err(KvmError::Open {
            source: io::Error::from_raw_os_error(errno.errno()),
            advice: open_advice(errno.errno()),
        }),
    }
}

fn open_advice(errno: i32) -> &'static str {
    match errno {
        libc::ENOENT => {
            "the kvm module is not loaded:  modprobe kvm_intel  or  modprobe kvm_amd\n  \
             if that fails, switch virtualisation on in the firmware's setup (VT-x, SVM)"
        }
        libc::EACCES | libc::EPERM => {
            "join the group that owns it:  usermod -aG kvm $USER  and log in again"
        }
        libc::ENODEV | libc::ENXIO => {
            "the processor's virtualisation is off or taken: look at  dmesg | grep -i kvm"
        }
        libc::EBUSY => "another hypervisor holds the processor's virtualisation: stop it first",
        _ => "look at  dmesg | grep -i kvm",
    }
}
