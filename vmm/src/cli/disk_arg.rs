//! `--disk FILE[,readonly][,direct=on|off][,addr=SLOT]`.

use std::{path::PathBuf, str::FromStr};

use devices::pci::Slot;

use super::slot::{self, AddrError};

/// The argument of one `--disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    /// The file or block device.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub is_readonly: bool,
    /// Whether it is read and written past the host's page cache.
    pub is_direct: bool,
    /// Where on the guest's bus it goes; the first free slot if absent.
    pub slot: Option<Slot>,
}

/// The text is not a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskArgError {
    /// No file in it.
    #[error("name a file or a block device: --disk disk.img, or --disk /dev/sdb,readonly")]
    Empty,
    /// An option nobody knows. A comma cannot be part of a name.
    #[error("'{0}' is not an option of --disk: there are readonly, direct=on|off and addr=")]
    Unknown(String),
    /// The slot is none.
    #[error(transparent)]
    Addr(#[from] AddrError),
}

impl FromStr for DiskArg {
    type Err = DiskArgError;

    fn from_str(text: &str) -> Result<Self, DiskArgError> {
        let mut parts = text.split(',');
        let path = parts.next().unwrap_or_default();
        if path.is_empty() {
            return Err(DiskArgError::Empty);
        }
        let mut arg = Self {
            path: path.into(),
            is_readonly: false,
            is_direct: false,
            slot: None,
        };
        for option in parts {
            match option.split_once('=').unwrap_or((option, "on")) {
                ("readonly", "on") => arg.is_readonly = true,
                ("readonly", "off") => arg.is_readonly = false,
                ("direct", "on") => arg.is_direct = true,
                ("direct", "off") => arg.is_direct = false,
                ("addr", slot) => arg.slot = Some(slot::parse_whole(slot)?),
                _ => return Err(DiskArgError::Unknown(option.to_owned())),
            }
        }
        Ok(arg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_file_and_perhaps_only_to_be_read() {
        let of = |text: &str| {
            text.parse::<DiskArg>()
                .map(|arg| (arg.path, arg.is_readonly, arg.is_direct))
        };
        assert_eq!(of("a/b.img"), Ok(("a/b.img".into(), false, false)));
        assert_eq!(
            of("/dev/sdb,readonly"),
            Ok(("/dev/sdb".into(), true, false))
        );
        assert_eq!(of("a,direct=on"), Ok(("a".into(), false, true)));
        assert_eq!(of("a,direct=on,direct=off"), Ok(("a".into(), false, false)));
        assert_eq!(of(",readonly"), Err(DiskArgError::Empty));
        for wrong in ["b", "direct=yes", "b=on"] {
            let error = DiskArgError::Unknown(wrong.into());
            assert_eq!(of(&format!("a,{wrong}")), Err(error));
        }
    }

    #[test]
    fn a_disk_goes_to_the_slot_that_it_is_given() {
        let slot = |text: &str| text.parse::<DiskArg>().map(|arg| arg.slot);
        let sixth = Slot {
            device: 6,
            function: 0,
        };
        assert_eq!(slot("a,addr=06,readonly"), Ok(Some(sixth)));
        assert_eq!(slot("a"), Ok(None));
        assert_eq!(slot("a,addr=0"), Err(AddrError::HostBridge.into()));
    }
}
