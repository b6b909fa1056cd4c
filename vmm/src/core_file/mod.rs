//! What is left of a guest that died, for crash(8), makedumpfile(8) and gdb(1): its memory and its processors' registers in an ELF core
//! file, with what its kernel says of itself (VMCOREINFO), without which nobody can make sense of the rest.

mod elf;

pub use elf::Cpu;

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use arch::ram::RamRange;
use devices::fw_cfg::Note;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use self::elf::Head;
use crate::publish;

/// How much is looked at at once. What of it is zero leaves a hole: most of a guest's memory often is.
const PIECE: usize = 64 << 10;
/// Linux's note has a page (VMCOREINFO_BYTES of include/linux/vmcore_info.h) and its header.
const MOST_NOTE: usize = 64 << 10;
const VMCOREINFO: &[u8] = b"VMCOREINFO\0";

/// The file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CoreFileError {
    /// The host's file system.
    #[error("--core {}: {source}\n  name a file on a disk with room for the guest's memory", path.display())]
    File {
        /// Where it was to be.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody did not want to wait for it.
    #[error("--core {}: ended by {how} before it was whole; nothing is left of it", path.display())]
    Interrupted {
        /// Where it was to be.
        path: PathBuf,
        /// By what.
        how: &'static str,
    },
}

/// Why writing ended early.
enum Early {
    File(io::Error),
    Interrupted(&'static str),
}

impl From<io::Error> for Early {
    fn from(source: io::Error) -> Self {
        Self::File(source)
    }
}

/// A guest whose processors have stopped.
pub struct Remains<'a> {
    /// Its memory.
    pub memory: &'a GuestMemoryMmap,
    /// Where that is.
    pub ranges: &'a [RamRange],
    /// Its processors, in their order.
    pub cpus: Vec<Cpu>,
    /// Where its kernel describes itself, if it has told.
    pub note: Option<Note>,
}

impl Remains<'_> {
    /// Writes them to `path`, unless `interrupted` says in between that somebody wants out.
    pub fn write(
        &self,
        path: &Path,
        mut interrupted: impl FnMut() -> Option<&'static str>,
    ) -> Result<(), CoreFileError> {
        let head = Head::of(self.ranges, &self.notes());
        let written = publish::publish(path, true, |file| {
            file.set_len(head.len)?;
            file.write_all_at(&head.bytes, 0)?;
            for (range, place) in self.ranges.iter().zip(&head.places) {
                self.write_range(file, range, *place, &mut interrupted)?;
            }
            Ok(())
        });
        let path = path.to_owned();
        written.map_err(|early| match early {
            Early::File(source) => CoreFileError::File { path, source },
            Early::Interrupted(how) => CoreFileError::Interrupted { path, how },
        })
    }

    fn write_range(
        &self,
        file: &File,
        range: &RamRange,
        place: u64,
        interrupted: &mut impl FnMut() -> Option<&'static str>,
    ) -> Result<(), Early> {
        let mut piece = vec![0; PIECE];
        let mut done = 0;
        while done < range.len {
            if let Some(how) = interrupted() {
                return Err(Early::Interrupted(how));
            }
            let left = usize::try_from(range.len - done).unwrap_or(PIECE);
            let part = &mut piece[..left.min(PIECE)];
            let from = GuestAddress(range.guest + done);
            let read = self.memory.read_slice(part, from);
            read.map_err(io::Error::other)?;
            if part.iter().any(|&byte| byte != 0) {
                file.write_all_at(part, place + done)?;
            }
            done += part.len() as u64;
        }
        Ok(())
    }

    fn notes(&self) -> Vec<u8> {
        let cpus = (0..).zip(&self.cpus);
        let mut notes: Vec<u8> = cpus
            .flat_map(|(number, cpu)| elf::prstatus(number, cpu))
            .collect();
        notes.extend(self.kernels_note().unwrap_or_default());
        notes
    }

    /// What the guest's kernel says of itself. It is the guest's word for where that is, so it is taken only if it is what it should be.
    fn kernels_note(&self) -> Option<Vec<u8>> {
        let Note { address, len } = self.note?;
        let mut bytes = vec![0; usize::try_from(len).ok()?.min(MOST_NOTE)];
        let read = self.memory.read_slice(&mut bytes, address);
        let note = elf::first_note(&bytes, VMCOREINFO).filter(|_| read.is_ok());
        if note.is_none() {
            log::warn!(
                "at {:#x} is no note of the guest's kernel, where it said there is",
                address.0
            );
        }
        note.map(<[u8]>::to_vec)
    }
}

#[cfg(test)]
mod tests;
