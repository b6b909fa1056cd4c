//! What the kernel says of an interface, as far as virtual functions are concerned.

use netlink_packet_core::NlasIterator;
use netlink_packet_route::link::{
    LinkAttribute, LinkFlags, LinkMessage, LinkVfInfo, VfInfo, VfLinkState, VfVlan, VlanProtocol,
};

use super::{LinkState, Mac, Rate, Vlan};

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::host) struct Link {
    pub(in crate::host) index: u32,
    pub(in crate::host) up: bool,
    pub(in crate::host) mac: Option<Mac>,
    /// The virtual functions that the driver tells of, with their numbers.
    pub(in crate::host) functions: Vec<(u32, FunctionSettings)>,
}

/// What a physical function's driver keeps for a virtual one. `None` is what it says nothing of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FunctionSettings {
    /// Its address; all zeros where nobody gave it one.
    pub mac: Option<Mac>,
    /// Its VLAN.
    pub vlan: Option<Vlan>,
    /// Whether it may do what concerns others.
    pub trust: Option<bool>,
    /// Whether frames with another sender are dropped.
    pub spoof_check: Option<bool>,
    /// How fast it may send.
    pub rate: Option<Rate>,
    /// What it is told of its link.
    pub link: Option<LinkState>,
}

impl Link {
    /// The answer to RTM_GETLINK, parsed, and its attributes as they came.
    pub(super) fn new(message: &LinkMessage, attributes: &[u8]) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            mac: None,
            functions: Vec::new(),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Address(octets) => {
                    link.mac = <[u8; 6]>::try_from(&octets[..]).ok().map(Mac);
                }
                LinkAttribute::VfInfoList(list) => {
                    link.functions.extend(list.iter().filter_map(function));
                }
                _ => {}
            }
        }
        for (kind, number) in unsaid(attributes) {
            let of = |one: &&mut (u32, FunctionSettings)| one.0 == number;
            if let Some((_, settings)) = link.functions.iter_mut().find(of) {
                match kind {
                    SPOOFCHK => settings.spoof_check = None,
                    _ => settings.trust = None,
                }
            }
        }
        link
    }
}

/// The driver gives each function a number of its own in every attribute; they are the same.
fn function(info: &LinkVfInfo) -> Option<(u32, FunctionSettings)> {
    let mut number = None;
    let mut settings = FunctionSettings::default();
    for info in &info.0 {
        match info {
            VfInfo::Mac(info) => {
                number = Some(info.vf_id);
                // The field is as long as the longest address of any kind of link.
                settings.mac = info.mac.first_chunk().copied().map(Mac);
            }
            VfInfo::VlanList(list) => settings.vlan = list.iter().find_map(vlan),
            VfInfo::Trust(info) => settings.trust = Some(info.enabled),
            VfInfo::SpoofCheck(info) => settings.spoof_check = Some(info.enabled),
            VfInfo::Rate(info) => {
                let (max, min) = (info.max_tx_rate, info.min_tx_rate);
                settings.rate = Some(Rate { max, min });
            }
            VfInfo::LinkState(info) => settings.link = link_state(info.state),
            _ => {}
        }
    }
    Some((number?, settings))
}

/// The list rather than the older IFLA_VF_VLAN, which does not say which kind of tag it is. The kernel sends both.
fn vlan(info: &VfVlan) -> Option<Vlan> {
    let VfVlan::Info(info) = info else {
        return None;
    };
    Some(Vlan {
        id: u16::try_from(info.vlan_id).ok()?,
        priority: u8::try_from(info.qos).ok()?,
        is_service: info.protocol == VlanProtocol::Ieee8021Ad,
    })
}

fn link_state(state: VfLinkState) -> Option<LinkState> {
    match state {
        VfLinkState::Auto => Some(LinkState::Auto),
        VfLinkState::Enable => Some(LinkState::On),
        VfLinkState::Disable => Some(LinkState::Off),
        _ => None,
    }
}

const VFINFO_LIST: u16 = 22;
const SPOOFCHK: u16 = 4;
const TRUST: u16 = 9;

/// The switches that the driver says nothing of, by attribute and function. They are -1 then (rtnl_fill_vfinfo() of
/// net/core/rtnetlink.c), which the library takes for "off".
fn unsaid(attributes: &[u8]) -> Vec<(u16, u32)> {
    let lists = NlasIterator::new(attributes).filter_map(Result::ok);
    let mut found = Vec::new();
    for list in lists.filter(|nla| nla.kind() == VFINFO_LIST) {
        for function in NlasIterator::new(list.value()).filter_map(Result::ok) {
            for nla in NlasIterator::new(function.value()).filter_map(Result::ok) {
                let is_switch = matches!(nla.kind(), SPOOFCHK | TRUST);
                let Some((number, [0xff, 0xff, 0xff, 0xff])) = nla.value().split_first_chunk()
                else {
                    continue;
                };
                if is_switch {
                    found.push((nla.kind(), u32::from_ne_bytes(*number)));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Parseable;

    use super::*;

    fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// Function 3 as the kernel sends it.
    fn function_info(spoofchk: u32, trust: u32) -> Vec<u8> {
        let mac = [&words(&[3])[..], &[2, 0, 0, 0, 0, 9], &[0; 26]].concat();
        let vlan_info = [words(&[3, 100, 5]), vec![0x88, 0xa8, 0, 0]].concat();
        let body = [
            nla(1, &mac),
            nla(2, &words(&[3, 100, 5])),
            nla(4, &words(&[3, spoofchk])),
            nla(5, &words(&[3, 2])),
            nla(6, &words(&[3, 20, 500])),
            nla(9, &words(&[3, trust])),
            nla(12, &nla(1, &vlan_info)),
        ];
        nla(1, &body.concat())
    }

    fn parsed(attributes: &[u8]) -> Link {
        // ifinfomsg: interface 7, which is up.
        let mut bytes = words(&[0, 7, 1, 0]);
        bytes.extend(attributes);
        let message = LinkMessage::parse(&bytes[..]).unwrap();
        Link::new(&message, attributes)
    }

    #[test]
    fn all_that_a_driver_tells_of_a_function_is_read() {
        let address = nla(1, &[0x52, 0x54, 0, 1, 2, 3]);
        let list = nla(VFINFO_LIST, &function_info(1, 0));
        let link = parsed(&[address, list].concat());
        assert_eq!((link.index, link.up), (7, true));
        assert_eq!(link.mac, Some(Mac([0x52, 0x54, 0, 1, 2, 3])));
        let wanted = FunctionSettings {
            mac: Some(Mac([2, 0, 0, 0, 0, 9])),
            vlan: Some(Vlan {
                id: 100,
                priority: 5,
                is_service: true,
            }),
            trust: Some(false),
            spoof_check: Some(true),
            rate: Some(Rate { max: 500, min: 20 }),
            link: Some(LinkState::Off),
        };
        assert_eq!(link.functions, [(3, wanted)]);
    }

    #[test]
    fn a_switch_that_the_driver_says_nothing_of_is_not_off() {
        let link = parsed(&nla(VFINFO_LIST, &function_info(u32::MAX, u32::MAX)));
        let (_, settings) = link.functions[0];
        assert_eq!((settings.spoof_check, settings.trust), (None, None));
        assert_eq!(settings.link, Some(LinkState::Off));
    }

    #[test]
    fn attributes_that_are_cut_short_are_no_trouble() {
        let list = nla(VFINFO_LIST, &function_info(u32::MAX, 0));
        for len in 0..list.len() {
            assert!(unsaid(&list[..len]).len() <= 1);
        }
    }
}
