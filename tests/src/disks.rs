//! Disks for L1's controllers: files of the run whose content the lab knows before a guest reads it, and looks at after a guest
//! wrote to it. QEMU writes them through the runner's page cache, where the lab reads: what a guest has flushed is there.

use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::error::{Doing, Error, Result};
use crate::host::Host;

/// A disk's size; what is behind the random part is zeroes, and takes no room.
const SIZE_BYTES: u64 = 64 << 20;
/// How much of it is random, from the start: enough that no cache or retry makes a wrong read look right.
pub(crate) const RANDOM_BYTES: usize = 4 << 20;

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    name: String,
    path: PathBuf,
}

impl Disk {
    /// The disk of this name in a run's folder.
    pub(crate) fn new(name: &str, dir: &Path) -> Self {
        Self {
            name: name.to_owned(),
            path: dir.join(format!("{name}.img")),
        }
    }

    /// Makes it anew. The content follows from the name: no two disks of a machine are alike.
    pub(crate) fn make(&self) -> Result<()> {
        let doing = || format!("making the disk {}", self.path.display());
        fs::write(&self.path, random(&self.name)).doing(doing)?;
        let file = File::options().write(true).open(&self.path).doing(doing)?;
        file.set_len(SIZE_BYTES).doing(doing)
    }

    /// What QEMU knows it by: a drive whose id is the name.
    pub(crate) fn argument(&self) -> String {
        let path = self.path.display();
        format!(
            "if=none,id={},format=raw,cache=writethrough,file={path}",
            self.name
        )
    }

    /// Its content from one byte up to another.
    pub(crate) fn bytes(&self, range: Range<usize>) -> Result<Vec<u8>> {
        let doing = || format!("reading {range:?} of {}", self.path.display());
        let mut bytes = vec![0; range.len()];
        let file = File::open(&self.path).doing(doing)?;
        file.read_exact_at(&mut bytes, range.start as u64)
            .doing(doing)?;
        Ok(bytes)
    }

    /// The same as md5sum(1) says it, in the guest as well.
    pub(crate) fn md5(&self, range: Range<usize>) -> Result<String> {
        let bytes = self.bytes(range)?;
        let doing = || "summing by md5sum".to_owned();
        let mut command = Command::new("md5sum");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().doing(doing)?;
        // It says nothing before its input has ended, so that one after the other cannot block.
        let input = child.stdin.take();
        input
            .map_or(Ok(()), |mut input| input.write_all(&bytes))
            .doing(doing)?;
        let output = child.wait_with_output().doing(doing)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let sum = said.split_whitespace().next().map(str::to_owned);
        sum.ok_or_else(|| Error::Unexpected("md5sum says nothing".into()))
    }
}

/// SplitMix64, seeded by a name: the same bytes on every runner, and none that compress or repeat.
fn random(name: &str) -> Vec<u8> {
    let fold = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325, fold);
    let next = || {
        state = u64::wrapping_add(state, 0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).to_le_bytes()
    };
    std::iter::repeat_with(next)
        .take(RANDOM_BYTES / 8)
        .flatten()
        .collect()
}

impl Host {
    /// The disk that the machine's cards have under this name.
    pub(crate) fn disk(&self, name: &str) -> Disk {
        Disk::new(name, self.dir())
    }

    /// The number of flush commands that the disk of this name has received. L1 sends them only to a device with `write-cache=on`.
    pub(crate) fn flushes(&self, name: &str) -> Result<u64> {
        let all = self.monitor("query-blockstats", &json!({}))?;
        let mut disks = all.as_array().into_iter().flatten();
        let disk = disks.find(|disk| disk["device"] == name);
        let count = disk.and_then(|disk| disk["stats"]["flush_operations"].as_u64());
        count.ok_or_else(|| Error::Unexpected(format!("QEMU counts no flushes of {name}: {all}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disks_content_is_its_own_and_always_the_same() {
        let one = random("d0");
        assert_eq!(one.len(), RANDOM_BYTES);
        assert_eq!(one, random("d0"));
        assert_ne!(one, random("d1"));
    }

    #[test]
    fn what_was_written_to_a_disk_is_read_back_and_summed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new("d0", dir.path());
        disk.make().unwrap();
        assert_eq!(disk.bytes(0..8).unwrap(), &random("d0")[..8]);
        let file = File::options().write(true).open(&disk.path).unwrap();
        file.write_all_at(b"written", 5 << 20).unwrap();
        let there = 5 << 20..(5 << 20) + 7;
        assert_eq!(disk.bytes(there.clone()).unwrap(), b"written");
        // printf written | md5sum
        assert_eq!(disk.md5(there).unwrap(), "9cc26fa09ce37bc95afe01bc718836d1");
    }
}
