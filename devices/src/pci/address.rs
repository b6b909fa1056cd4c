//! Names of PCI functions.

use std::{fmt, str::FromStr};

/// A function on the host: segment, bus, device, function, as `0000:03:10.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    /// Segment group ("domain"), 0 on most machines.
    pub segment: u32,
    /// Bus number.
    pub bus: u8,
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

/// The text is not the name of a PCI function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a PCI address: write bus:device.function, such as 03:10.3 or 0000:03:10.3")]
pub struct BdfParseError(pub String);

/// Where a function stands on the guest's bus 0: device (slot) and function, as `06` or `06.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            segment,
            bus,
            device,
            function,
        } = self;
        write!(f, "{segment:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{}", self.device, self.function)
    }
}

/// A hexadecimal number of exactly `digits` digits (or, where `digits` is a range, that many).
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let plain = digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

/// `10.3`: a device of two digits below 32 and a function below 8.
fn device_function(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<(u8, u8)> {
    let (device, function) = text.split_once('.')?;
    let device = hex(device, digits).filter(|&device| device < 32)?;
    let function = hex(function, 1..=1).filter(|&function| function < 8)?;
    Some((u8::try_from(device).ok()?, u8::try_from(function).ok()?))
}

impl FromStr for Bdf {
    type Err = BdfParseError;

    fn from_str(text: &str) -> Result<Self, BdfParseError> {
        let parse = || {
            let (segment, rest) = match text.matches(':').count() {
                1 => (0, text),
                2 => {
                    let (segment, rest) = text.split_once(':')?;
                    (hex(segment, 4..=8)?, rest)
                }
                _ => return None,
            };
            let (bus, rest) = rest.split_once(':')?;
            let bus = u8::try_from(hex(bus, 2..=2)?).ok()?;
            let (device, function) = device_function(rest, 2..=2)?;
            Some(Self {
                segment,
                bus,
                device,
                function,
            })
        };
        parse().ok_or_else(|| BdfParseError(text.to_owned()))
    }
}

/// The text is not a place on the guest's bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a place on the guest's bus: write a slot from 01 to 1f, such as 06 or 06.1")]
pub struct SlotParseError(pub String);

impl FromStr for Slot {
    type Err = SlotParseError;

    fn from_str(text: &str) -> Result<Self, SlotParseError> {
        let whole = if text.contains('.') {
            text.to_owned()
        } else {
            format!("{text}.0")
        };
        device_function(&whole, 1..=2)
            .map(|(device, function)| Self { device, function })
            .ok_or_else(|| SlotParseError(text.to_owned()))
    }
}

impl Slot {
    /// Device and function in one byte, as the ECAM and CF8 write them.
    pub fn devfn(self) -> u8 {
        self.device << 3 | self.function
    }

    /// The slot that `devfn` names.
    pub fn from_devfn(devfn: u8) -> Self {
        Self {
            device: devfn >> 3,
            function: devfn & 7,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_names_are_the_same_function() {
        let long: Bdf = "0000:03:10.3".parse().unwrap();
        assert_eq!("03:10.3".parse::<Bdf>().unwrap(), long);
        assert_eq!(long.to_string(), "0000:03:10.3");
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for text in [
            "3:10",
            "3:10.3",
            "03:10",
            "03:20.0",
            "03:10.8",
            "03:10.3 ",
            "",
            "0:03:10.3",
        ] {
            assert!(text.parse::<Bdf>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_slot_may_leave_its_function_out() {
        assert_eq!(
            "06".parse::<Slot>().unwrap(),
            Slot {
                device: 6,
                function: 0
            }
        );
        assert_eq!("1f.7".parse::<Slot>().unwrap().devfn(), 0xff);
        assert!("20".parse::<Slot>().is_err());
    }
}
