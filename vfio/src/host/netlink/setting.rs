//! What a physical function's driver keeps for each virtual one, and how it is changed: `IFLA_VFINFO_LIST` of linux/if_link.h.

use std::fmt;

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        LinkAttribute, LinkMessage, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac, VfInfoRate,
        VfInfoSpoofCheck, VfInfoTrust, VfInfoVlan, VfLinkState,
    },
};

use super::Mac;

/// A VLAN that the card adds to what a virtual function sends, and takes from what it receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlan {
    /// Its number; 0 is none.
    pub id: u16,
    /// The priority of what is sent, 0 to 7.
    pub priority: u8,
    /// The tag is a provider's (802.1ad), not a customer's (802.1Q).
    pub is_service: bool,
}

/// How fast a virtual function may send, in Mbit/s; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// It gets no more.
    pub max: u32,
    /// It gets this much in any case.
    pub min: u32,
}

/// What a virtual function is told of its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// That of the physical one.
    Auto,
    /// It is up, whatever the cable says: virtual functions of one port reach each other.
    On,
    /// It is down.
    Off,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// One thing to set for a virtual function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Its address; all zeros takes it away, where the driver allows that.
    Mac(Mac),
    /// Its VLAN.
    Vlan(Vlan),
    /// Whether it may do what concerns others: be promiscuous, change its address.
    Trust(bool),
    /// Whether frames with another sender than its address are dropped.
    SpoofCheck(bool),
    /// How fast it may send.
    Rate(Rate),
    /// What it is told of its link.
    Link(LinkState),
}

impl Setting {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mac(_) => "MAC address",
            Self::Vlan(_) => "VLAN",
            Self::Trust(_) => "trust",
            Self::SpoofCheck(_) => "spoof check",
            Self::Rate(_) => "rate",
            Self::Link(_) => "link state",
        }
    }

    /// `ip link set <link> vf <function> …`.
    pub(super) fn message(self, link: u32, function: u32) -> RouteNetlinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = link;
        let info = LinkVfInfo(vec![self.info(function)]);
        message.attributes = vec![LinkAttribute::VfInfoList(vec![info])];
        RouteNetlinkMessage::SetLink(message)
    }

    fn info(self, function: u32) -> VfInfo {
        match self {
            Self::Mac(mac) => VfInfo::Mac(VfInfoMac::new(function, &mac.0)),
            Self::Vlan(vlan) => VfInfo::Vlan(VfInfoVlan::new(
                function,
                vlan.id.into(),
                vlan.priority.into(),
            )),
            Self::Trust(on) => VfInfo::Trust(VfInfoTrust::new(function, on)),
            Self::SpoofCheck(on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(function, on)),
            Self::Rate(rate) => VfInfo::Rate(VfInfoRate::new(function, rate.min, rate.max)),
            Self::Link(state) => {
                let state = match state {
                    LinkState::Auto => VfLinkState::Auto,
                    LinkState::On => VfLinkState::Enable,
                    LinkState::Off => VfLinkState::Disable,
                };
                VfInfo::LinkState(VfInfoLinkState::new(function, state))
            }
        }
    }
}

/// The words of ip-link(8).
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |on: &bool| if *on { "on" } else { "off" };
        match self {
            Self::Mac(mac) => write!(f, "mac {mac}"),
            Self::Vlan(vlan) => write!(f, "vlan {} qos {}", vlan.id, vlan.priority),
            Self::Trust(on) => write!(f, "trust {}", switch(on)),
            Self::SpoofCheck(on) => write!(f, "spoofchk {}", switch(on)),
            Self::Rate(rate) => write!(f, "max_tx_rate {} min_tx_rate {}", rate.max, rate.min),
            Self::Link(LinkState::Auto) => f.write_str("state auto"),
            Self::Link(LinkState::On) => f.write_str("state enable"),
            Self::Link(LinkState::Off) => f.write_str("state disable"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::packet, *};

    /// The nested attribute of a setting for function 3, with its kind, and what follows the function's number.
    fn attribute(setting: Setting) -> (u16, Vec<u8>) {
        let bytes = packet(setting.message(7, 3), 1, 0);
        // nlmsghdr 16, ifinfomsg 16, then IFLA_VFINFO_LIST (22) { IFLA_VF_INFO (1) { … { vf, … } } }.
        assert_eq!(bytes[20..24], 7_u32.to_ne_bytes(), "the interface");
        assert_eq!((bytes[34], bytes[38]), (22, 1));
        assert_eq!(bytes[44..48], 3_u32.to_ne_bytes(), "the function");
        (
            u16::from_ne_bytes([bytes[42], bytes[43]]),
            bytes[48..].to_vec(),
        )
    }

    #[test]
    fn every_setting_is_the_attribute_of_the_header_file() {
        let words = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        };
        let vlan = Vlan {
            id: 100,
            priority: 3,
            is_service: false,
        };
        let rate = Rate { max: 500, min: 20 };
        for (setting, kind, body) in [
            (Setting::Vlan(vlan), 2, words(&[100, 3])),
            (Setting::SpoofCheck(true), 4, words(&[1])),
            (Setting::Link(LinkState::Auto), 5, words(&[0])),
            (Setting::Link(LinkState::On), 5, words(&[1])),
            (Setting::Link(LinkState::Off), 5, words(&[2])),
            (Setting::Rate(rate), 6, words(&[20, 500])),
            (Setting::Trust(false), 9, words(&[0])),
        ] {
            assert_eq!(attribute(setting), (kind, body), "{setting}");
        }
    }

    #[test]
    fn an_address_is_as_long_as_the_longest_of_any_link() {
        let mac = Mac([2, 0, 0x5e, 0x10, 0, 1]);
        let (kind, body) = attribute(Setting::Mac(mac));
        assert_eq!((kind, body.len()), (1, 32));
        assert_eq!(body[..6], mac.0);
        assert!(body[6..].iter().all(|&byte| byte == 0));
    }
}
