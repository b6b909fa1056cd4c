//! `--smbios KEY=VALUE`: what the machine calls itself, and strings for the guest.

use std::str::FromStr;

/// The argument of one `--smbios`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SmbiosArg {
    /// Who makes the machine.
    Manufacturer(String),
    /// What it is.
    Product(String),
    /// Which version of it.
    Version(String),
    /// Its serial number.
    Serial(String),
    /// Its stock keeping unit.
    Sku(String),
    /// What family of products it is of.
    Family(String),
    /// Its UUID.
    Uuid([u8; 16]),
    /// A string for the guest.
    Oem(String),
}

/// The text is nothing for the tables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SmbiosArgError {
    /// A key nobody knows.
    #[error(
        "'{0}' is not an option of --smbios: there are manufacturer=, product=, version=, serial=, sku=, family=, uuid= and oem="
    )]
    Unknown(String),
    /// Nothing, or what no string there can have.
    #[error("'{0}' is nothing to write down: give it a text without control characters")]
    NotText(String),
    /// No UUID.
    #[error("'{0}' is not a UUID: write one as  cat /proc/sys/kernel/random/uuid  does")]
    Uuid(String),
}

impl FromStr for SmbiosArg {
    type Err = SmbiosArgError;

    fn from_str(text: &str) -> Result<Self, SmbiosArgError> {
        // The value is all of the rest: a string for the guest may have any commas. QEMU's users write type=11,value=TEXT.
        let text = text.strip_prefix("type=11,").unwrap_or(text);
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| SmbiosArgError::Unknown(text.to_owned()))?;
        if value.is_empty() || value.chars().any(char::is_control) {
            return Err(SmbiosArgError::NotText(text.to_owned()));
        }
        let owned = value.to_owned();
        Ok(match key {
            "manufacturer" => Self::Manufacturer(owned),
            "product" => Self::Product(owned),
            "version" => Self::Version(owned),
            "serial" => Self::Serial(owned),
            "sku" => Self::Sku(owned),
            "family" => Self::Family(owned),
            "uuid" => Self::Uuid(parse_uuid(value).ok_or(SmbiosArgError::Uuid(owned))?),
            "oem" | "value" => Self::Oem(owned),
            _ => return Err(SmbiosArgError::Unknown(text.to_owned())),
        })
    }
}

/// Five groups of hexadecimal digits (RFC 9562).
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let plain = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
    if lengths != [8, 4, 4, 4, 12] || !text.bytes().all(plain) {
        return None;
    }
    let number = u128::from_str_radix(&groups.concat(), 16).ok()?;
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_the_rest_whatever_is_in_it() {
        let of = |text: &str| text.parse::<SmbiosArg>();
        assert_eq!(of("oem=a=b,c"), Ok(SmbiosArg::Oem("a=b,c".into())));
        assert_eq!(of("type=11,value=x"), Ok(SmbiosArg::Oem("x".into())));
        assert_eq!(of("serial=7"), Ok(SmbiosArg::Serial("7".into())));
        assert!(matches!(of("seriel=7"), Err(SmbiosArgError::Unknown(_))));
        assert!(matches!(of("oem="), Err(SmbiosArgError::NotText(_))));
        assert!(matches!(of("oem=a\nb"), Err(SmbiosArgError::NotText(_))));
    }

    #[test]
    fn a_uuid_is_five_groups_of_digits() {
        let of = |text: &str| format!("uuid={text}").parse::<SmbiosArg>();
        let Ok(SmbiosArg::Uuid(uuid)) = of("00112233-4455-6677-8899-aabbccddeeff") else {
            panic!("it is one");
        };
        assert_eq!((uuid[0], uuid[1], uuid[15]), (0, 0x11, 0xff));
        for wrong in [
            "",
            "0",
            "+0112233-4455-6677-8899-aabbccddeeff",
            "0011223344556677-8899-aabb-ccdd-eeff",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
