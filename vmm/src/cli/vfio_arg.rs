//! `--vfio DEV[,addr=SLOT[.FN]][,id=NAME][,mac=M][,rom=on|off|FILE][,vga=on|off][,mmap=on|off][,msix=relocate][,managed=on|off]`.

use std::str::FromStr;

use devices::pci::Slot;
use vfio::assigned::{MsixTable, Options, Rom};

use super::slot::{self, AddrError};

/// The argument of one `--vfio`. The device is still a name: only the host can say which function that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfioArg {
    /// How the person named the device, without QEMU's `host=` or `sysfsdev=`.
    pub device: String,
    /// Where on the guest's bus it goes; the first free slot if absent.
    pub slot: Option<Slot>,
    /// The MAC to give a VF through its PF first.
    pub mac: Option<[u8; 6]>,
    /// Whether its driver is displaced before and given back afterwards.
    pub managed: bool,
    /// What the person calls it.
    pub id: Option<String>,
    /// How the guest gets it.
    pub options: Options,
}

/// The text is not a device to assign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VfioArgError {
    /// No device in it.
    #[error(
        "name a device: --vfio 03:10.3, --vfio eth2, --vfio 03:00.1/vf1 or --vfio /sys/bus/mdev/devices/UUID"
    )]
    Empty,
    /// A key nobody knows.
    #[error(
        "'{0}' is not an option of --vfio: there are addr=, id=, mac=, rom=on|off|FILE, vga=on|off, mmap=on|off, \
         msix=in-place|relocate and managed=on|off"
    )]
    Unknown(String),
    /// Neither on nor off.
    #[error("'{0}' is neither on nor off: write {key}=on or {key}=off", key = .0.split('=').next().unwrap_or_default())]
    Switch(String),
    /// Not a place for the MSI-X table.
    #[error(
        "'{0}' is no place for the MSI-X table: write msix=relocate, or msix=in-place, which is the default"
    )]
    Msix(String),
    /// No name, or one that would be hard to write elsewhere.
    #[error("'{0}' cannot be a name: use letters, digits, '-', '_' and '.', such as id=nic0")]
    Id(String),
    /// The slot is none.
    #[error(transparent)]
    Addr(#[from] AddrError),
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
        let without = ["host=", "sysfsdev="]
            .iter()
            .find_map(|key| device.strip_prefix(key));
        let device = without.unwrap_or(device).to_owned();
        if device.is_empty() {
            return Err(VfioArgError::Empty);
        }
        let mut arg = Self {
            device,
            slot: None,
            mac: None,
            managed: true,
            id: None,
            options: Options::default(),
        };
        for option in parts {
            arg.set(option)?;
        }
        Ok(arg)
    }
}

impl VfioArg {
    fn set(&mut self, option: &str) -> Result<(), VfioArgError> {
        let unknown = || VfioArgError::Unknown(option.to_owned());
        let (key, value) = option.split_once('=').ok_or_else(unknown)?;
        match key {
            "addr" => self.slot = Some(slot::parse(value)?),
            "id" => self.id = Some(parse_id(value)?),
            "mac" => {
                let mac = parse_mac(value).ok_or_else(|| VfioArgError::Mac(value.to_owned()))?;
                self.mac = Some(mac);
            }
            "managed" => self.managed = parse_switch(option, value)?,
            "rom" => self.options.rom = parse_rom(value),
            "vga" => self.options.vga = parse_switch(option, value)?,
            "mmap" => self.options.mmap = parse_switch(option, value)?,
            "msix" => self.options.msix = parse_msix(value)?,
            _ => return Err(unknown()),
        }
        Ok(())
    }
}

fn parse_switch(option: &str, value: &str) -> Result<bool, VfioArgError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(VfioArgError::Switch(option.to_owned())),
    }
}

fn parse_rom(value: &str) -> Rom {
    match value {
        "on" => Rom::On,
        "off" => Rom::Off,
        file => Rom::File(file.into()),
    }
}

fn parse_msix(value: &str) -> Result<MsixTable, VfioArgError> {
    match value {
        "relocate" => Ok(MsixTable::Relocated),
        "in-place" => Ok(MsixTable::InPlace),
        other => Err(VfioArgError::Msix(other.to_owned())),
    }
}

fn parse_id(value: &str) -> Result<String, VfioArgError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if value.is_empty() || !value.chars().all(plain) {
        return Err(VfioArgError::Id(value.to_owned()));
    }
    Ok(value.to_owned())
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
        assert_eq!(arg.options, Options::default());
        let path = "/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
        let arg: VfioArg = format!("sysfsdev={path}").parse().unwrap();
        assert_eq!(arg.device, path);
    }

    #[test]
    fn every_option_is_understood() {
        let arg: VfioArg = "eth2,id=nic0,managed=off,rom=/a/b.rom,vga=on,mmap=off,msix=relocate"
            .parse()
            .unwrap();
        assert_eq!((arg.id.as_deref(), arg.managed), (Some("nic0"), false));
        let wanted = Options {
            mmap: false,
            rom: Rom::File("/a/b.rom".into()),
            vga: true,
            msix: MsixTable::Relocated,
        };
        assert_eq!(arg.options, wanted);
        for wrong in ["vga=yes", "mmap", "msix=here", "id=", "id=a b", "rom"] {
            assert!(
                format!("eth2,{wrong}").parse::<VfioArg>().is_err(),
                "{wrong}"
            );
        }
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
            Err(AddrError::HostBridge.into())
        );
        assert!("03:10.3,adr=6".parse::<VfioArg>().is_err());
        for nothing in ["host=", "sysfsdev="] {
            assert_eq!(nothing.parse::<VfioArg>(), Err(VfioArgError::Empty));
        }
    }
}
