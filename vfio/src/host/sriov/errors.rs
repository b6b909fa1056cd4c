//! What people are told when virtual functions cannot be made, removed or set.

use std::io;

use devices::pci::Bdf;

use crate::host::{
    BindingError, Danger, DeviceError, Holder, JournalError, NetlinkError, ResolveError, StepError,
    is_vfio, short,
};

/// Virtual functions cannot be had, set or made ready.
#[derive(Debug, thiserror::Error)]
pub enum SriovError {
    /// There is no such device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no such virtual function.
    #[error(transparent)]
    NoFunction(#[from] ResolveError),
    /// The journal cannot be kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It cannot be bound, or waits.
    #[error(transparent)]
    Binding(#[from] BindingError),
    /// A write to sysfs does not come back.
    #[error(transparent)]
    Step(#[from] StepError),
    /// It is no physical function.
    #[error("{device}: has no virtual functions: {}", no_functions(*virtual_of))]
    NotPhysical {
        /// Which device.
        device: Bdf,
        /// Whose virtual function it is.
        virtual_of: Option<Bdf>,
    },
    /// It is not a virtual function.
    #[error(
        "{0}: is no virtual function, so its MAC address is its own and cannot be set from the host\n  leave out mac=, and set it in the guest:  ip link set DEV address MAC"
    )]
    NotVirtual(Bdf),
    /// More than there can be.
    #[error("{physical}: can have {total} virtual functions, not {asked}\n  take what it has:  viaduct sriov {} --vfs {total}", short(*physical))]
    TooMany {
        /// The physical function.
        physical: Bdf,
        /// How many it can have.
        total: u32,
        /// How many were asked for.
        asked: u32,
    },
    /// A guest, or another process, has one of those that would go.
    #[error(
        "{physical}: its virtual functions cannot be removed: {function} (vf{index}) is in use by {}\n  shut that guest down, or end the process:  kill{}",
        list(holders),
        pids(holders)
    )]
    InUse {
        /// The physical function.
        physical: Bdf,
        /// The virtual one.
        function: Bdf,
        /// Which it is.
        index: u32,
        /// Who has it; at least one.
        holders: Vec<Holder>,
    },
    /// The host stands on one of those that would go.
    #[error("{physical}: its virtual functions are not removed: {function} (vf{index}): {}\n  if that is what you want:  viaduct sriov {} --vfs {asked} --force", list(dangers), short(*physical))]
    Needed {
        /// The physical function.
        physical: Bdf,
        /// The virtual one.
        function: Bdf,
        /// Which it is.
        index: u32,
        /// How many there were to be.
        asked: u32,
        /// Why not; at least one reason.
        dangers: Vec<Danger>,
    },
    /// The kernel, or the physical function's driver, does not change their number.
    #[error("{physical}: {asked} virtual functions: {cause}\n  {}", number_advice(*physical, driver.as_deref(), cause))]
    Number {
        /// The physical function.
        physical: Bdf,
        /// How many there were to be.
        asked: u32,
        /// What the physical function is bound to.
        driver: Option<String>,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The driver made fewer.
    #[error("{physical}: {asked} virtual functions were asked for and {} made {made}\n  see what it said:  dmesg | tail", driver.as_deref().unwrap_or("the kernel"))]
    Fewer {
        /// The physical function.
        physical: Bdf,
        /// How many there were to be.
        asked: u32,
        /// How many there are.
        made: u32,
        /// What the physical function is bound to.
        driver: Option<String>,
    },
    /// The physical function has no interface through which to set anything.
    #[error("{device}: is set through its physical function {physical}, which has no network interface ({})\n  {}", driver.as_deref().unwrap_or("no driver"), bring_interface(*physical, driver.as_deref()))]
    NoInterface {
        /// The virtual function.
        device: Bdf,
        /// The physical one.
        physical: Bdf,
        /// What the physical one is bound to.
        driver: Option<String>,
    },
    /// The kernel, or the physical function's driver, refused a setting.
    #[error("{device}: through {interface}: {cause}{}", setting_advice(interface, driver.as_deref(), cause))]
    Netlink {
        /// The virtual function, or the physical one.
        device: Bdf,
        /// The physical one's interface.
        interface: String,
        /// The physical one's driver.
        driver: Option<String>,
        /// What was refused.
        cause: NetlinkError,
    },
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    items.join(" and ")
}

fn pids(holders: &[Holder]) -> String {
    let pids = holders.iter().map(|holder| format!(" {}", holder.pid));
    pids.collect()
}

fn no_functions(virtual_of: Option<Bdf>) -> String {
    match virtual_of {
        Some(physical) => format!(
            "it is a virtual function itself\n  name the physical one:  viaduct sriov {}",
            short(physical)
        ),
        None => "it has no SR-IOV capability, or the firmware or the kernel keeps it off\n  \
                 see which devices have it:  ls -d /sys/bus/pci/devices/*/sriov_numvfs"
            .into(),
    }
}

