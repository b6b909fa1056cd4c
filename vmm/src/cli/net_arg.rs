//! `--net tap=IF|fd=N[,model=virtio|rtl8139][,mac=M][,queues=N][,vhost=on|off|auto][,addr=SLOT]`.

use std::str::FromStr;

use devices::pci::Slot;
use vfio::host::Mac;

use super::slot::{self, AddrError};
use crate::net::{Model, Source, Vhost};

/// More pairs than that are more than a tap of the kernel's is likely to have processors for.
const MOST_QUEUES: usize = 16;

/// The argument of one `--net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetArg {
    /// The host's side.
    pub source: Source,
    /// The guest's address on it; one that follows from the guest's name and the slot if absent.
    pub mac: Option<[u8; 6]>,
    /// What the guest sees.
    pub model: Model,
    /// How many pairs of queues.
    pub queues: usize,
    /// Who carries the packets.
    pub vhost: Vhost,
    /// Where on the guest's bus it goes; the first free slot if absent.
    pub slot: Option<Slot>,
}

/// The text is not a network interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetArgError {
    /// No host's side.
    #[error(
        "name a tap of the host's: --net tap=tap0 (made if it is not there), or an open one: --net fd=3"
    )]
    Empty,
    /// Two of them.
    #[error("'{0}' is a second tap: write --net once for each")]
    Twice(String),
    /// An option nobody knows.
    #[error(
        "'{0}' is not an option of --net: there are tap=, fd=, model=virtio|rtl8139, mac=, queues=, vhost=on|off|auto and addr="
    )]
    Unknown(String),
    /// Not the name of an interface.
    #[error(
        "'{0}' cannot be the name of an interface: write 1 to 15 letters, digits, '-', '_' and '.', such as tap0"
    )]
    Name(String),
    /// Not a descriptor.
    #[error("'{0}' is not an open file's number: write one from 3 on, such as fd=3")]
    Descriptor(String),
    /// Not a number of queues.
    #[error("'{0}' is not a number of queues: write 1 to {MOST_QUEUES}; a tap by fd= has one")]
    Queues(String),
    /// Not a model, or one that cannot have what else is asked for.
    #[error(
        "'{0}': write model=virtio, or model=rtl8139, which is emulated and has neither vhost=on nor queues="
    )]
    Model(String),
    /// Neither on nor off.
    #[error("'{0}': write vhost=on, vhost=off or vhost=auto")]
    Vhost(String),
    /// Not a MAC.
    #[error(transparent)]
    Mac(#[from] vfio::host::MacParseError),
    /// Not a slot.
    #[error(transparent)]
    Addr(#[from] AddrError),
}

impl FromStr for NetArg {
    type Err = NetArgError;

    fn from_str(text: &str) -> Result<Self, NetArgError> {
        let mut source = None;
        let mut arg = Self {
            source: Source::Descriptor(-1),
            mac: None,
            model: Model::Virtio,
            queues: 1,
            vhost: Vhost::Auto,
            slot: None,
        };
        for option in text.split(',').filter(|option| !option.is_empty()) {
            let unknown = || NetArgError::Unknown(option.to_owned());
            let (key, value) = option.split_once('=').ok_or_else(unknown)?;
            match key {
                "tap" | "fd" if source.is_some() => {
                    return Err(NetArgError::Twice(option.to_owned()));
                }
                "tap" => source = Some(Source::Name(parse_name(value)?)),
                "fd" => source = Some(Source::Descriptor(parse_descriptor(value)?)),
                "mac" => arg.mac = Some(value.parse::<Mac>()?.0),
                "model" => arg.model = parse_model(option, value)?,
                "queues" => arg.queues = parse_queues(value)?,
                "vhost" => arg.vhost = parse_vhost(option, value)?,
                "addr" => arg.slot = Some(slot::parse_whole(value)?),
                _ => return Err(unknown()),
            }
        }
        arg.source = source.ok_or(NetArgError::Empty)?;
        if arg.queues > 1 && matches!(arg.source, Source::Descriptor(_)) {
            return Err(NetArgError::Queues(arg.queues.to_string()));
        }
        if arg.model != Model::Virtio && (arg.queues > 1 || arg.vhost == Vhost::On) {
            return Err(NetArgError::Model(text.to_owned()));
        }
        Ok(arg)
    }
}

/// What the kernel takes as a name (dev_valid_name in net/core/dev.c), and nothing that it would make a pattern of.
fn parse_name(value: &str) -> Result<String, NetArgError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_name = (1..=15).contains(&value.len()) && value.chars().all(plain);
    if !is_name || value == "." || value == ".." {
        return Err(NetArgError::Name(value.to_owned()));
    }
    Ok(value.to_owned())
}

