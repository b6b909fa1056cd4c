//! Base address registers (PCI 3.0 §6.2.5).

/// Which address space a BAR is in, and how wide its register is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes this register and the next.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// What a function says of one of its BARs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarSpec {
    /// The register: 0 to 5.
    pub index: usize,
    /// Its address space.
    pub kind: BarKind,
    /// Size in bytes (or ports); a power of two.
    pub size: u64,
}
