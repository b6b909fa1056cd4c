//! `--memory SIZE[,hugepages=2M|1G|thp|off][,prefault=on|off][,shared=on|off]`.

use std::str::FromStr;

use crate::ram::Pages;

/// The argument of `--memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryArg {
    /// Size in bytes; a multiple of 2 MiB.
    pub size_bytes: u64,
    /// Which pages.
    pub pages: Pages,
    /// Whether to populate all of it before the guest starts; `None` leaves that to the machine.
    pub prefault: Option<bool>,
    /// Whether another process could map it.
    pub is_shared: bool,
}

/// The text is not a memory argument.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a unit.
    #[error("'{0}' is not a size: write a number and K, M, G or T, such as 512M or 4G")]
    NotASize(String),
    /// Less than a guest can be booted in.
    #[error("{0} bytes are too few for a guest: the least is 16M")]
    TooSmall(u64),
    /// Not made of 2 MiB pieces.
    #[error("{0} bytes are not a multiple of 2M: {below}M is, and {above}M", below = .0 >> 21 << 1, above = (.0 >> 21 << 1) + 2)]
    Odd(u64),
    /// A key nobody knows, or a value it does not take.
    #[error(
        "'{0}' is not an option of --memory: there are hugepages=2M|1G|thp|off, prefault=on|off and shared=on|off"
    )]
    Option(String),
}

const MIN_BYTES: u64 = 16 << 20;
const GRANULE_BYTES: u64 = 2 << 20;

impl FromStr for MemoryArg {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let mut parts = text.split(',');
        let size = parts.next().unwrap_or_default();
        let size_bytes = parse_size(size).ok_or_else(|| SizeError::NotASize(size.to_owned()))?;
        if size_bytes < MIN_BYTES {
            return Err(SizeError::TooSmall(size_bytes));
        }
        if size_bytes % GRANULE_BYTES != 0 {
            return Err(SizeError::Odd(size_bytes));
        }
        let mut memory = Self {
            size_bytes,
            pages: Pages::default(),
            prefault: None,
            is_shared: false,
        };
        for option in parts {
            match option {
                "hugepages=2M" => memory.pages = Pages::Huge2M,
                "hugepages=1G" => memory.pages = Pages::Huge1G,
                "hugepages=thp" => memory.pages = Pages::TransparentHuge,
                "hugepages=off" => memory.pages = Pages::Small,
                "prefault=on" => memory.prefault = Some(true),
                "prefault=off" => memory.prefault = Some(false),
                // As QEMU's and others' users write it, too.
                "shared=on" | "shared" => memory.is_shared = true,
                "shared=off" => memory.is_shared = false,
                _ => return Err(SizeError::Option(option.to_owned())),
            }
        }
        Ok(memory)
    }
}

/// A number with an optional unit of 1024^n; bare numbers are bytes. `MiB` and `MB` are taken for `M`, as people write them.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit
        .to_ascii_uppercase()
        .trim_end_matches('B')
        .trim_end_matches('I')
    {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Result<u64, SizeError> {
        text.parse::<MemoryArg>().map(|memory| memory.size_bytes)
    }

    #[test]
    fn sizes_are_read_in_binary_units() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("4g"), Ok(4 << 30));
        assert_eq!(size("1GiB"), Ok(1 << 30));
    }

    #[test]
    fn what_is_no_size_is_refused_with_its_reason() {
        assert!(matches!(size("lots"), Err(SizeError::NotASize(_))));
        assert!(matches!(size("0"), Err(SizeError::TooSmall(0))));
        assert!(matches!(size("16777217"), Err(SizeError::Odd(_))));
        assert!(matches!(
            size("99999999999999T"),
            Err(SizeError::NotASize(_))
        ));
        assert!(matches!(size(""), Err(SizeError::NotASize(_))));
    }

    #[test]
    fn options_follow_the_size() {
        let memory: MemoryArg = "1G,hugepages=2M,prefault=off,shared=on".parse().unwrap();
        assert_eq!(
            (memory.pages, memory.prefault, memory.is_shared),
            (Pages::Huge2M, Some(false), true)
        );
        assert!("1G,shared".parse::<MemoryArg>().unwrap().is_shared);
        assert!("1G,hugepages=3M".parse::<MemoryArg>().is_err());
    }
}
