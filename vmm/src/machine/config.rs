//! What a machine is to be, as the command line says it.

use std::path::PathBuf;

use devices::pci::{Bdf, Slot};

use crate::{console::Serial, ram::Pages};

/// What the machine is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// vCPUs.
    pub cpus: u32,
    /// RAM, bytes.
    pub memory_bytes: u64,
    /// What RAM is made of.
    pub pages: Pages,
    /// Populate RAM before the guest starts.
    pub prefault: bool,
    /// Host functions and where they go in the guest.
    pub assigned: Vec<(Bdf, Slot)>,
    /// Where the serial port goes.
    pub serial: Serial,
    /// End at the guest's reboot.
    pub no_reboot: bool,
    /// Where the counters go.
    pub stats: Option<PathBuf>,
}
