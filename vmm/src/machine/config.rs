//! What a machine is to be, as the command line says it.

use std::path::PathBuf;

use arch::smbios::SmbiosConfig;
use devices::{
    pci::Slot,
    virtio::blk::{Access, Disk, DiskError},
};
use vfio::{Assignable, assigned, kernel::Interface};

use crate::{
    console::Side,
    net::{Model, Source, Vhost},
    processors::ProcessorsConfig,
    ram::Backing,
};

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
    pub processors: ProcessorsConfig,
    /// RAM, bytes.
    pub memory_bytes: u64,
    /// What RAM is kept in.
    pub backing: Backing,
    /// Populate RAM before the guest starts.
    pub prefault: bool,
    /// Devices of the host's that the guest gets.
    pub assigned: Vec<Assignment>,
    /// Disks.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces.
    pub networks: Vec<NetConfig>,
    /// Where the guest's source of random numbers is, if it has one.
    pub rng: Option<Slot>,
    /// What it calls itself, and strings for the guest.
    pub smbios: SmbiosConfig,
    /// Which of the kernel's interfaces their DMA goes through; the one that the host has, if nothing.
    pub interface: Option<Interface>,
    /// Where the serial port goes.
    pub serial: Side,
    /// The virtio console, if there is one.
    pub console: Option<ConsoleConfig>,
    /// The memory balloon, if there is one.
    pub balloon: Option<BalloonConfig>,
    /// The socket device, if there is one.
    pub vsock: Option<VsockConfig>,
    /// End at the guest's reboot.
    pub no_reboot: bool,
    /// Where the memory of a guest that dies goes.
    pub core: Option<PathBuf>,
    /// Where the counters go.
    pub stats: Option<PathBuf>,
}

impl Config {
    /// How many vCPUs there are.
    pub fn cpus(&self) -> u32 {
        self.processors.topology.cpus()
    }
}

/// A device of the host's in the guest.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// Which.
    pub device: Assignable,
    /// Where in the guest.
    pub slot: Slot,
    /// What the person calls it; by its name on the host, if nothing.
    pub id: Option<String>,
    /// How.
    pub options: assigned::Options,
}

/// The guest's virtio console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleConfig {
    /// Where it goes.
    pub side: Side,
    /// Where in the guest it is.
    pub slot: Slot,
}

/// The guest's memory balloon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalloonConfig {
    /// How many pages of 4 KiB the guest is to give up.
    pub pages: u32,
    /// Whether it says which others are free.
    pub has_reports: bool,
    /// Where in the guest it is.
    pub slot: Slot,
}

/// The guest's socket device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's number.
    pub cid: u32,
    /// What programs of the host's connect to; the kernel's own sockets (vhost-vsock) if absent.
    pub socket: Option<PathBuf>,
    /// Where in the guest it is.
    pub slot: Slot,
}

/// A disk of the guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// The file or block device that it is kept in.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub is_readonly: bool,
    /// Whether it is read and written past the host's page cache.
    pub is_direct: bool,
    /// Where in the guest.
    pub slot: Slot,
}

impl DiskConfig {
    /// Opens it, which locks it against other guests.
    pub(super) fn open(&self) -> Result<Disk, DiskError> {
        let access = Access {
            is_readonly: self.is_readonly,
            is_direct: self.is_direct,
        };
        Disk::open(&self.path, access)
    }
}

/// A network interface of the guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// The host's side.
    pub source: Source,
    /// Its address.
    pub mac: [u8; 6],
    /// What the guest sees.
    pub model: Model,
    /// How many pairs of queues.
    pub queues: usize,
    /// Who carries the packets.
    pub vhost: Vhost,
    /// Where in the guest.
    pub slot: Slot,
}
