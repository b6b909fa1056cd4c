//! A device's file: its regions, interrupts and reset.

use std::{
    fs::{self, File},
    io,
    os::{fd::BorrowedFd, unix::fs::FileExt},
    sync::{Arc, Mutex},
};

use devices::{mapping::HostMapping, pci::registers::REVISION};
use vfio_bindings::bindings::vfio::{VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET};

use super::{
    HostFunction, Iommu,
    guest_link::Known,
    info::Info,
    ioctl::Request,
    iommu::{OpenDevice, lock},
    irq::{self, IrqAction, IrqIndex, IrqInfo},
    mapping::RegionMapping,
    region::{Area, RegionIndex, RegionInfo},
    reset::{self, Affected, Scope},
    unmasker::Unmasker,
};
use crate::Assignable;

/// A device cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel does not give it out: ENODEV where it is not bound to vfio-pci, EAGAIN where it is locked.
    #[error(
        "{function}: cannot be opened through VFIO\n  {}",
        open_advice(function, source)
    )]
    Open {
        /// Its name on the host.
        function: Assignable,
        /// Why not.
        source: io::Error,
    },
    /// It cannot be asked what it is.
    #[error(
        "{function}: VFIO_DEVICE_GET_INFO failed\n  see whether the kernel said why:  dmesg | tail"
    )]
    Info {
        /// Its name on the host.
        function: Assignable,
        /// Why not.
        source: io::Error,
    },
    /// It is not a PCI device.
    #[error(
        "{function}: VFIO says that it is not a PCI device\n  see which driver has it:  readlink {}/driver", function.sysfs().display()
    )]
    NotPci {
        /// Its name on the host.
        function: Assignable,
    },
}

fn open_advice(function: &Assignable, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENODEV) => format!("bind it to vfio-pci first:  viaduct bind {function}"),
        // vfio_pci_validate_vf_token()
        Some(libc::EACCES) => format!(
            "its physical function is on vfio-pci as well, so that whoever has that one has to agree; give it back to its driver:  \
             viaduct unbind $(basename $(readlink {}/physfn))",
            function.sysfs().display()
        ),
        Some(libc::EBUSY | libc::EINVAL) => {
            "it may be open already:  sudo fuser -v /dev/vfio/devices/*; or see what the kernel said:  dmesg | tail".into()
        }
        _ => "see whether the kernel said why:  dmesg | tail".to_owned(),
    }
}

/// An open device. Closing it makes vfio-pci stop its DMA, disable its interrupts and try to reset it.
pub struct Device {
    _known: Option<Known>,
    // Before `file`, of which it has a duplicate.
    unmasker: Mutex<Option<Unmasker>>,
    file: File,
    name: Assignable,
    can_reset: bool,
    region_count: u32,
    // After `file`, so that a device is closed, and its DMA stopped, before the mappings that it could reach go.
    iommu: Arc<Iommu>,
}

impl Device {
    /// `offsetof(struct vfio_device_info, …)`: argsz 0, flags 4, num_regions 8, num_irqs 12, cap_offset 16.
    const FIXED_BYTES: usize = 20;

    pub(super) fn new(
        opened: OpenDevice,
        function: &Assignable,
        iommu: Arc<Iommu>,
    ) -> Result<Self, DeviceError> {
        let request = Request::DEVICE_GET_INFO;
        let OpenDevice { known, file } = opened;
        let info = Info::fetch(&file, request, Self::FIXED_BYTES, None).map_err(|source| {
            DeviceError::Info {
                function: function.clone(),
                source,
            }
        })?;
        let flags = info.u32_at(4);
        if flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(DeviceError::NotPci {
                function: function.clone(),
            });
        }
        Ok(Self {
            _known: known,
            unmasker: Mutex::default(),
            file,
            name: function.clone(),
            can_reset: flags & VFIO_DEVICE_FLAGS_RESET != 0,
            region_count: info.u32_at(8),
            iommu,
        })
    }
}

