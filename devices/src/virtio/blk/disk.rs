//! What a disk's sectors are kept in: a file, byte for byte, or a block device of the host's.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use vm_memory::{GuestMemoryMmap, VolatileMemoryError};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::{
    super::{Buffer, Chain},
    SECTOR,
    direct::{self, Aligned, Bounced},
    lock::{self, Holder},
    request::{Failed, Request},
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

/// How a disk is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    /// Only to be read.
    pub is_readonly: bool,
    /// Past the host's page cache.
    pub is_direct: bool,
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
    /// What places, lengths and buffers have to be multiples of, past the page cache; through it nothing has to.
    align: Option<usize>,
}

impl Disk {
    /// Opens a file or a block device.
    pub fn open(path: &Path, access: Access) -> Result<Self, DiskError> {
        let is_readonly = access.is_readonly;
        let fail = |source: io::Error| open_error(path, access, source);
        let kind = fs::metadata(path).map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind(path.into()));
        }
        // For a block device: that the host itself has not mounted it (open(2)). Reading along does no harm.
        let is_exclusive = kind.is_block_device() && !is_readonly;
        let exclusive = if is_exclusive { libc::O_EXCL } else { 0 };
        let direct = if access.is_direct { libc::O_DIRECT } else { 0 };
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(!is_readonly)
            .custom_flags(exclusive | direct);
        let mut file = options.open(path).map_err(fail)?;
        lock::take(&file, !is_readonly)
            .map_err(fail)?
            .map_err(|holder| DiskError::Busy {
                path: path.into(),
                holder,
            })?;
        let align = access.is_direct.then(|| direct::alignment(&file));
        let align = align.transpose().map_err(fail)?;
        let len = file.seek(SeekFrom::End(0)).map_err(fail)?;
        let odd = len % align.map_or(SECTOR, |align| align as u64);
        if odd != 0 {
            log::warn!(
                "--disk {}: its last {odd} bytes are no whole sector: the guest does not see them",
                path.display()
            );
        }
        match (len - odd) / SECTOR {
            0 => Err(DiskError::Empty(path.into())),
            sectors => Ok(Self {
                path: path.into(),
                file,
                sectors,
                is_readonly,
                is_file: kind.is_file(),
                align,
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

    /// What its blocks are, in bytes, where that is more than a sector.
    pub(super) fn block(&self) -> Option<u32> {
        let align = self.align.and_then(|align| u32::try_from(align).ok());
        align.filter(|&align| u64::from(align) > SECTOR)
    }

    #[cfg(test)]
    pub(super) fn pretend_aligned(&mut self, align: usize) {
        self.align = Some(align);
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Where in the file a request for data begins that could be done as it stands; a flush begins nowhere in particular.
    pub(super) fn start_of(&self, request: Option<Request>, chain: &Chain) -> Option<u64> {
        let (sector, buffers) = match request? {
            Request::Flush => return Some(0),
            Request::Read { sector } => (sector, &chain.writable),
            Request::Write { sector } => (sector, &chain.readable),
            Request::Identify | Request::Discard | Request::WriteZeroes => return None,
        };
        let (start, end) = self.place(sector, buffers).ok()?;
        if let Some(Request::Write { .. }) = request {
            self.check_writable(end).ok()?;
        }
        self.bounces(buffers).is_none().then_some(start)
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
        let (start, end) = self.place(sector, buffers)?;
        let doing = "reading it";
        if let Some(align) = self.bounces(buffers) {
            let mut bounced = Bounced::new(&self.file, align, start..end);
            let mut all = buffers.iter();
            return all
                .try_for_each(|buffer| buffer.fill(memory, &mut bounced))
                .map_err(|error| transfer(doing, error));
        }
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
        if let Some(align) = self.bounces(buffers) {
            let mut bounced = Bounced::new(&self.file, align, start..end);
            let mut all = buffers.iter();
            all.try_for_each(|buffer| buffer.drain(memory, &mut bounced))
                .map_err(|error| transfer(doing, error))?;
            return bounced.finish().map_err(host(doing));
        }
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

    fn write_zeroes(&self, mut at: u64, end: u64) -> io::Result<()> {
        const ZEROES: usize = 64 << 10;
        let mut zeroes = Aligned::new(self.align.unwrap_or(1), ZEROES);
        while at < end {
            let part = usize::try_from(end - at).map_or(ZEROES, |left| left.min(ZEROES));
            self.file.write_all_at(&zeroes.bytes()[..part], at)?;
            at += part as u64;
        }
        Ok(())
    }

    /// What the memory has to be aligned to that these buffers, which are not, are read and written through.
    fn bounces(&self, buffers: &[Buffer]) -> Option<usize> {
        let align = self.align?;
        // RAM begins at pages, the guest's and ours.
        let is_aligned = |buffer: &Buffer| {
            buffer.address.0.is_multiple_of(align as u64) && buffer.len.is_multiple_of(align)
        };
        (!buffers.iter().all(is_aligned)).then_some(align)
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
        let (start, end) = (sector * SECTOR, end * SECTOR);
        let block = self.align.map_or(SECTOR, |align| align as u64);
        match start.is_multiple_of(block) && end.is_multiple_of(block) {
            true => Ok((start, end)),
            false => Err(Failed::Request),
        }
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

fn open_error(path: &Path, access: Access, source: io::Error) -> DiskError {
    let advice = match source.raw_os_error() {
        Some(libc::ENOENT) => "make it:  truncate -s 1G FILE",
        Some(libc::EBUSY) => "the host itself uses it: see  lsblk  and unmount it",
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if !access.is_readonly => {
            "have it read only:  --disk FILE,readonly"
        }
        Some(libc::EINVAL) if access.is_direct => {
            "its file system has no way past the page cache: leave direct=on out"
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
