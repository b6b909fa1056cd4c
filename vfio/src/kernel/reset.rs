//! Reset, of a function alone and of the bus (or hot-plug slot) that it is on, with every function there: a hot reset.
//!
//! A hot reset the kernel lets only somebody do that who owns all of them (`struct vfio_pci_hot_reset_info`, `struct vfio_pci_hot_reset`). How
//! ownership is shown depends on how the device was opened, and the kernel's answer says which it is: by the files of the groups,
//! or, for a device that is bound to an iommufd, by that binding alone.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
    time::Duration,
};

use devices::pci::{Bdf, Slot};
use vfio_bindings::bindings::vfio::VFIO_PCI_HOT_RESET_FLAG_DEV_ID;

use super::{
    info::read_u32,
    ioctl::{self, Request},
};
use crate::{Assignable, host};

/// `VFIO_PCI_DEVID_NOT_OWNED`: a device of somebody else's, or one without a VFIO driver.
const NOT_OWNED: u32 = u32::MAX;
/// `offsetof(struct vfio_pci_hot_reset_info, devices)`: argsz 0, flags 4, count 8.
const HEADER_BYTES: usize = 12;
/// `sizeof(struct vfio_pci_dependent_device)`: group or device ID 0, segment 4, bus 6, devfn 7.
const ENTRY_BYTES: usize = 8;
/// More functions than most buses have; with more the kernel says how many.
const USUAL_FUNCTIONS: usize = 16;
/// A guard against a kernel that asks for ever more: every function of every bus of a segment.
const MOST_FUNCTIONS: usize = 1 << 16;
/// Functions can come between two questions (a virtual function is made), but not for ever.
const QUESTIONS: usize = 4;

/// How often a reset is tried, with a pause between that doubles from a millisecond on: a quarter of a second in all. Who resets a
/// function has to give it 100 ms anyway (PCIe 6.0 §6.6.2), so a guest that waits for this one loses little.
const TRIES: u32 = 9;

/// Resets the function of `device` by the best way that it has alone.
pub(super) fn function(device: impl AsFd) -> io::Result<()> {
    patiently(&[libc::EAGAIN], || {
        ioctl::with_value(device.as_fd(), Request::DEVICE_RESET, 0).map(drop)
    })
}

/// Resets the bus of `device`, given the files of all groups that are on it; none, for a device that is bound to an iommufd.
pub(super) fn bus(device: impl AsFd, groups: &[BorrowedFd<'_>]) -> io::Result<()> {
    // EBUSY where a page of a BAR is just being mapped.
    patiently(&[libc::EAGAIN, libc::EBUSY], || {
        ioctl::pci_hot_reset(device.as_fd(), groups)
    })
}

/// The kernel resets no device that somebody has locked, and does not wait for it either, but fails with one of `locked`. Devices are
/// locked while somebody writes to sysfs or a driver probes next door, and nothing tells when that is over; hence pauses, and an
/// end to them.
pub(super) fn patiently<T>(
    locked: &[i32],
    mut reset: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let mut pause = Duration::from_millis(1);
    for _ in 1..TRIES {
        match reset() {
            Err(error) if error.raw_os_error().is_some_and(|is| locked.contains(&is)) => {
                thread::sleep(pause);
                pause *= 2;
            }
            done => return done,
        }
    }
    reset()
}

/// A function that a hot reset would reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affected {
    /// Its address.
    pub function: Bdf,
    /// The driver that has it.
    pub driver: Option<String>,
    /// It leads to another bus.
    pub is_bridge: bool,
    /// Its group, or the function itself, is this machine's.
    pub is_held: bool,
}

impl Affected {
    /// Whether it may be reset by this machine. In a group of ours there can be functions that no driver has, or only one that does
    /// no DMA: the kernel resets none that is not on a VFIO driver.
    pub fn is_ours(&self) -> bool {
        self.is_held && self.driver.as_deref().is_some_and(host::is_vfio)
    }
}

/// The kernel's answer to which functions a hot reset would reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    /// Ownership is a matter of device IDs, not of groups.
    by_device_id: bool,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// Its group, or its ID in the iommufd.
    id: u32,
    function: Bdf,
}

