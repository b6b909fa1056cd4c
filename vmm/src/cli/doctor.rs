//! The arguments of `viaduct doctor`.

use clap::Args;

/// Say whether the host is ready.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 ready, 1 not ready, 2 bad usage.\n\nExamples:\n  viaduct doctor\n  viaduct doctor 03:10.3"
)]
pub struct DoctorArgs {
    /// Devices to look at as well; several are looked at as going to one guest
    #[arg(value_name = "DEV")]
    pub devices: Vec<String>,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}
