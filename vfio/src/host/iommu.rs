//! Why a device has no IOMMU group, and what to do about it.

use std::fmt;

use devices::pci::Bdf;

use super::{Host, sysfs};

/// No IOMMU stands between the device and memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NoIommu {
    /// Which device.
    pub device: Bdf,
    /// Why, as far as can be seen.
    pub cause: NoIommuCause,
}

/// What of an IOMMU there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoIommuCause {
    /// The firmware describes an Intel one (ACPI table DMAR), the kernel does not use it.
    IntelNotOn,
    /// The firmware describes an AMD one (ACPI table IVRS), the kernel does not use it.
    AmdNotOn,
    /// The firmware describes none, on a machine with an Intel processor.
    IntelNotInFirmware,
    /// The firmware describes none, on a machine with an AMD processor.
    AmdNotInFirmware,
    /// The firmware describes none.
    NotInFirmware,
    /// The kernel uses one, but this device is not behind it.
    NotBehindIt,
}

impl NoIommuCause {
    /// Why, in a sentence's half.
    pub fn why(self) -> &'static str {
        let [why, _] = self.why_and_fix();
        why
    }

    fn why_and_fix(self) -> [&'static str; 2] {
        const NOT_ON: &str =
            "the machine has one but the kernel does not use it (/sys/class/iommu is empty)";
        const NO_TABLE: &str =
            "the firmware describes none (neither a DMAR nor an IVRS table in ACPI)";
        match self {
            Self::IntelNotOn => [
                NOT_ON,
                "boot with intel_iommu=on; how to do that on this system:  viaduct doctor",
            ],
            Self::AmdNotOn => [
                NOT_ON,
                "it is on by default: boot without amd_iommu=off and iommu=off; how to do that on this system:  viaduct doctor",
            ],
            Self::IntelNotInFirmware => [
                NO_TABLE,
                "turn on 'VT-d' in the firmware's set-up, and boot with intel_iommu=on",
            ],
            Self::AmdNotInFirmware => [
                NO_TABLE,
                "turn on 'IOMMU' (also called AMD-Vi) in the firmware's set-up",
            ],
            Self::NotInFirmware => [
                NO_TABLE,
                "turn on the IOMMU in the firmware's set-up; in a virtual machine, give it one",
            ],
            Self::NotBehindIt => [
                "the kernel uses an IOMMU, but not for this device",
                "see what the kernel says of it:  dmesg | grep -e DMAR -e AMD-Vi -e iommu",
            ],
        }
    }
}

impl fmt::Display for NoIommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [why, fix] = self.cause.why_and_fix();
        let device = self.device;
        write!(
            f,
            "{device}: no IOMMU keeps it within the guest's memory: {why}\n  {fix}"
        )
    }
}

impl Host {
    pub(super) fn no_iommu(&self, device: Bdf) -> NoIommu {
        let cause = self.no_iommu_cause();
        NoIommu { device, cause }
    }

    /// Why there are no groups, or why some device has none.
    pub(super) fn no_iommu_cause(&self) -> NoIommuCause {
        if !sysfs::names(&self.roots.sys.join("class/iommu")).is_empty() {
            return NoIommuCause::NotBehindIt;
        }
        // The table decides, not the processor: emulated machines mix the two.
        let tables = self.roots.sys.join("firmware/acpi/tables");
        if tables.join("DMAR").exists() {
            return NoIommuCause::IntelNotOn;
        }
        if tables.join("IVRS").exists() {
            return NoIommuCause::AmdNotOn;
        }
        match sysfs::text(&self.roots.proc.join("cpuinfo")) {
            Some(cpu) if cpu.contains("GenuineIntel") => NoIommuCause::IntelNotInFirmware,
            Some(cpu) if cpu.contains("AuthenticAMD") => NoIommuCause::AmdNotInFirmware,
            _ => NoIommuCause::NotInFirmware,
        }
    }
}