fn parse_descriptor(value: &str) -> Result<i32, NetArgError> {
    let number = value.parse().ok().filter(|&fd: &i32| fd > 2);
    number.ok_or_else(|| NetArgError::Descriptor(value.to_owned()))
}

fn parse_model(option: &str, value: &str) -> Result<Model, NetArgError> {
    match value {
        "virtio" => Ok(Model::Virtio),
        "rtl8139" => Ok(Model::Rtl8139),
        _ => Err(NetArgError::Model(option.to_owned())),
    }
}

fn parse_queues(value: &str) -> Result<usize, NetArgError> {
    let number = value.parse().ok();
    let number = number.filter(|queues| (1..=MOST_QUEUES).contains(queues));
    number.ok_or_else(|| NetArgError::Queues(value.to_owned()))
}

fn parse_vhost(option: &str, value: &str) -> Result<Vhost, NetArgError> {
    match value {
        "auto" => Ok(Vhost::Auto),
        "on" => Ok(Vhost::On),
        "off" => Ok(Vhost::Off),
        _ => Err(NetArgError::Vhost(option.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetArg, NetArgError> {
        text.parse()
    }

    #[test]
    fn an_interface_is_a_tap_and_what_the_guest_sees_of_it() {
        let plain = parse("tap=tap0").unwrap();
        assert_eq!(plain.source, Source::Name("tap0".into()));
        assert_eq!(
            (plain.queues, plain.vhost, plain.mac),
            (1, Vhost::Auto, None)
        );
        let all = parse("tap=br-tap.1,mac=02:00:00:00:00:01,queues=2,vhost=off,addr=0x7").unwrap();
        assert_eq!(all.mac, Some([2, 0, 0, 0, 0, 1]));
        assert_eq!((all.queues, all.vhost), (2, Vhost::Off));
        assert_eq!(all.slot.map(|slot| slot.device), Some(7));
        let card = parse("tap=a,model=rtl8139").unwrap();
        assert_eq!((plain.model, card.model), (Model::Virtio, Model::Rtl8139));
        assert_eq!(parse("fd=3").unwrap().source, Source::Descriptor(3));
    }

    #[test]
    fn what_cannot_be_is_told_with_what_can() {
        assert_eq!(parse(""), Err(NetArgError::Empty));
        assert_eq!(parse("mac=02:00:00:00:00:01"), Err(NetArgError::Empty));
        assert_eq!(parse("tap0"), Err(NetArgError::Unknown("tap0".into())));
        for name in ["", "..", "a/b", "tap%d", "sixteen-is-one-2m", "tap 0"] {
            let error = NetArgError::Name(name.into());
            assert_eq!(parse(&format!("tap={name}")), Err(error));
        }
        for wrong in [
            "model=e1000",
            "model=rtl8139,queues=2",
            "model=rtl8139,vhost=on",
        ] {
            let refused = parse(&format!("tap=a,{wrong}"));
            assert!(matches!(refused, Err(NetArgError::Model(_))), "{wrong}");
        }
        assert!(matches!(parse("fd=2"), Err(NetArgError::Descriptor(_))));
        assert!(matches!(parse("fd=3,tap=a"), Err(NetArgError::Twice(_))));
        assert!(matches!(
            parse("tap=a,queues=0"),
            Err(NetArgError::Queues(_))
        ));
        assert!(matches!(
            parse("fd=3,queues=2"),
            Err(NetArgError::Queues(_))
        ));
        assert!(matches!(
            parse("tap=a,vhost=yes"),
            Err(NetArgError::Vhost(_))
        ));
        assert!(matches!(parse("tap=a,addr=00"), Err(NetArgError::Addr(_))));
        assert!(matches!(
            parse("tap=a,mac=01:00:00:00:00:01"),
            Err(NetArgError::Mac(_))
        ));
    }
}
