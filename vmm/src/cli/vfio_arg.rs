//! `--vfio DEV[,addr=SLOT[.FN]][,mac=M][,managed=on|off]`.

use std::str::FromStr;

use devices::pci::Slot;

/// The argument of one `--vfio`. The device is still a name: only the host can say which function that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfioArg {
    /// How the person named the device, without QEMU's `host=`.
    pub device: String,
    /// Where on the guest's bus it goes; the first free slot if absent.
    pub slot: Option<Slot>,
    /// The MAC to give a VF through its PF first.
    pub mac: Option<[u8; 6]>,
    /// Whether its driver is displaced before and given back afterwards.
    pub managed: bool,
}

/// The text is not a device to assign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VfioArgError {
    /// No device in it.
    #[error("name a device: --vfio 03:10.3, --vfio eth2 or --vfio 03:00.1/vf1")]
    Empty,
    /// A key nobody knows.
    #[error("'{0}' is not an option of --vfio: there are addr=, mac= and managed=on|off")]
    Unknown(String),
    /// The slot is none.
    #[error(transparent)]
    Slot(#[from] devices::pci::SlotParseError),
    /// Slot 0 is taken.
    #[error("slot 00 is the host bridge: choose addr=01 to addr=1f")]
    HostBridge,
    /// The MAC is none.
    #[error(
        "'{0}' is not a MAC address that a card can have: write six bytes, such as 02:00:00:00:00:01"
    )]
    Mac(String),
}

impl FromStr for VfioArg {
    type Err = VfioArgError;

    fn from_str(text: &str) -> Result<Self, VfioArgError> {
        let mut parts = text.split(',');
        let device = parts.next().unwrap_or_default();
        let device = device.strip_prefix("host=").unwrap_or(device).to_owned();
        if device.is_empty() {
            return Err(VfioArgError::Empty);
        }
        let mut arg = Self {
            device,
            slot: None,
            mac: None,
            managed: true,
        };
        for option in parts {
            match option.split_once('=') {
                Some(("addr", slot)) => arg.slot = Some(parse_slot(slot)?),
                Some(("mac", mac)) => {
                    let parsed = parse_mac(mac).ok_or_else(|| VfioArgError::Mac(mac.to_owned()))?;
                    arg.mac = Some(parsed);
                }
                Some(("managed", "on")) => arg.managed = true,
                Some(("managed", "off")) => arg.managed = false,
                _ => return Err(VfioArgError::Unknown(option.to_owned())),
            }
        }
        Ok(arg)
    }
}

fn parse_slot(text: &str) -> Result<Slot, VfioArgError> {
    // QEMU's users write addr=0x6 as well.
    let slot: Slot = text.strip_prefix("0x").unwrap_or(text).parse()?;
    if slot.device == 0 {
        Err(VfioArgError::HostBridge)
    } else {
        Ok(slot)
    }
}

/// Six bytes with colons; neither multicast (bit 0 of the first) nor all zeros, which no card may have.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| {
            let plain = byte.len() == 2 && byte.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u8::from_str_radix(byte, 16).ok()).flatten()
        })
        .collect::<Option<_>>()?;
    let mac: [u8; 6] = bytes.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_may_be_written_as_qemu_users_write_it() {
        let arg: VfioArg = "host=03:10.3,addr=0x6,mac=02:00:00:00:00:01"
            .parse()
            .unwrap();
        assert_eq!(arg.device, "03:10.3");
        assert_eq!(
            arg.slot,
            Some(Slot {
                device: 6,
                function: 0
            })
        );
        assert_eq!(arg.mac, Some([2, 0, 0, 0, 0, 1]));
        assert!(arg.managed);
    }

    #[test]
    fn what_no_card_can_have_is_refused() {
        for mac in [
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "02:00:00:00:00",
        ] {
            assert!(
                format!("03:10.3,mac={mac}").parse::<VfioArg>().is_err(),
                "{mac}"
            );
        }
        assert_eq!(
            "03:10.3,addr=00".parse::<VfioArg>(),
            Err(VfioArgError::HostBridge)
        );
        assert!("03:10.3,adr=6".parse::<VfioArg>().is_err());
        assert_eq!("host=".parse::<VfioArg>(), Err(VfioArgError::Empty));
    }
}
