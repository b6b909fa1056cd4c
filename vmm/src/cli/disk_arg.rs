//! `--disk FILE[,readonly]`.

use std::{path::PathBuf, str::FromStr};

/// The argument of one `--disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    /// The file or block device.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub is_readonly: bool,
}

/// The text is not a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskArgError {
    /// No file in it.
    #[error("name a file or a block device: --disk disk.img, or --disk /dev/sdb,readonly")]
    Empty,
    /// An option nobody knows. A comma cannot be part of a name.
    #[error("'{0}' is not an option of --disk: there is readonly")]
    Unknown(String),
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
        };
        for option in parts {
            match option {
                "readonly" | "readonly=on" => arg.is_readonly = true,
                "readonly=off" => arg.is_readonly = false,
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
                .map(|arg| (arg.path, arg.is_readonly))
        };
        assert_eq!(of("a/b.img"), Ok(("a/b.img".into(), false)));
        assert_eq!(of("/dev/sdb,readonly"), Ok(("/dev/sdb".into(), true)));
        assert_eq!(of(",readonly"), Err(DiskArgError::Empty));
        assert_eq!(of("a,b"), Err(DiskArgError::Unknown("b".into())));
    }
}
