//! `cargo lab bench`: Viaduct beside QEMU's microvm in one L1, with the same kernel, initial file system, memory and devices.

mod beside;
pub(crate) mod bind;
pub(crate) mod cards;
pub(crate) mod disk;
pub(crate) mod login;
pub(crate) mod net;
pub(crate) mod start;

/// A ratio of counts, of which only the first few digits mean anything.
fn ratio(ours: u64, theirs: u64) -> f64 {
    let float = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    float(ours) / float(theirs)
}
