//! What state of power a function is in (Documentation/ABI/testing/sysfs-bus-pci and sysfs-devices-power).

use std::path::Path;

use super::super::sysfs;

/// A function's power, in the kernel's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Power {
    /// `D0` (on) to `D3cold` (without power).
    pub state: Option<String>,
    /// Runtime power management: `active`, `suspended`, …; none where there is none for it.
    pub runtime: Option<String>,
    /// Whether the kernel may suspend it when it is idle (`auto`) or may not (`on`).
    pub control: Option<String>,
}

impl Power {
    pub(super) fn read(dir: &Path) -> Self {
        let text = |attribute| sysfs::text(&dir.join(attribute));
        Self {
            state: text("power_state").filter(|state| state != "unknown"),
            runtime: text("power/runtime_status").filter(|status| status != "unsupported"),
            control: text("power/control"),
        }
    }
}
