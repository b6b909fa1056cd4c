//! The arguments of `viaduct doctor`.

use clap::Args;

/// Say whether the host is ready.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 ready, 1 not ready, 2 bad usage.\n\nExample:\n  viaduct doctor"
)]
pub struct DoctorArgs {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}
