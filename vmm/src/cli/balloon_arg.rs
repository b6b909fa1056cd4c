//! `--balloon [SIZE][,reporting=on|off]`.

use std::str::FromStr;

use super::size::parse_size;

/// The argument of `--balloon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonArg {
    /// How many bytes of its memory the guest is to give up; whole pages of 4 KiB.
    pub size_bytes: u64,
    /// Whether it says which of the others are free.
    pub has_reports: bool,
}

/// The text is not a balloon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BalloonArgError {
    /// Not a size.
    #[error(
        "'{0}' is not a size: write how much of its memory the guest is to give up, such as --balloon 256M"
    )]
    Size(String),
    /// An option nobody knows.
    #[error("'{0}' is not an option of --balloon: there is reporting=on|off")]
    Option(String),
    /// It would do nothing.
    #[error(
        "say how much, or that free pages are to be reported: --balloon 256M, --balloon reporting=on"
    )]
    Nothing,
}

impl FromStr for BalloonArg {
    type Err = BalloonArgError;

    fn from_str(text: &str) -> Result<Self, BalloonArgError> {
        let (mut size_bytes, mut has_reports) = (0, false);
        for (place, part) in text.split(',').enumerate() {
            match part {
                "reporting=on" => has_reports = true,
                "reporting=off" => has_reports = false,
                size if place == 0 && !size.contains('=') => {
                    let whole = parse_size(size).filter(|bytes| bytes % 4096 == 0);
                    size_bytes = whole.ok_or_else(|| BalloonArgError::Size(size.to_owned()))?;
                }
                other => return Err(BalloonArgError::Option(other.to_owned())),
            }
        }
        match (size_bytes, has_reports) {
            (0, false) => Err(BalloonArgError::Nothing),
            _ => Ok(Self {
                size_bytes,
                has_reports,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_is_a_size_or_reports_or_both() {
        let of = |text: &str| {
            let arg = text.parse::<BalloonArg>();
            arg.map(|arg| (arg.size_bytes, arg.has_reports))
        };
        assert_eq!(of("256M"), Ok((256 << 20, false)));
        assert_eq!(of("1G,reporting=on"), Ok((1 << 30, true)));
        assert_eq!(of("reporting=on"), Ok((0, true)));
        assert_eq!(of("0"), Err(BalloonArgError::Nothing));
        assert_eq!(of("reporting=off"), Err(BalloonArgError::Nothing));
        assert_eq!(of("1000"), Err(BalloonArgError::Size("1000".into())));
        assert_eq!(of("much"), Err(BalloonArgError::Size("much".into())));
        assert_eq!(of("1G,2G"), Err(BalloonArgError::Option("2G".into())));
    }
}
