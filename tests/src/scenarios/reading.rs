//! Numbers and sums out of what guests, L1 and `viaduct run --stats` print. What is not there is an error, never a 0 or an empty text
//! that a comparison could take for an answer.

use serde_json::Value;

use crate::error::{Error, Result, tail};
use crate::host::Host;

/// What `--stats` wrote, or a part of it.
#[derive(Debug)]
pub(super) struct Statistics(Value);

impl Statistics {
    /// The file as it is now. Viaduct replaces it every second and when the guest ends.
    pub(super) fn read(l1: &Host, path: &str) -> Result<Self> {
        let text = l1.sh(&format!("cat {path}"))?;
        let json = serde_json::from_str(&text)
            .map_err(|error| Error::Unexpected(format!("{path} is not JSON: {error}: {text}")))?;
        Ok(Self(json))
    }

    /// The value at this JSON pointer (RFC 6901), as in `/exits/total`.
    pub(super) fn value(&self, pointer: &str) -> Result<&Value> {
        let found = self.0.pointer(pointer);
        found.ok_or_else(|| Error::Unexpected(format!("no {pointer} in {}", self.0)))
    }

    pub(super) fn number(&self, pointer: &str) -> Result<u64> {
        let value = self.value(pointer)?;
        let number = value.as_u64();
        number.ok_or_else(|| Error::Unexpected(format!("{pointer} is not a number but {value}")))
    }

    pub(super) fn text(&self, pointer: &str) -> Result<&str> {
        let value = self.value(pointer)?;
        let text = value.as_str();
        text.ok_or_else(|| Error::Unexpected(format!("{pointer} is not a text but {value}")))
    }

    /// The part about the assigned device with this address on the host.
    pub(super) fn device(&self, address: &str) -> Result<Self> {
        let devices = self.value("/devices")?.as_array().into_iter().flatten();
        let found = devices.into_iter().find(|one| one["host"] == address);
        found.cloned().map(Self).ok_or_else(|| {
            Error::Unexpected(format!("no device {address} in {}", self.0["devices"]))
        })
    }
}

/// The number right after the first `name`.
pub(super) fn number_after(text: &str, name: &str) -> Result<u64> {
    let found = text.split_once(name).and_then(|(_, rest)| {
        let end = rest.find(|c: char| !c.is_ascii_digit());
        rest[..end.unwrap_or(rest.len())].parse().ok()
    });
    found.ok_or_else(|| {
        Error::Unexpected(format!("no number after \"{name}\" in\n{}", tail(text, 20)))
    })
}

/// md5sum(1)'s answer to no bytes at all.
const OF_NOTHING: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// The sum at the start of md5sum's line. The sum of nothing is an error: two failed reads would be equal.
pub(super) fn md5(said: &str) -> Result<&str> {
    let sum = said.split_whitespace().next().unwrap_or_default();
    let is_sum = sum.len() == 32 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_sum && sum != OF_NOTHING {
        return Ok(sum);
    }
    Err(Error::Unexpected(format!(
        "no MD5 sum of any bytes: {said}"
    )))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_that_is_not_there_is_an_error() {
        assert_eq!(number_after("pages 12, above 7", "above ").unwrap(), 7);
        assert!(number_after("pages 12", "above ").is_err());
        assert!(number_after("above all", "above ").is_err());
        assert!(number_after("", "").is_err());
    }

    #[test]
    fn statistics_without_a_key_or_a_device_are_an_error() {
        let statistics = Statistics(json!({
            "exits": { "total": 3 },
            "devices": [{ "host": "0000:03:10.3", "trapped_accesses": [0, 5], "reset": { "method": "flr" } }],
        }));
        assert_eq!(statistics.number("/exits/total").unwrap(), 3);
        assert!(statistics.number("/exits/kick").is_err());
        let device = statistics.device("0000:03:10.3").unwrap();
        assert_eq!(device.number("/trapped_accesses/1").unwrap(), 5);
        assert!(device.number("/trapped_accesses/2").is_err());
        assert_eq!(device.text("/reset/method").unwrap(), "flr");
        assert!(device.number("/reset/method").is_err());
        assert!(statistics.device("0000:03:10.1").is_err());
    }

    #[test]
    fn the_sum_of_nothing_is_not_a_sum() {
        let sum = "9cc26fa09ce37bc95afe01bc718836d1";
        assert_eq!(md5(&format!("{sum}  -\n")).unwrap(), sum);
        assert!(md5(&format!("{OF_NOTHING}  -\n")).is_err());
        assert!(md5("").is_err());
        assert!(md5("md5sum: can't read").is_err());
    }
}
