//! Ethernet addresses (IEEE 802, EUI-48).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An Ethernet address, `02:00:5e:10:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mac(pub [u8; 6]);

/// First octet, bit 0: the address of a group, not of a station.
const GROUP: u8 = 1 << 0;
/// First octet, bit 1: assigned here, not by the IEEE's registry.
const LOCAL: u8 = 1 << 1;

/// The text is not the address of a station.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MacParseError {
    /// Not six octets.
    #[error(
        "'{0}' is not a MAC address: write six octets in hexadecimal, such as 02:00:5e:10:00:01"
    )]
    NotSixOctets(String),
    /// A group address, or all zeros.
    #[error("'{0}' cannot be the address of a station: {1}; write one such as 02:00:5e:10:00:01")]
    NotAStation(String, &'static str),
}

impl Mac {
    /// Whether this is all zeros: no address set.
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }

    /// The address for virtual function `index` of the physical function with address `physical`, where nobody gave it one.
    ///
    /// Always the same for the same two, so that a guest keeps its lease over reboots of the host; locally administered and of
    /// a station. 46 bits of FNV-1a over both rather than `physical + index`, because the ports of a card have consecutive
    /// addresses: port 0's second virtual function would get the address of port 1's first.
    pub fn derived(physical: Self, index: u32) -> Self {
        Self::hashed(physical.0.into_iter().chain(index.to_be_bytes()))
    }

    /// The address of what is at `place` of a guest that is called `guest`, where nobody gave it one. Always the same, as above.
    pub fn of_guest(guest: &str, place: u32) -> Self {
        Self::hashed(guest.bytes().chain(place.to_be_bytes()))
    }

    fn hashed(input: impl Iterator<Item = u8>) -> Self {
        let hash = input.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        // The upper bits of the last multiplication are the well-mixed ones; fold them over the lower.
        let [.., a, b, c, d, e, f] = (hash ^ hash >> 48).to_be_bytes();
        Self([a & !GROUP | LOCAL, b, c, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Six octets, whatever they say: sysfs has zeros and group addresses too.
pub(super) fn octets(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for octet in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        let plain = part.bytes().all(|b| b.is_ascii_hexdigit());
        *octet = plain.then(|| u8::from_str_radix(part, 16).ok()).flatten()?;
    }
    parts.next().is_none().then_some(Mac(mac))
}

impl FromStr for Mac {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, MacParseError> {
        let mac = octets(text).ok_or_else(|| MacParseError::NotSixOctets(text.to_owned()))?;
        let why = if mac.is_zero() {
            "it is all zeros"
        } else if mac.0[0] & GROUP != 0 {
            "it is a group's (the first octet is odd)"
        } else {
            return Ok(mac);
        };
        Err(MacParseError::NotAStation(text.to_owned(), why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_derived_address_stays_the_same_from_release_to_release() {
        let physical = Mac([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
        // A literal: a guest's DHCP lease hangs on it.
        assert_eq!(Mac::derived(physical, 0).to_string(), "5a:61:e6:13:ce:d1");
    }

    #[test]
    fn derived_addresses_are_local_and_of_stations_and_differ_between_ports_and_functions() {
        let mut seen = HashSet::new();
        for port in 0..4 {
            let physical = Mac([0x90, 0xe2, 0xba, 0x01, 0x02, 0x10 + port]);
            for index in 0..256 {
                let mac = Mac::derived(physical, index);
                assert_eq!(mac.0[0] & (GROUP | LOCAL), LOCAL, "{mac}");
                assert!(seen.insert(mac), "{mac} twice");
            }
        }
    }

    #[test]
    fn a_guests_addresses_differ_by_guest_and_place() {
        let of = Mac::of_guest;
        assert_eq!(of("a", 8), of("a", 8));
        let all = HashSet::from([of("a", 8), of("a", 16), of("b", 8), of("", 8)]);
        assert_eq!(all.len(), 4);
        assert!(all.iter().all(|mac| mac.0[0] & (GROUP | LOCAL) == LOCAL));
    }

    #[test]
    fn addresses_read_back_as_they_print() {
        let mac: Mac = "02:00:5E:10:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:00:01");
    }

    #[test]
    fn what_no_station_can_have_is_refused() {
        for text in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "2:0:5e:10:0:1",
            "02:00:5e:10:00:+1",
            "00:00:00:00:00:00",
            "01:00:5e:00:00:01",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
