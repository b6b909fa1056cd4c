//! The "newc" cpio archive that the kernel unpacks as its initial file system, after
//! Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. Uncompressed: unpacking in emulation costs
//! more than reading.

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;
const CHARACTER: u32 = 0o020_600;

/// An archive in the making. Paths have no leading slash; a folder comes before what is in it.
#[derive(Debug, Default)]
pub(super) struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
    folders: std::collections::BTreeSet<String>,
}

impl Cpio {
    /// A folder, and those above it.
    pub(super) fn folder(&mut self, path: &str) {
        if path.is_empty() || self.folders.contains(path) {
            return;
        }
        self.folder(path.rsplit_once('/').map_or("", |(above, _)| above));
        self.folders.insert(path.to_owned());
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// A file with its permission bits, and the folders above it.
    pub(super) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.folder(path.rsplit_once('/').map_or("", |(above, _)| above));
        self.entry(path, FILE | permissions, (0, 0), content);
    }

    /// A symbolic link, and the folders above it.
    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        self.folder(path.rsplit_once('/').map_or("", |(above, _)| above));
        self.entry(path, SYMLINK, (0, 0), target.as_bytes());
    }

    /// A character device.
    pub(super) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.folder(path.rsplit_once('/').map_or("", |(above, _)| above));
        self.entry(path, CHARACTER, (major, minor), &[]);
    }

    /// The archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        // Sizes are 32-bit fields; nothing in an initial file system comes near that.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        let (major, minor) = device;
        // inode, mode, uid, gid, links, mtime, size, device (2), rdev (2), name size, checksum (0 in "newc").
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_the_archive_ends_with_its_trailer() {
        let mut cpio = Cpio::default();
        cpio.file("a/b", 0o644, b"hello");
        let bytes = cpio.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        // The folder's entry is a header of 110 bytes and the name, padded to 112; the file's starts there.
        assert_eq!(&bytes[112..118], b"070701");
        assert_eq!(&bytes[112 + 54..112 + 62], b"00000005");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }

    #[test]
    fn a_folder_is_written_once() {
        let mut cpio = Cpio::default();
        cpio.file("d/one", 0o644, b"");
        cpio.file("d/two", 0o644, b"");
        assert_eq!(cpio.entries, 3);
    }
}