impl Scope {
    /// Asks the kernel. Empty where there is no such reset: on a root bus, or for what is no PCI function of the host's.
    pub(super) fn fetch(device: impl AsFd) -> io::Result<Self> {
        let mut room = USUAL_FUNCTIONS;
        for _ in 0..QUESTIONS {
            let mut bytes = vec![0; HEADER_BYTES + room * ENTRY_BYTES];
            let request = Request::DEVICE_GET_PCI_HOT_RESET_INFO;
            let asked = ioctl::with_bytes(device.as_fd(), request, &mut bytes);
            match asked.map_err(|error| (error.raw_os_error(), error)) {
                Ok(_) => return Ok(Self::parse(&bytes)),
                // The bus was changing.
                Err((Some(libc::EAGAIN), _)) => {}
                Err((Some(libc::ENOSPC), _)) => room = count(&bytes).min(MOST_FUNCTIONS),
                Err((Some(libc::ENODEV | libc::ENOTTY), _)) => return Ok(Self::nothing()),
                Err((_, error)) => return Err(error),
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    fn nothing() -> Self {
        Self {
            by_device_id: false,
            entries: Vec::new(),
        }
    }

    fn parse(bytes: &[u8]) -> Self {
        let flags = read_u32(bytes, 4).unwrap_or(0);
        let entries = bytes.get(HEADER_BYTES..).unwrap_or_default();
        let entries = entries.chunks_exact(ENTRY_BYTES).take(count(bytes));
        Self {
            by_device_id: flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID != 0,
            entries: entries.filter_map(Entry::parse).collect(),
        }
    }

    /// The functions, of which those are held that are in one of `groups`, or in our iommufd.
    pub(super) fn affected<T>(&self, groups: &[(u32, T)]) -> Vec<Affected> {
        let affected = |entry: &Entry| Affected {
            function: entry.function,
            driver: driver_of(entry.function),
            is_bridge: is_bridge(entry.function),
            is_held: match self.by_device_id {
                true => entry.id != NOT_OWNED,
                false => groups.iter().any(|(number, _)| *number == entry.id),
            },
        };
        self.entries.iter().map(affected).collect()
    }

    /// The files of those of `groups` that are in it, which show that all of it is ours. Not of others: the kernel takes no more
    /// files than there are functions. None where the device's own file does.
    pub(super) fn witnesses<'a>(&self, groups: &'a [(u32, OwnedFd)]) -> Vec<BorrowedFd<'a>> {
        let is_in = |number: u32| self.entries.iter().any(|entry| entry.id == number);
        let groups = groups.iter().filter(|_| !self.by_device_id);
        let groups = groups.filter(|(number, _)| is_in(*number));
        groups.map(|(_, file)| file.as_fd()).collect()
    }
}

impl Entry {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d, seg_low, seg_high, bus, devfn] = *bytes.first_chunk::<ENTRY_BYTES>()?;
        let slot = Slot::from_devfn(devfn);
        Some(Self {
            id: u32::from_ne_bytes([a, b, c, d]),
            function: Bdf {
                segment: u16::from_ne_bytes([seg_low, seg_high]).into(),
                bus,
                device: slot.device,
                function: slot.function,
            },
        })
    }
}

fn count(bytes: &[u8]) -> usize {
    let count = read_u32(bytes, 8).and_then(|count| usize::try_from(count).ok());
    count.unwrap_or(0)
}

fn driver_of(function: Bdf) -> Option<String> {
    let link = Assignable::Function(function).sysfs().join("driver");
    let driver = fs::read_link(link).ok()?;
    Some(driver.file_name()?.to_str()?.to_owned())
}

