//! The arguments of `viaduct run`.

use std::{path::PathBuf, str::FromStr};

use clap::Args;

use vfio::kernel::Interface;

use super::{
    BalloonArg, CpusArg, CredentialArg, DiskArg, MemoryArg, NetArg, SmbiosArg, VfioArg, VsockArg,
};
use crate::console::Side;

/// Boot a guest.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    viaduct run --kernel vmlinuz --initrd initrd.img --vfio 03:10.3\n  \
    viaduct run --kernel vmlinux --cmdline 'console=ttyS0 root=/dev/sda1' --cpus 4 --memory 8G --vfio eth2,addr=06\n\n\
    On a terminal, Ctrl-A x ends the machine and Ctrl-A Ctrl-A sends a Ctrl-A.")]
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "brackets are for what may be left out: clap shows these texts as they stand"
)]
pub struct RunArgs {
    /// Linux kernel: a bzImage, or an ELF vmlinux with a PVH entry
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "STRING", default_value = "console=ttyS0")]
    pub cmdline: String,
    /// Number of virtual CPUs, 1 to 254: N[,sockets=S][,cores=C][,threads=T][,pin=LIST][,model=host|x86-64|x86-64-v2|…]
    #[arg(long, value_name = "N", default_value = "1")]
    pub cpus: CpusArg,
    /// Guest memory: SIZE[,hugepages=2M|1G|thp|off][,prefault=on|off][,shared=on|off]
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: MemoryArg,
    /// Assign a host PCI function or mediated device: DEV[,addr=SLOT[.FN]][,id=NAME][,mac=MAC][,rom=on|off|FILE][,vga=on|off][,mmap=on|off]
    /// [,msix=in-place|relocate][,managed=on|off]; may be repeated
    #[arg(long, value_name = "DEV")]
    pub vfio: Vec<VfioArg>,
    /// Give the guest a disk, kept in a file or a block device: FILE[,readonly][,direct=on|off][,addr=SLOT]; may be
    /// repeated
    #[arg(long, value_name = "FILE")]
    pub disk: Vec<DiskArg>,
    /// Give the guest a network interface, whose other end is a tap of the host's: tap=IF|fd=N[,model=virtio|rtl8139][,mac=MAC]
    /// [,queues=N][,vhost=on|off|auto][,addr=SLOT]; may be repeated
    #[arg(long, value_name = "tap=IF")]
    pub net: Vec<NetArg>,
    /// Give the guest the host's random numbers
    #[arg(long)]
    pub rng: bool,
    /// Give the guest sockets to talk to its host by: its number, and a Unix socket to reach it by in place of the kernel's sockets
    #[arg(long, value_name = "CID[,SOCKET]")]
    pub vsock: Option<VsockArg>,
    /// Have the guest give up memory, which the host has back: SIZE[,reporting=on|off], or reporting=on alone; not with an assigned device
    #[arg(long, value_name = "SIZE")]
    pub balloon: Option<BalloonArg>,
    /// How the kernel maps memory for the devices; auto takes what the host has, the container first
    #[arg(long, value_name = "auto|container|iommufd", default_value = "auto")]
    pub iommu_backend: IommuBackend,
    /// Where the guest's serial port goes: stdio, a pseudoterminal, a file, or nowhere
    #[arg(long, value_name = "stdio|pty|FILE|null", default_value = "stdio")]
    pub serial: Side,
    /// Give the guest a virtio console (hvc0) as well, and say where that goes
    #[arg(long, value_name = "stdio|pty|FILE|null")]
    pub console: Option<Side>,
    /// End when the guest asks for a reboot
    #[arg(long)]
    pub no_reboot: bool,
    /// Tell the guest, in its SMBIOS tables: manufacturer=, product=, version=, serial=, sku=, family= or uuid= of the machine, or
    /// oem=STRING; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub smbios: Vec<SmbiosArg>,
    /// Give systemd in the guest a credential: NAME=VALUE, or NAME:FILE for what is in a file; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub credential: Vec<CredentialArg>,
    /// What to call the guest, for those who find its devices in use
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Print what would happen, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Write the guest's memory there if it dies, as a core file for crash and gdb, with what its kernel says of itself (vmcoreinfo)
    #[arg(long, value_name = "FILE")]
    pub core: Option<PathBuf>,
    /// Write counters to a JSON file, every second and at the end
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    /// Assign devices that the host itself is using
    #[arg(long)]
    pub force: bool,
    /// Read options from a TOML file, trusted like the command line; the command line overrides it
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// All of this as such a file.
    #[arg(skip)]
    pub file: String,
}

/// Which of the kernel's interfaces to use: none in particular, or this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IommuBackend(pub Option<Interface>);

impl FromStr for IommuBackend {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = [Interface::Container, Interface::Iommufd]
            .into_iter()
            .find(|interface| interface.to_string() == text);
        match named {
            None if text != "auto" => Err("write auto, container or iommufd"),
            named => Ok(Self(named)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_named_or_left_to_the_host() {
        let of = |text: &str| text.parse::<IommuBackend>().map(|backend| backend.0);
        assert_eq!(of("auto"), Ok(None));
        assert_eq!(of("container"), Ok(Some(Interface::Container)));
        assert_eq!(of("iommufd"), Ok(Some(Interface::Iommufd)));
        assert!(of("type1").is_err());
    }
}
