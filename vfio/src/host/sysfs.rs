//! Reading attributes: files of one line, directories of names, links whose last component is the answer.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

/// The attribute's text, trimmed. `None` where there is no such attribute or it cannot be read.
pub(super) fn text(path: &Path) -> Option<String> {
    // Not fs::read_to_string(): it asks for the size first, which says nothing of an attribute. What it says fits into a page
    // (Documentation/filesystems/sysfs.rst), so that one read gets it and another one its end.
    let mut text = String::with_capacity(4096);
    let file = File::open(path).ok()?;
    file.take(u64::MAX).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// The attribute's number, decimal or `0x`-hexadecimal.
pub(super) fn number(path: &Path) -> Option<u32> {
    let text = text(path)?;
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The last component of what the link points at.
pub(super) fn link_name(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// The names in a directory, sorted; none where there is no such directory.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}
