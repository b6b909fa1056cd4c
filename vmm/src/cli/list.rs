//! The arguments of `viaduct list`.

use clap::Args;

/// List the devices that a guest can have.
#[derive(Debug, Args)]
#[command(
    after_help = "Without the rights of root some facts are kept by the kernel: they are shown as '?'.\n\n\
                  Examples:\n  viaduct list\n  viaduct list --groups\n  viaduct list --json eth2"
)]
pub struct ListArgs {
    /// Only these
    #[arg(value_name = "DEV")]
    pub devices: Vec<String>,
    /// Every device, also bridges, which stay with the host
    #[arg(long)]
    pub all: bool,
    /// By IOMMU group: what is in one goes to one guest together
    #[arg(long, alias = "group")]
    pub groups: bool,
    /// All that is known, as JSON
    #[arg(long)]
    pub json: bool,
}
