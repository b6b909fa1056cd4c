//! `addr=SLOT[.FN]`: where on the guest's bus a device goes.

use devices::pci::{Slot, SlotParseError};

/// The text is no place for a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    /// It is none at all.
    #[error(transparent)]
    Text(#[from] SlotParseError),
    /// Slot 0 is taken.
    #[error("slot 00 is the host bridge: choose addr=01 to addr=1f")]
    HostBridge,
    /// A device of ours is one function, the first.
    #[error("'{0}' names a function: this device is a whole slot's, write addr=06")]
    Function(String),
}

/// Any function of a slot.
pub(super) fn parse(text: &str) -> Result<Slot, AddrError> {
    // QEMU's users write addr=0x6 as well.
    let slot: Slot = text.strip_prefix("0x").unwrap_or(text).parse()?;
    match slot.device {
        0 => Err(AddrError::HostBridge),
        _ => Ok(slot),
    }
}

/// A slot for a device that has it alone.
pub(super) fn parse_whole(text: &str) -> Result<Slot, AddrError> {
    match parse(text)? {
        slot if slot.function != 0 => Err(AddrError::Function(text.to_owned())),
        slot => Ok(slot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_ours_has_a_slot_and_no_function_of_one() {
        assert_eq!(parse_whole("0x6").map(|slot| slot.device), Ok(6));
        assert_eq!(parse("6.1").map(|slot| slot.function), Ok(1));
        assert_eq!(parse_whole("6.1"), Err(AddrError::Function("6.1".into())));
        assert_eq!(parse("00"), Err(AddrError::HostBridge));
        assert!(matches!(parse("20"), Err(AddrError::Text(_))));
    }
}
