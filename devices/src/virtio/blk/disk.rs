//! What a disk's sectors are kept in: a file, byte for byte, or a block device of the host's.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use vm_memory::{GuestMemoryMmap, VolatileMemoryError};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::{
    super::Buffer,
    SECTOR,
    lock::{self, Holder},
    request::Failed,
};

/// A file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("--disk {}\n  {advice}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
        /// What to do about it.
        advice: &'static str,
    },
    /// It is neither a file nor a block device.
    #[error("--disk {} is neither a file nor a block device\n  name one that is", .0.display())]
    Kind(PathBuf),
    /// There is not one sector in it.
    #[error(
        "--disk {path} has no room for a single sector\n  give it a size:  truncate -s 1G {path}", path = .0.display()
    )]
    Empty(PathBuf),
    /// Somebody else has it.
    #[error(
        "--disk {} is in use by {holder}\n  end that first, or have both only read it:  --disk FILE,readonly", path.display()
    )]
    Busy {
        /// Which.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
}

/// A disk that is open, and locked against other guests.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    /// Its position is where the next access goes: one thread has it.
    file: File,
    sectors: u64,
    is_readonly: bool,
    is_file: bool,
}

impl Disk {
    /// Opens a file or a block device.
    pub fn open(path: &Path, is_readonly: bool) -> Result<Self, DiskError> {
        let fail = |source: io::Error| open_error(path, is_readonly, source);
        let kind = fs::metadata(path).map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind(path.into()));
        }
        // For a block device: that the host itself has not mounted it (open(2)). Reading along does no harm.
        let is_exclusive = kind.is_block_device() && !is_readonly;
        let flags = if is_exclusive { libc::O_EXCL } else { 0 };
        let mut options = OpenOptions::new();
        options.read(true).write(!is_readonly).custom_flags(flags);
        let mut file = options.open(path).map_err(fail)?;
        lock::take(&file, !is_readonly)
            .map_err(fail)?
            .map_err(|holder| DiskError::Busy {
                path: path.into(),
                holder,
            })?;
        let len = file.seek(SeekFrom::End(0)).map_err(fail)?;
        if len % SECTOR != 0 {
            let odd = len % SECTOR;
            log::warn!(
                "--disk {}: its last {odd} bytes are no whole sector: the guest does not see them",
                path.display()
            );
        }
        match len / SECTOR {
            0 => Err(DiskError::Empty(path.into())),
            sectors => Ok(Self {
                path: path.into(),
                file,
                sectors,
                is_readonly,
                is_file: kind.is_file(),
            }),
        }
    }

    /// How many sectors of 512 bytes it has.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether nothing of it can be written.
    pub fn is_readonly(&self) -> bool {
        self.is_readonly
    }

    /// What it was opened as.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn read(
        &mut self,
        sector: u64,
        buffers: &[Buffer],
        memory: &GuestMemoryMmap,
    ) -> Result<(), Failed> {
        let (start, _) = self.place(sector, buffers)?;
        let doing = "reading it";
        self.go_to(start, doing)?;
        for buffer in buffers {
            let filled = buffer.fill(memory, &mut self.file);
            filled.map_err(|error| transfer(doing, error))?;
        }
        Ok(())
    }

    pub(super) fn write(
        &mut self,
        sector: u64,
        buffers: &[Buffer],
        memory: &GuestMemoryMmap,
    ) -> Result<(), Failed> {
        let (start, end) = self.place(sector, buffers)?;
        self.check_writable(end)?;
        let doing = "writing it";
        self.go_to(start, doing)?;
        for buffer in buffers {
            let drained = buffer.drain(memory, &mut self.file);
            drained.map_err(|error| transfer(doing, error))?;
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<(), Failed> {
        self.file.sync_data().map_err(host("flushing it"))
    }

    /// Gives the room of sectors back to the host. What they read as afterwards is nobody's promise.
    pub(super) fn discard(&mut self, sector: u64, sectors: u64) -> Result<(), Failed> {
        let (start, end) = self.span(sector, sectors)?;
        self.check_writable(end)?;
        match self.punch(FallocateMode::PunchHole, start, end) {
            Err(error) if is_unsupported(&error) => Err(Failed::Unsupported),
            punched => punched.map_err(host("discarding sectors of it")),
        }
    }

    /// Makes sectors read as zeroes; their room may go.
    pub(super) fn zero(
        &mut self,
        sector: u64,
        sectors: u64,
        may_unmap: bool,
    ) -> Result<(), Failed> {
        let (start, end) = self.span(sector, sectors)?;
        self.check_writable(end)?;
        let mode = match may_unmap {
            true => FallocateMode::PunchHole,
            false => FallocateMode::ZeroRange,
        };
        let zeroed = match self.punch(mode, start, end) {
            Err(error) if is_unsupported(&error) => self.write_zeroes(start, end),
            punched => punched,
        };
        zeroed.map_err(host("zeroing sectors of it"))
    }

    fn punch(&self, mode: FallocateMode, start: u64, end: u64) -> io::Result<()> {
        if start == end {
            return Ok(());
        }
        let keep_size = true;
        fallocate(&self.file, mode, keep_size, start, end - start)
            .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))
    }

    fn write_zeroes(&mut self, start: u64, end: u64) -> io::Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        self.file.seek(SeekFrom::Start(start))?;
        let mut left = end - start;
        while left > 0 {
            let part = usize::try_from(left).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            self.file.write_all(&ZEROES[..part])?;
            left -= part as u64;
        }
        Ok(())
    }

    /// First byte and end of what `buffers` cover from `sector` on, if that is whole sectors of this disk.
    fn place(&self, sector: u64, buffers: &[Buffer]) -> Result<(u64, u64), Failed> {
        let len: u64 = buffers.iter().map(|buffer| buffer.len as u64).sum();
        if len == 0 || !len.is_multiple_of(SECTOR) {
            return Err(Failed::Request);
        }
        self.span(sector, len / SECTOR)
    }

    fn span(&self, sector: u64, sectors: u64) -> Result<(u64, u64), Failed> {
        let end = sector.checked_add(sectors);
        let end = end.filter(|&end| end <= self.sectors);
        let end = end.ok_or(Failed::Request)?;
        // Both were bytes before they were sectors.
        Ok((sector * SECTOR, end * SECTOR))
    }

    /// A file that became shorter would grow again, with zeroes where the guest had data: better that it hears of it.
    fn check_writable(&self, end: u64) -> Result<(), Failed> {
        if self.is_readonly {
            return Err(Failed::Request);
        }
        if self.is_file {
            let doing = "writing it";
            let len = self.file.metadata().map_err(host(doing))?.len();
            if len < end {
                let source = io::Error::other("it has become shorter");
                return Err(Failed::Host { doing, source });
            }
        }
        Ok(())
    }

    fn go_to(&mut self, start: u64, doing: &'static str) -> Result<(), Failed> {
        let sought = self.file.seek(SeekFrom::Start(start));
        sought.map(drop).map_err(host(doing))
    }
}

fn open_error(path: &Path, is_readonly: bool, source: io::Error) -> DiskError {
    let advice = match source.raw_os_error() {
        Some(libc::ENOENT) => "make it:  truncate -s 1G FILE",
        Some(libc::EBUSY) => "the host itself uses it: see  lsblk  and unmount it",
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if !is_readonly => {
            "have it read only:  --disk FILE,readonly"
        }
        _ => "name a file or a block device that can be opened",
    };
    DiskError::Open {
        path: path.into(),
        source,
        advice,
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOSYS)
    )
}

fn host(doing: &'static str) -> impl Fn(io::Error) -> Failed {
    move |source| Failed::Host { doing, source }
}

fn transfer(doing: &'static str, error: VolatileMemoryError) -> Failed {
    let source = match error {
        VolatileMemoryError::IOError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            io::Error::other("it has become shorter")
        }
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    };
    Failed::Host { doing, source }
}