/// By its class, 0604 and 0609 in the upper 16 of 24 bits.
fn is_bridge(function: Bdf) -> bool {
    let class = Assignable::Function(function).sysfs().join("class");
    let class = fs::read_to_string(class).unwrap_or_default();
    class.starts_with("0x0604") || class.starts_with("0x0609")
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd};

    use super::*;

    fn answer(flags: u32, count: u32, entries: &[(u32, u8, u8)]) -> Vec<u8> {
        let mut bytes: Vec<u8> = [0, flags, count]
            .iter()
            .flat_map(|word: &u32| word.to_ne_bytes())
            .collect();
        for &(id, bus, devfn) in entries {
            bytes.extend(id.to_ne_bytes());
            bytes.extend([0, 0, bus, devfn]);
        }
        bytes
    }

    fn held(scope: &Scope, groups: &[u32]) -> Vec<(String, bool)> {
        let groups: Vec<_> = groups.iter().map(|&number| (number, ())).collect();
        let affected = scope.affected(&groups).into_iter();
        affected
            .map(|one| (one.function.to_string(), one.is_held))
            .collect()
    }

    #[test]
    fn a_device_that_is_locked_is_tried_again_but_not_for_ever() {
        let after = |mut locked: u32, errno| {
            let mut tries = 0;
            let done = patiently(&[libc::EAGAIN, libc::EBUSY], || {
                tries += 1;
                match locked.checked_sub(1) {
                    Some(left) => {
                        locked = left;
                        Err(io::Error::from_raw_os_error(errno))
                    }
                    None => Ok(()),
                }
            });
            (tries, done.map_err(|error| error.raw_os_error()))
        };
        assert_eq!(after(3, libc::EAGAIN), (4, Ok(())));
        assert_eq!(after(1, libc::EBUSY), (2, Ok(())));
        assert_eq!(after(99, libc::EAGAIN), (TRIES, Err(Some(libc::EAGAIN))));
        assert_eq!(after(99, libc::ENODEV), (1, Err(Some(libc::ENODEV))));
    }

    #[test]
    fn functions_are_held_with_their_group() {
        let scope = Scope::parse(&answer(0, 3, &[(17, 5, 8), (17, 5, 0x10), (20, 5, 0x1b)]));
        let files: Vec<(u32, OwnedFd)> = [17, 3, 20]
            .map(|number| (number, File::open("/dev/null").unwrap().into()))
            .into();
        let witnesses = scope.witnesses(&files).into_iter();
        let witnesses: Vec<_> = witnesses.map(|fd| fd.as_raw_fd()).collect();
        assert_eq!(witnesses, [files[0].1.as_raw_fd(), files[2].1.as_raw_fd()]);
        let expected = [
            ("0000:05:01.0", true),
            ("0000:05:02.0", true),
            ("0000:05:03.3", false),
        ];
        assert_eq!(
            held(&scope, &[3, 17]),
            expected.map(|(name, held)| (name.to_owned(), held))
        );
    }

    #[test]
    fn functions_in_our_iommufd_or_in_a_group_with_one_are_held() {
        // A device ID; 0, owned without one (VFIO_PCI_DEVID_OWNED); not owned.
        let entries = [(1, 3, 0), (0, 3, 1), (NOT_OWNED, 3, 2)];
        let scope = Scope::parse(&answer(VFIO_PCI_HOT_RESET_FLAG_DEV_ID, 3, &entries));
        let file = File::open("/dev/null").unwrap().into();
        assert!(scope.witnesses(&[(1, file)]).is_empty());
        let held: Vec<_> = held(&scope, &[1])
            .into_iter()
            .map(|(_, held)| held)
            .collect();
        assert_eq!(held, [true, true, false]);
    }

    #[test]
    fn a_count_that_the_answer_does_not_hold_is_not_believed() {
        let scope = Scope::parse(&answer(0, u32::MAX, &[(17, 5, 8)]));
        assert_eq!(held(&scope, &[]).len(), 1);
        assert_eq!(Scope::parse(&[0; 5]), Scope::nothing());
        assert_eq!(Scope::parse(&answer(0, 0, &[(17, 5, 8)])), Scope::nothing());
    }

    #[test]
    fn a_function_of_our_group_is_ours_only_on_a_vfio_driver() {
        let on = |driver: Option<&str>| Affected {
            function: "05:02.0".parse().unwrap(),
            driver: driver.map(str::to_owned),
            is_bridge: false,
            is_held: true,
        };
        assert!(on(Some("vfio-pci")).is_ours() && on(Some("mlx5_vfio_pci")).is_ours());
        assert!(!on(None).is_ours() && !on(Some("pcieport")).is_ours());
    }
}
