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
        linux::{self, CommandLineTooLong, HEAD_LEN, Screen, SetupHeader},
        paging,
        placement::{PlaceError, Placement},
        pvh,
        registers::{BootRegisters, Protocol},
        reset_vector::{self, RESET_VECTOR},
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
        #[source]
        reason: ImageError,
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

/// What is wrong with a kernel image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A bzImage, or nothing known.
    #[error(transparent)]
    BzImage(#[from] linux::ImageError),
    /// An ELF file.
    #[error(transparent)]
    Elf(#[from] pvh::ImageError),
}

/// Linux copies no more of a PVH command line (COMMAND_LINE_SIZE in arch/x86/include/asm/setup.h, less the NUL).
const ELF_COMMAND_LINE_MAX: usize = 2047;

fn file_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "\n  check the path; kernels of this host are in /boot",
        io::ErrorKind::InvalidInput => {
            "\n  give the path of a file; kernels of this host are in /boot"
        }
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
            return Err(fail(io::Error::new(
                io::ErrorKind::InvalidInput,
                "is not a regular file",
            )));
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

    /// The bytes of `range`, as far as the file has them.
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>, BootError> {
        let len = range.end.min(self.len).saturating_sub(range.start);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.file
            .read_exact_at(&mut bytes, range.start)
            .map_err(|source| self.fail(source))?;
        Ok(bytes)
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

/// The kinds of kernel, with what their headers say.
enum Kernel {
    BzImage(SetupHeader),
    Elf { image: pvh::Image, entry: u64 },
}

impl Kernel {
    fn parse(file: &Source) -> Result<Self, BootError> {
        let damaged = |reason: ImageError| BootError::Image {
            path: file.path.clone(),
            reason,
        };
        let head = file.read(0..HEAD_LEN.max(pvh::HEAD_LEN) as u64)?;
        if !pvh::is_elf(&head) {
            let header = SetupHeader::parse(&head, file.len);
            return header
                .map(Self::BzImage)
                .map_err(|reason| damaged(reason.into()));
        }
        let image = pvh::Image::parse(&head, file.len).map_err(|reason| damaged(reason.into()))?;
        let notes = image.notes().iter().map(|range| file.read(range.clone()));
        let notes: Vec<Vec<u8>> = notes.collect::<Result<_, _>>()?;
        let entry = image
            .entry(&notes)
            .map_err(|reason| damaged(reason.into()))?;
        Ok(Self::Elf { image, entry })
    }

    /// The command line as it goes to memory, with its NUL.
    fn command_line(&self, text: &str) -> Result<Vec<u8>, CommandLineTooLong> {
        match self {
            Self::BzImage(header) => header.command_line(text),
            Self::Elf { .. } if text.len() > ELF_COMMAND_LINE_MAX => Err(CommandLineTooLong {
                len: text.len(),
                max: ELF_COMMAND_LINE_MAX,
            }),
            Self::Elf { .. } => Ok([text.as_bytes(), &[0]].concat()),
        }
    }

    fn place(&self, ram: &[RamRange], initrd_len: u64) -> Result<Placement, PlaceError> {
        match self {
            Self::BzImage(header) => linux::place(header, ram, initrd_len),
            Self::Elf { image, entry } => pvh::place(image, *entry, ram, initrd_len),
        }
    }

    /// Copies the kernel's bytes to where `placement` has it.
    fn load(
        &self,
        file: &Source,
        memory: &GuestMemoryMmap,
        placement: &Placement,
    ) -> Result<(), BootError> {
        match self {
            Self::BzImage(header) => file.load(header.payload(), memory, placement.kernel.start),
            Self::Elf { image, .. } => image.segments().iter().try_for_each(|segment| {
                file.load(segment.file.clone(), memory, segment.guest.start)?;
                // Memory is zero at first, but not at a reset.
                let loaded = segment.file.end - segment.file.start;
                Ok(clear(
                    memory,
                    segment.guest.start + loaded..segment.guest.end,
                )?)
            }),
        }
    }

    /// The block of facts that the kernel finds, and the registers that it finds it by.
    /// PVH's facts have no place for a `screen`.
    fn hand_over(
        &self,
        placement: &Placement,
        ram: &[RamRange],
        screen: Option<&Screen>,
    ) -> (u64, Vec<u8>, BootRegisters) {
        let map = e820::map(ram);
        match self {
            Self::BzImage(header) => (
                layout::ZERO_PAGE,
                linux::zero_page(header, placement, &map, screen).to_vec(),
                BootRegisters::new(Protocol::Linux64, placement.entry),
            ),
            Self::Elf { .. } => (
                layout::PVH_START_INFO.start,
                pvh::start_info(placement, &map),
                BootRegisters::new(Protocol::Pvh32, placement.entry),
            ),
        }
    }
}

fn clear(memory: &GuestMemoryMmap, range: Range<u64>) -> Result<(), GuestMemoryError> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut at = range.start;
    while at < range.end {
        let len = usize::try_from(range.end - at)
            .unwrap_or(usize::MAX)
            .min(ZEROS.len());
        memory.write_slice(&ZEROS[..len], GuestAddress(at))?;
        at += len as u64;
    }
    Ok(())
}

/// What the guest boots, opened and found to be bootable.
pub struct Boot {
    file: Source,
    kernel: Kernel,
    initrd: Option<Source>,
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
        let file = Source::open("--kernel", kernel)?;
        let kernel = Kernel::parse(&file)?;
        let command_line = kernel.command_line(command_line)?;
        let initrd = initrd
            .map(|path| Source::open("--initrd", path))
            .transpose()?;
        Ok(Self {
            file,
            kernel,
            initrd,
            command_line,
        })
    }

    /// Where everything goes in `ram`.
    pub fn place(&self, ram: &[RamRange]) -> Result<Placement, BootError> {
        let initrd_len = self.initrd.as_ref().map_or(0, |initrd| initrd.len);
        Ok(self.kernel.place(ram, initrd_len)?)
    }

    /// Puts everything into memory; `screen` is a display that shows something already. Returns how the boot CPU starts.
    pub fn load(
        &self,
        ram: &[RamRange],
        memory: &GuestMemoryMmap,
        acpi: &AcpiConfig,
        screen: Option<&Screen>,
    ) -> Result<BootRegisters, BootError> {
        let placement = self.place(ram)?;
        self.kernel.load(&self.file, memory, &placement)?;
        if let (Some(initrd), Some(place)) = (&self.initrd, &placement.initrd) {
            initrd.load(0..initrd.len, memory, place.start)?;
        }
        let (facts_at, facts, registers) = self.kernel.hand_over(&placement, ram, screen);
        let put = |bytes: &[u8], at| memory.write_slice(bytes, GuestAddress(at));
        put(&facts, facts_at)?;
        put(&self.command_line, layout::COMMAND_LINE.start)?;
        put(&paging::tables(), layout::PAGE_TABLES.start)?;
        put(&registers.gdt(), registers.gdt_base)?;
        put(&reset_vector::code(), RESET_VECTOR)?;
        for (address, table) in acpi::tables(acpi).blobs {
            put(&table, address)?;
        }
        Ok(registers)
    }
}
