//! What a function cost.

use std::sync::{Arc, atomic::Ordering};

use super::{AssignedFunction, bars::BARS};
use crate::assigned::{reset::ResetStats, trap::Counters, vga::Vga};

/// What a function cost, for `--stats`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FunctionStats {
    /// Its name on the host.
    #[serde(rename = "host")]
    pub function: String,
    /// Accesses to each BAR that made the guest exit.
    pub trapped_accesses: [u64; BARS],
    /// Of them, those to registers that share a page with the MSI-X table or the pending bits: `msix=relocate` spares them.
    pub accesses_beside_msix: u64,
    /// Accesses to its legacy VGA addresses, all of which make the guest exit.
    pub vga_accesses: u64,
    /// What a driver of the host's added to its regions, and whether the guest has it.
    pub added_regions: Vec<String>,
    /// Parts of its BARs that other assigned devices reach now (peer-to-peer DMA).
    pub peer_mappings: u64,
    /// How often such a part could not be made reachable.
    pub peer_mappings_refused: u64,
    /// How it is reset.
    pub reset: ResetStats,
}

impl AssignedFunction {
    /// What it cost until now.
    pub fn stats(&self) -> FunctionStats {
        let accesses = |counters: &Arc<Counters>| counters.accesses.load(Ordering::Relaxed);
        let beside = |counters: &Arc<Counters>| counters.beside_msix.load(Ordering::Relaxed);
        let state = self.state();
        FunctionStats {
            function: self.name.to_string(),
            accesses_beside_msix: self.counters.iter().map(beside).sum(),
            trapped_accesses: self.counters.each_ref().map(accesses),
            vga_accesses: state.vga.as_ref().map_or(0, Vga::accesses),
            added_regions: self.specific.iter().map(ToString::to_string).collect(),
            peer_mappings: self.peers.mapped(),
            peer_mappings_refused: self.peers.refused(),
            reset: state.resets.clone(),
        }
    }
}
