//! The command line. What a person types, checked here as far as text can be checked; what it means is for the machine.

pub mod binding;
pub mod run;
mod size;
mod vfio_arg;

pub use size::{MemoryArg, SizeError};
pub use vfio_arg::{VfioArg, VfioArgError};

use clap::{Parser, Subcommand};

/// A minimal virtual machine monitor for Linux/KVM with PCI passthrough built in.
#[derive(Debug, Parser)]
#[command(
    name = "viaduct",
    version,
    max_term_width = 100,
    after_help = "Devices are named 03:10.3, 0000:03:10.3, by network interface (eth2), or a virtual function by its \
                  physical one (03:00.1/vf1).\n\n\
                  Exit status: 0 the guest shut down, or was ended by you; 1 the host or a device failed; 2 bad usage; \
                  3 the guest died (triple fault or panic)."
)]
pub struct Cli {
    /// Say more on stderr; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest, with host PCI functions assigned to it
    Run(Box<run::RunArgs>),
    /// Take devices from their drivers and bind them to vfio-pci
    Bind(binding::BindArgs),
    /// Give devices back to their drivers
    Unbind(binding::UnbindArgs),
    /// Put back every driver that a run or bind of ours displaced, also after a crash
    Restore(binding::RestoreArgs),
}
