//! DMA that the IOMMU refused: which device, at which address.
//!
//! The kernel tells no process of such a fault. VFIO has no interface for it, and the fault queue of iommufd is for devices that ask
//! for pages (PRI) and wait. What there is is the kernel's log (`/dev/kmsg`, Documentation/ABI/testing/dev-kmsg), so that is read
//! from the moment the machine is built, and searched for the machine's devices. The kernel rations these lines: a device that goes
//! wild is told of about ten times in five seconds, so counts are at least that many.
//!
//! What is read here is text that anybody who may write to the log can forge: it is reported, and nothing is decided by it.

mod line;

use std::{
    fmt,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
};

use devices::pci::Bdf;

use super::Host;

/// Longer than any record: reading with less room fails (EINVAL), and CONSOLE_EXT_LOG_MAX of kernel/printk is 8192.
const LONGEST_RECORD: usize = 16 << 10;
/// No more records at once: whoever else has to be listened to gets a turn.
const RECORDS_AT_ONCE: usize = 1000;

/// DMA that the IOMMU refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaFault {
    /// The device. One behind a bridge to conventional PCI cannot be told from the others there.
    pub device: Bdf,
    /// Which address it used, in the guest's physical address space; Intel's hardware tells the page.
    pub address: u64,
    /// What it wanted to do, where that is known.
    pub access: Option<Access>,
}

impl fmt::Display for DmaFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.access {
            Some(Access::Read) => "DMA read from",
            Some(Access::Write) => "DMA write to",
            None => "DMA to",
        };
        let Self {
            device, address, ..
        } = self;
        write!(
            f,
            "{device}: {what} {address:#x} refused by the IOMMU: nothing of the guest's is there for it"
        )
    }
}

/// What a device wanted to do to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Write it.
    Write,
}

/// The kernel's log, from when it was opened, as far as it is about the DMA of some devices.
pub struct FaultLog {
    log: File,
    watched: Vec<Watched>,
}

/// A device, and what it goes by on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Watched {
    device: Bdf,
    /// What its bridge answers for it as, if it has such a bridge.
    alias: Option<Bdf>,
}

impl Host {
    /// Opens the kernel's log, to learn of DMA of `devices` that is refused from now on.
    pub fn fault_log(&self, devices: &[Bdf]) -> io::Result<FaultLog> {
        let mut log = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(self.roots.dev.join("kmsg"))?;
        log.seek(SeekFrom::End(0))?;
        let watched = devices.iter().map(|&device| Watched {
            device,
            alias: self.bridge_alias(device),
        });
        Ok(FaultLog {
            log,
            watched: watched.collect(),
        })
    }

    /// A bridge from PCI Express to conventional PCI gives what comes from behind it the requester ID of function 0 of the bus there
    /// (pci_for_each_dma_alias in drivers/pci/search.c), where no device need be.
    fn bridge_alias(&self, device: Bdf) -> Option<Bdf> {
        let alias = Bdf {
            device: 0,
            function: 0,
            ..device
        };
        (device.bus != 0 && !self.pci_dir(alias).exists()).then_some(alias)
    }
}

impl FaultLog {
    /// What was refused since it was last asked. Does not wait.
    pub fn take(&mut self) -> Vec<DmaFault> {
        let mut faults = Vec::new();
        let mut record = vec![0; LONGEST_RECORD];
        for _ in 0..RECORDS_AT_ONCE {
            match self.log.read(&mut record) {
                Ok(0) => break,
                Ok(len) => faults.extend(record.get(..len).and_then(|record| self.fault(record))),
                // The kernel wrote faster than we read, and what was next is gone: the rest is still there.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        faults
    }

    fn fault(&self, record: &[u8]) -> Option<DmaFault> {
        let refused = line::parse(record)?;
        // Intel's driver leaves the segment out. A machine with several segments may have the same numbers in two of them.
        let is = |bdf: Bdf| {
            let segment = refused.segment.unwrap_or(bdf.segment);
            (segment, refused.bus, refused.device, refused.function)
                == (bdf.segment, bdf.bus, bdf.device, bdf.function)
        };
        let watched = self
            .watched
            .iter()
            .find(|one| is(one.device))
            .or_else(|| self.watched.iter().find(|one| one.alias.is_some_and(is)))?;
        Some(DmaFault {
            device: watched.device,
            address: refused.address,
            access: refused.access,
        })
    }
}

impl AsRawFd for FaultLog {
    fn as_raw_fd(&self) -> RawFd {
        self.log.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, io::Write};

    use super::{
        super::fixture::{Fixture, bdf, function},
        *,
    };

    fn say(fixture: &Fixture, line: &str) {
        let log = OpenOptions::new()
            .append(true)
            .open(fixture.path("dev/kmsg"));
        log.unwrap().write_all(line.as_bytes()).unwrap();
    }

    #[test]
    fn only_what_is_refused_to_the_machines_devices_after_it_was_built_is_told_of() {
        let fixture = Fixture::new();
        let (ours, other) = (bdf("03:10.3"), bdf("03:10.1"));
        for device in [ours, other] {
            fixture.add(function(&device.to_string()));
        }
        let line = |device: &str| {
            format!(
                "3,7,1,-;DMAR: [DMA Write NO_PASID] Request device [{device}] fault addr 0x5000"
            )
        };
        fixture.file("dev/kmsg", line("03:10.3"));
        let mut log = fixture.host().fault_log(&[ours]).unwrap();
        assert_eq!(log.take(), []);
        say(&fixture, &line("03:10.1"));
        assert_eq!(log.take(), []);
        say(&fixture, &line("03:10.3"));
        let fault = DmaFault {
            device: ours,
            address: 0x5000,
            access: Some(Access::Write),
        };
        assert_eq!(log.take(), [fault]);
        assert_eq!(log.take(), []);
    }

    #[test]
    fn a_device_behind_a_bridge_is_known_by_what_the_bridge_answers_as() {
        let fixture = Fixture::new();
        let device = fixture.add(function("05:02.0"));
        fixture.file("dev/kmsg", "");
        let mut log = fixture.host().fault_log(&[device]).unwrap();
        say(
            &fixture,
            "3,7,1,-;DMAR: [DMA Read NO_PASID] Request device [05:00.0] fault addr 0x0",
        );
        let faults = log.take();
        assert_eq!(
            (faults[0].device, faults[0].access),
            (device, Some(Access::Read))
        );
    }
}
