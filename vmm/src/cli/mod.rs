//! The command line. What a person types, checked here as far as text can be checked; what it means is for the machine.

mod balloon_arg;
pub mod binding;
mod config_file;
mod cpus_arg;
mod credential_arg;
mod disk_arg;
pub mod doctor;
pub mod list;
mod net_arg;
pub mod run;
mod size;
mod slot;
mod smbios_arg;
pub mod sriov;
mod typed;
mod vfio_arg;
mod vsock_arg;

pub use balloon_arg::{BalloonArg, BalloonArgError};
pub use config_file::{ConfigFileError, Wrong};
pub use cpus_arg::{CpusArg, CpusArgError};
pub use credential_arg::{CredentialArg, CredentialArgError, CredentialValue};
pub use disk_arg::{DiskArg, DiskArgError};
pub use net_arg::{NetArg, NetArgError};
pub use size::{MemoryArg, SizeError};
pub use slot::AddrError;
pub use smbios_arg::{SmbiosArg, SmbiosArgError};
use typed::is_switch;
pub use typed::{ParseError, parse};
pub use vfio_arg::{VfioArg, VfioArgError};
pub use vsock_arg::{VsockArg, VsockArgError};

use clap::{Parser, Subcommand};

/// A minimal virtual machine monitor for Linux/KVM with PCI passthrough built in.
#[derive(Debug, Parser)]
#[command(
    name = "viaduct",
    version,
    max_term_width = 100,
    after_help = "Devices are named 03:10.3, 0000:03:10.3, by network interface (eth2), a virtual function by its \
                  physical one (03:00.1/vf1), or a mediated device by /sys/bus/mdev/devices/UUID.\n\n\
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
    /// List the devices that a guest can have, and what is known of them
    List(list::ListArgs),
    /// Take devices from their drivers and bind them to vfio-pci
    Bind(binding::BindArgs),
    /// Give devices back to their drivers
    Unbind(binding::UnbindArgs),
    /// Put back every driver that a run or bind displaced, also after viaduct was killed
    Restore(binding::RestoreArgs),
    /// Say whether this host is ready to assign devices, and what to type if it is not
    Doctor(doctor::DoctorArgs),
    /// Show, make, remove and set the virtual functions of a physical one
    Sriov(sriov::SriovArgs),
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use clap::CommandFactory;

    use super::*;

    /// The subcommands that the sources below `dir` tell people to type: what follows two spaces, or sudo, and `viaduct`.
    fn advised(dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                advised(&entry.path(), found);
            } else {
                let text = fs::read_to_string(entry.path()).unwrap();
                let after = ["  viaduct ", "sudo viaduct ", ", or viaduct "];
                let texts = after.iter().flat_map(|lead| text.split(lead).skip(1));
                found.extend(texts.filter_map(|rest| {
                    rest.split(|c: char| !c.is_ascii_lowercase())
                        .next()
                        .map(String::from)
                }));
            }
        }
    }

    #[test]
    fn the_readme_and_the_man_page_name_every_command_and_option() {
        let readme = include_str!("../../../README.md");
        let manual = include_str!("../../../resources/man/viaduct.1");
        let (synopsis, described) = manual.split_once(".Sh DESCRIPTION").unwrap();
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert!(readme.contains(&format!("`viaduct {name}")), "{name}");
            assert!(manual.contains(&format!(".Cm {name}\n")), "{name}");
            for option in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(readme.contains(&format!("--{option}")), "{name} --{option}");
                // The settings of sriov have one word there.
                let is_there = synopsis.contains(&format!("Fl -{option}"));
                assert!(is_there || name == "sriov", "--{option}");
                assert!(
                    described.contains(&format!(".It Fl -{option}")),
                    "--{option}"
                );
            }
        }
    }

    #[test]
    fn every_command_that_an_error_advises_exists() {
        let mut found = Vec::new();
        for krate in ["arch", "devices", "vfio", "vmm"] {
            let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(krate);
            advised(&sources.join("src"), &mut found);
        }
        found.retain(|word| !word.is_empty());
        assert!(found.iter().any(|word| word == "restore"), "{found:?}");
        for word in found {
            let exists = Cli::command().find_subcommand(&word).is_some();
            assert!(exists, "an error advises 'viaduct {word}'");
        }
    }
}