fn bring_interface(physical: Bdf, driver: Option<&str>) -> String {
    match driver {
        Some(driver) if !is_vfio(driver) => "see what its driver said:  dmesg | tail".into(),
        _ => format!(
            "give that one its driver back:  viaduct unbind {}",
            short(physical)
        ),
    }
}

/// By what sriov_numvfs_store() and sriov_enable() of drivers/pci/iov.c say, and drivers' sriov_configure().
fn number_advice(physical: Bdf, driver: Option<&str>, cause: &io::Error) -> String {
    let short = short(physical);
    match (cause.raw_os_error(), driver) {
        (Some(libc::ENOENT), None) => format!(
            "it has no driver, which is what makes them; give it one:  viaduct unbind {short}"
        ),
        (Some(libc::ENOENT), Some(driver)) if is_vfio(driver) => format!(
            "it is on {driver}, which makes none; give it its own driver back:  viaduct unbind {short}"
        ),
        (Some(libc::ENOENT | libc::EOPNOTSUPP | libc::ENOTTY), Some(driver)) => format!(
            "its driver {driver} makes none while it runs; some take a parameter:  modinfo -p {driver}"
        ),
        (Some(libc::ENOMEM | libc::ENOSPC), _) => {
            "the firmware left too little room for their registers, or too few bus numbers; the kernel says which:  \
             dmesg | grep -e 'not enough MMIO' -e 'out of range'\n  \
             then turn on SR-IOV (and 'above 4G decoding') in the firmware's set-up, or boot with pci=realloc,assign-busses"
                .into()
        }
        (Some(libc::EBUSY), _) => format!(
            "others were made in the meantime; they go first:  viaduct sriov {short} --vfs 0"
        ),
        (Some(libc::EACCES), _) => {
            "changing their number needs root:  sudo viaduct sriov …".into()
        }
        (Some(libc::EPERM), Some(driver)) => format!(
            "{driver} does not want to: one of them may be in a guest, or {driver} was set up without them:  dmesg | tail"
        ),
        _ => "see what its driver said:  dmesg | tail".into(),
    }
}

fn setting_advice(interface: &str, driver: Option<&str>, cause: &NetlinkError) -> String {
    let driver = driver.unwrap_or("its driver");
    match cause.errno() {
        Some(libc::EOPNOTSUPP) => {
            format!("\n  {driver} cannot set this for its virtual functions: leave it out")
        }
        Some(libc::EINVAL | libc::ERANGE) => {
            format!("\n  {driver} does not take this value; see why:  dmesg | tail")
        }
        Some(libc::ENETDOWN | libc::EAGAIN | libc::EBUSY) => {
            format!("\n  {driver} is not ready for it:  ip link set {interface} up, then try again")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(errno: i32, driver: Option<&str>) -> String {
        let error = SriovError::Number {
            physical: "03:00.1".parse().unwrap(),
            asked: 4,
            driver: driver.map(String::from),
            cause: io::Error::from_raw_os_error(errno),
        };
        error.to_string()
    }

    #[test]
    fn why_no_functions_are_made_is_told_by_errno_and_driver() {
        assert!(number(libc::ENOENT, None).ends_with("viaduct unbind 03:00.1"));
        assert!(
            number(libc::ENOENT, Some("vfio-pci")).contains("is on vfio-pci, which makes none")
        );
        assert!(number(libc::ENOENT, Some("e1000e")).ends_with("modinfo -p e1000e"));
        assert!(number(libc::ENOTTY, Some("nvme")).contains("its driver nvme makes none"));
        assert!(number(libc::ENOMEM, Some("igb")).contains("pci=realloc"));
        assert!(number(libc::ENOSPC, Some("igb")).contains("pci=realloc"));
        assert!(number(libc::EBUSY, Some("igb")).ends_with("viaduct sriov 03:00.1 --vfs 0"));
        assert!(number(libc::EACCES, Some("igb")).ends_with("sudo viaduct sriov …"));
        assert!(number(libc::EPERM, Some("igb")).contains("igb does not want to"));
        assert!(number(libc::EIO, Some("igb")).ends_with("dmesg | tail"));
    }

    #[test]
    fn a_setting_that_the_driver_does_not_know_is_blamed_on_it_by_name() {
        let refused = |errno| {
            let cause = NetlinkError::Refused {
                what: "setting the link state of virtual function 1".into(),
                cause: io::Error::from_raw_os_error(errno),
            };
            let error = SriovError::Netlink {
                device: "03:10.3".parse().unwrap(),
                interface: "eth2".into(),
                driver: Some("igb".into()),
                cause,
            };
            error.to_string()
        };
        assert_eq!(
            refused(libc::EOPNOTSUPP),
            "0000:03:10.3: through eth2: setting the link state of virtual function 1: Operation not supported (os error 95)\n  \
             igb cannot set this for its virtual functions: leave it out"
        );
        assert!(refused(libc::EINVAL).contains("igb does not take this value"));
        assert!(refused(libc::EPERM).ends_with("sudo viaduct …"));
        assert!(refused(libc::ENETDOWN).contains("ip link set eth2 up"));
    }
}
