//! The arguments of `viaduct bind`, `unbind` and `restore`.

use clap::Args;

/// Take devices from their drivers.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  viaduct bind 03:10.1 03:10.3\n  viaduct bind --group 05:01.0")]
pub struct BindArgs {
    /// Devices to bind to vfio-pci, or to the driver of its kind that was made for them
    #[arg(required = true, value_name = "DEV")]
    pub devices: Vec<String>,
    /// Everything in their IOMMU groups as well
    #[arg(long)]
    pub group: bool,
    /// Which driver of vfio-pci's kind, instead of the best one
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<String>,
    /// Take devices that the host itself is using
    #[arg(long)]
    pub force: bool,
    /// Print the steps, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Give devices back.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  viaduct unbind 03:10.3\n  viaduct unbind 03:10.3 --driver igbvf"
)]
pub struct UnbindArgs {
    /// Devices to give back
    #[arg(required = true, value_name = "DEV")]
    pub devices: Vec<String>,
    /// Everything in their IOMMU groups as well
    #[arg(long)]
    pub group: bool,
    /// The driver to bind to, instead of the one before
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<String>,
    /// Print the steps, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Put everything back.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Print the steps, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}
