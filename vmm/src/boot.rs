//! What firmware and boot loader would do: kernel, initrd, command line and tables into RAM, the boot CPU to the kernel's entry.
//! Done again, from the same open files, at every reset.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use arch::{
    acpi::{self, AcpiConfig},
    boot::{
        linux::{self, CommandLineTooLong, HEAD_LEN, ImageError, SetupHeader},
        paging,
        placement::{PlaceError, Placement},
        registers::{BootRegisters, Protocol},
    },
    e820, layout,
    ram::RamRange,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// The guest's software cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be opened or read.
    #[error("{option} {}{}", path.display(), file_advice(source))]
    File {
        /// The option that named it.
        option: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is not a kernel that can be booted.
    #[error("--kernel {}\n  give a bzImage (/boot/vmlinuz-*) or an ELF vmlinux with a PVH entry", path.display())]
    Image {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        source: ImageError,
    },
    /// The command line is too long for this kernel.
    #[error("--cmdline")]
    CommandLine(#[from] CommandLineTooLong),
    /// The memory is too small.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Memory that the plan says is there is not.
    #[error("loading the guest")]
    Memory(#[from] GuestMemoryError),
}

fn file_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "\n  check the path; kernels of this host are in /boot",
        io::ErrorKind::PermissionDenied => "\n  make it readable for this user, or run as root",
        _ => "",
    }
}

/// A file that goes into guest memory.
struct Source {
    option: &'static str,
    path: PathBuf,
    file: File,
    len: u64,
}

impl Source {
    fn open(option: &'static str, path: &Path) -> Result<Self, BootError> {
        let fail = |source| BootError::File {
            option,
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(fail)?;
        let about = file.metadata().map_err(fail)?;
        if !about.is_file() {
            return Err(fail(io::Error::other("is not a regular file")));
        }
        Ok(Self {
            option,
            path: path.to_owned(),
            file,
            len: about.len(),
        })
    }

    fn fail(&self, source: io::Error) -> BootError {
        BootError::File {
            option: self.option,
            path: self.path.clone(),
            source,
        }
    }

    /// The first bytes, at most `len` of them.
    fn head(&self, len: usize) -> Result<Vec<u8>, BootError> {
        let mut head = vec![0; len.min(usize::try_from(self.len).unwrap_or(len))];
        self.file
            .read_exact_at(&mut head, 0)
            .map_err(|source| self.fail(source))?;
        Ok(head)
    }

    /// Copies `range` of the file straight into guest memory.
    fn load(&self, range: Range<u64>, memory: &GuestMemoryMmap, at: u64) -> Result<(), BootError> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(range.start))
            .map_err(|source| self.fail(source))?;
        let len = usize::try_from(range.end - range.start)
            .map_err(|_| self.fail(io::ErrorKind::FileTooLarge.into()))?;
        memory.read_exact_volatile_from(GuestAddress(at), &mut file, len)?;
        Ok(())
    }
}

/// What the guest boots, opened and found to be bootable.
pub struct Boot {
    kernel: Source,
    initrd: Option<Source>,
    header: SetupHeader,
    /// With its NUL.
    command_line: Vec<u8>,
}

impl Boot {
    /// Opens the files and looks at what they are.
    pub fn open(
        kernel: &Path,
        initrd: Option<&Path>,
        command_line: &str,
    ) -> Result<Self, BootError> {
        let kernel = Source::open("--kernel", kernel)?;
        let head = kernel.head(HEAD_LEN)?;
        let header = SetupHeader::parse(&head, kernel.len).map_err(|source| BootError::Image {
            path: kernel.path.clone(),
            source,
        })?;
        let command_line = header.command_line(command_line)?;
        let initrd = initrd
            .map(|path| Source::open("--initrd", path))
            .transpose()?;
        Ok(Self {
            kernel,
            initrd,
            header,
            command_line,
        })
    }

    /// Where everything goes in `ram`.
    pub fn place(&self, ram: &[RamRange]) -> Result<Placement, BootError> {
        let initrd_len = self.initrd.as_ref().map_or(0, |initrd| initrd.len);
        Ok(linux::place(&self.header, ram, initrd_len)?)
    }

    /// Puts everything into memory. Returns how the boot CPU starts.
    pub fn load(
        &self,
        ram: &[RamRange],
        memory: &GuestMemoryMmap,
        acpi: &AcpiConfig,
    ) -> Result<BootRegisters, BootError> {
        let placement = self.place(ram)?;
        self.kernel
            .load(self.header.payload(), memory, placement.kernel.start)?;
        if let (Some(initrd), Some(place)) = (&self.initrd, &placement.initrd) {
            initrd.load(0..initrd.len, memory, place.start)?;
        }
        let registers = BootRegisters::new(Protocol::Linux64, placement.entry);
        let zero_page = linux::zero_page(&self.header, &placement, &e820::map(ram));
        let put = |bytes: &[u8], at| memory.write_slice(bytes, GuestAddress(at));
        put(&self.command_line, layout::COMMAND_LINE.start)?;
        put(&zero_page[..], layout::ZERO_PAGE)?;
        put(&paging::tables(), layout::PAGE_TABLES.start)?;
        put(&registers.gdt(), registers.gdt_base)?;
        for (address, table) in acpi::tables(acpi).blobs {
            put(&table, address)?;
        }
        Ok(registers)
    }
}