impl Device {
    /// Unmasks the pin upon `eventfd` by a thread of ours.
    fn unmask_upon(&self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        let file = self.file.try_clone()?;
        let unmasker = Unmasker::start(eventfd, move || {
            let unmasked = irq::act(&file, IrqIndex::Intx, IrqAction::Unmask, 0, 1);
            if let Err(error) = unmasked {
                log::debug!("the INTx pin cannot be unmasked: {error}");
            }
        });
        *lock(&self.unmasker) = Some(unmasker?);
        Ok(())
    }

    /// Whether something reads as other than all-ones in its configuration space, of what vfio-pci asks the device itself.
    fn answers(&self) -> bool {
        let mut class = [0xff; 4];
        let region = RegionInfo::fetch(&self.file, RegionIndex::CONFIG);
        let read = region.and_then(|region| self.read(&region, REVISION as u64, &mut class));
        read.is_ok() && class != [0xff; 4]
    }
}

/// Where in the device's file an access to a region is; an error if it would leave the region.
fn position(region: &RegionInfo, offset: u64, len: usize) -> io::Result<u64> {
    let end = offset.checked_add(len as u64);
    end.filter(|&end| end <= region.size)
        .and_then(|_| region.file_offset.checked_add(offset))
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

impl HostFunction for Device {
    fn region_count(&self) -> u32 {
        self.region_count
    }

    fn region(&self, index: RegionIndex) -> io::Result<RegionInfo> {
        match RegionInfo::fetch(&self.file, index) {
            // How vfio-pci says that there is no ROM, or no VGA.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Ok(RegionInfo::nothing(index))
            }
            answer => answer,
        }
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let at = position(region, offset, data.len())?;
        self.file.read_exact_at(data, at)
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = position(region, offset, data.len())?;
        self.file.write_all_at(data, at)
    }

    fn map(&self, region: &RegionInfo, area: Area) -> io::Result<Arc<dyn HostMapping>> {
        Ok(Arc::new(RegionMapping::new(&self.file, region, area)?))
    }

    fn irq(&self, index: IrqIndex) -> io::Result<IrqInfo> {
        irq::fetch(&self.file, index)
    }

    fn arm(
        &self,
        index: IrqIndex,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> io::Result<()> {
        irq::set_eventfds(&self.file, index, IrqAction::Trigger, start, eventfds)
    }

    fn unmask_on(&self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        let action = IrqAction::Unmask;
        let result = irq::set_eventfds(&self.file, IrqIndex::Intx, action, 0, &[Some(eventfd)]);
        match result {
            // Not by an eventfd.
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => self.unmask_upon(eventfd),
            other => other,
        }
    }

    fn signal(&self, index: IrqIndex, vector: u32) -> io::Result<()> {
        irq::act(&self.file, index, IrqAction::Trigger, vector, 1)
    }

    fn disarm(&self, index: IrqIndex) -> io::Result<()> {
        if index == IrqIndex::Intx {
            drop(lock(&self.unmasker).take());
        }
        irq::act(&self.file, index, IrqAction::Trigger, 0, 0)
    }

    fn can_reset(&self) -> bool {
        self.can_reset
    }

    fn reset_methods(&self) -> Vec<String> {
        let methods = fs::read_to_string(self.name.sysfs().join("reset_method"));
        let methods = methods.unwrap_or_default();
        methods.split_whitespace().map(str::to_owned).collect()
    }

    fn reset(&self) -> io::Result<()> {
        reset::function(&self.file)
    }

    fn hot_reset_scope(&self) -> io::Result<Vec<Affected>> {
        let scope = Scope::fetch(&self.file)?;
        Ok(scope.affected(&self.iommu.groups()?))
    }

    fn hot_reset(&self) -> io::Result<()> {
        let scope = Scope::fetch(&self.file)?;
        let groups = self.iommu.groups()?;
        // A bus that can be asked about can be reset. ENOTTY then says that it was, and that the port above did not report its link as
        // active within a second (pci_bridge_wait_for_secondary_bus in drivers/pci/pci.c), which some ports never do.
        match reset::bus(&self.file, &scope.witnesses(&groups)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) && self.answers() => {
                let name = &self.name;
                log::debug!(
                    "{name}: its bus is reset, but the port above does not say that its link is up"
                );
                Ok(())
            }
            reset => reset,
        }
    }
}
