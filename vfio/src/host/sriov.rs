//! Virtual functions of network cards: their addresses, which only the physical function can set.

use devices::pci::Bdf;

use super::{Device, DeviceError, Host, Mac, NetlinkError, is_vfio, netlink::Netlink, short};

/// A virtual function cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub enum SriovError {
    /// There is no such device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It is not a virtual function.
    #[error(
        "{0}: is no virtual function, so its MAC address is its own and cannot be set from the host\n  leave out mac=, and set it in the guest:  ip link set DEV address MAC"
    )]
    NotVirtual(Bdf),
    /// The physical function has no interface through which to set it.
    #[error("{device}: its MAC address is set through its physical function {physical}, which has no network interface ({})\n  {}", driver.as_deref().unwrap_or("no driver"), bring_interface(*physical, driver.as_deref()))]
    NoInterface {
        /// The virtual function.
        device: Bdf,
        /// The physical one.
        physical: Bdf,
        /// What the physical one is bound to.
        driver: Option<String>,
    },
    /// The kernel refused.
    #[error(
        "{device}: through {interface}: {cause}\n  or set it by hand, and leave out mac=:  ip link set {interface} up; ip link set {interface} vf {index} mac 02:00:00:00:00:01"
    )]
    Netlink {
        /// The virtual function.
        device: Bdf,
        /// The physical one's interface.
        interface: String,
        /// Which of its functions.
        index: u32,
        /// What was refused.
        cause: NetlinkError,
    },
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

/// Base class of network controllers.
const NETWORK: u32 = 0x02;

impl Host {
    /// Makes a virtual function of a network card ready for a guest, before it is taken: its physical function is brought up
    /// (a virtual one gets no link, and its driver no answer, before that), and it gets the address `mac`, or, where it has none, one
    /// that is [derived](Mac::derived). Returns the address it has.
    ///
    /// What is no virtual function of a network card is left as it is, unless `mac` is asked for.
    pub fn prepare_function(&self, bdf: Bdf, mac: Option<Mac>) -> Result<Option<Mac>, SriovError> {
        let device = self.device(bdf)?;
        let Some((physical, index)) = device.virtual_function_of else {
            return mac.map_or(Ok(None), |_| Err(SriovError::NotVirtual(bdf)));
        };
        let physical = self.device(physical)?;
        let Some(interface) = physical.interfaces.first() else {
            return without_interface(&device, physical, mac);
        };
        let name = &interface.name;
        let refused = |cause| SriovError::Netlink {
            device: bdf,
            interface: name.clone(),
            index,
            cause,
        };
        set_through(name, index, mac).map_err(refused)
    }
}

fn without_interface(
    device: &Device,
    physical: Device,
    mac: Option<Mac>,
) -> Result<Option<Mac>, SriovError> {
    let error = SriovError::NoInterface {
        device: device.bdf,
        physical: physical.bdf,
        driver: physical.driver,
    };
    if mac.is_some() {
        return Err(error);
    }
    if device.class >> 16 == NETWORK {
        // The guest may still do: some cards give their functions addresses of their own.
        log::warn!("{error}");
    }
    Ok(None)
}

fn set_through(
    interface: &str,
    index: u32,
    asked: Option<Mac>,
) -> Result<Option<Mac>, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let link = netlink.link(interface)?;
    if !link.up {
        log::info!("{interface}: bringing it up for its virtual functions");
        netlink.set_up(link.index)?;
    }
    let has = link.functions.iter().find(|(number, _)| *number == index);
    let has = has.map(|(_, mac)| *mac);
    let Some(mac) = address_to_set(has, asked, link.mac, index) else {
        return Ok(has);
    };
    log::info!("{interface}: virtual function {index} gets the address {mac}");
    netlink.set_mac(link.index, index, mac)?;
    Ok(Some(mac))
}

/// The address to set, if any: what is asked for, or a derived one where it has none.
fn address_to_set(
    has: Option<Mac>,
    asked: Option<Mac>,
    physical: Option<Mac>,
    index: u32,
) -> Option<Mac> {
    let derived = || {
        // A driver that does not tell of its functions' addresses (`has` is none) manages them itself.
        let physical = physical.filter(|_| has.is_some_and(Mac::is_zero))?;
        Some(Mac::derived(physical, index))
    };
    asked.or_else(derived).filter(|&mac| has != Some(mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHYSICAL: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const ZERO: Mac = Mac([0; 6]);

    #[test]
    fn a_function_without_an_address_gets_a_derived_one_and_keeps_it() {
        let first = address_to_set(Some(ZERO), None, Some(PHYSICAL), 1);
        assert_eq!(first, Some(Mac::derived(PHYSICAL, 1)));
        assert_eq!(address_to_set(first, None, Some(PHYSICAL), 1), None);
    }

    #[test]
    fn an_address_that_someone_set_is_changed_only_when_asked_for() {
        assert_eq!(address_to_set(Some(OTHER), None, Some(PHYSICAL), 1), None);
        let asked = Some(PHYSICAL);
        assert_eq!(address_to_set(Some(OTHER), asked, None, 1), asked);
        assert_eq!(address_to_set(Some(OTHER), Some(OTHER), None, 1), None);
    }

    #[test]
    fn a_driver_that_tells_of_no_addresses_is_left_alone_unless_asked() {
        assert_eq!(address_to_set(None, None, Some(PHYSICAL), 0), None);
        assert_eq!(address_to_set(None, Some(OTHER), None, 0), Some(OTHER));
    }
}
