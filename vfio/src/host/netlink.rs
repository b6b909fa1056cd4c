//! The few rtnetlink requests that virtual functions need (rtnetlink(7); `IFLA_VFINFO_LIST` of linux/if_link.h).

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage, LinkVfInfo, VfInfo, VfInfoMac},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::Mac;

/// The kernel's network side did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket failed.
    #[error("cannot talk to the kernel's network side: {0}")]
    Socket(io::Error),
    /// The request was refused.
    #[error("{what}: {cause}{}", fix(cause))]
    Refused {
        /// What was asked.
        what: String,
        /// Why not.
        cause: io::Error,
    },
    /// The answer makes no sense.
    #[error("{what}: the kernel's answer cannot be read: {why}")]
    Unreadable {
        /// What was asked.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

fn fix(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EPERM) => "\n  this needs root, or CAP_NET_ADMIN:  sudo viaduct …",
        _ => "",
    }
}

/// An interface, as far as virtual functions are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) up: bool,
    pub(super) mac: Option<Mac>,
    /// The virtual functions that the driver tells of: number and address.
    pub(super) functions: Vec<(u32, Mac)>,
}

/// A conversation with the kernel.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(NetlinkError::Socket)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    pub(super) fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::ExtMask(vec![LinkExtentMask::Vf]),
        ];
        let what = format!("asking for interface {name}");
        match self.ask(&what, RouteNetlinkMessage::GetLink(message), 0)? {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(Link::from(&link)),
            other => Err(NetlinkError::Unreadable {
                what,
                why: format!("no link in it: {other:?}"),
            }),
        }
    }

    /// `ip link set <interface> up`.
    pub(super) fn set_up(&mut self, index: u32) -> Result<(), NetlinkError> {
        let what = format!("bringing interface {index} up");
        self.ask(&what, set_up(index), NLM_F_ACK).map(drop)
    }

    /// `ip link set <interface> vf <function> mac <mac>`.
    pub(super) fn set_mac(
        &mut self,
        index: u32,
        function: u32,
        mac: Mac,
    ) -> Result<(), NetlinkError> {
        let what = format!("setting the address of virtual function {function} to {mac}");
        self.ask(&what, set_mac(index, function, mac), NLM_F_ACK)
            .map(drop)
    }

    /// One request, one answer; `None` is the kernel's "done".
    fn ask(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = packet(message, self.sequence, NLM_F_REQUEST | flags);
        self.socket
            .send(&request, 0)
            .map_err(NetlinkError::Socket)?;
        let (answer, _) = self.socket.recv_from_full().map_err(NetlinkError::Socket)?;
        let answer = NetlinkMessage::deserialize(&answer).map_err(|error| {
            let (what, why) = (what.to_owned(), error.to_string());
            NetlinkError::Unreadable { what, why }
        })?;
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
            NetlinkPayload::Error(error) if error.code.is_some() => Err(NetlinkError::Refused {
                what: what.to_owned(),
                cause: error.to_io(),
            }),
            _ => Ok(None),
        }
    }
}

fn packet(message: RouteNetlinkMessage, sequence: u32, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes
}

fn set_up(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    RouteNetlinkMessage::SetLink(message)
}

fn set_mac(index: u32, function: u32, mac: Mac) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let info = LinkVfInfo(vec![VfInfo::Mac(VfInfoMac::new(function, &mac.0))]);
    message.attributes = vec![LinkAttribute::VfInfoList(vec![info])];
    RouteNetlinkMessage::SetLink(message)
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
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
                LinkAttribute::VfInfoList(list) => link
                    .functions
                    .extend(list.iter().flat_map(|info| &info.0).filter_map(function)),
                _ => {}
            }
        }
        link
    }
}

fn function(info: &VfInfo) -> Option<(u32, Mac)> {
    let VfInfo::Mac(info) = info else {
        return None;
    };
    // The field is as long as the longest address of any kind of link.
    let octets = info.mac.first_chunk()?;
    Some((info.vf_id, Mac(*octets)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_an_address_is_the_message_of_the_header_file() {
        let mac = Mac([2, 0, 0x5e, 0x10, 0, 1]);
        let bytes = packet(set_mac(7, 3, mac), 1, NLM_F_REQUEST | NLM_F_ACK);
        // nlmsghdr 16, ifinfomsg 16, then IFLA_VFINFO_LIST (22) { IFLA_VF_INFO (1) { IFLA_VF_MAC (1) { vf, mac[32] } } }.
        assert_eq!(bytes.len(), 16 + 16 + 4 + 4 + 4 + 36);
        assert_eq!(bytes[4..8], [19, 0, 5, 0], "RTM_SETLINK, request and ack");
        assert_eq!(bytes[20..24], 7_u32.to_ne_bytes(), "the interface");
        assert_eq!(bytes[32..44], [48, 0, 22, 0, 44, 0, 1, 0, 40, 0, 1, 0]);
        assert_eq!(bytes[44..48], 3_u32.to_ne_bytes(), "the function");
        assert_eq!(bytes[48..54], mac.0);
        assert!(bytes[54..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn bringing_up_changes_the_up_flag_and_no_other() {
        let bytes = packet(set_up(7), 1, NLM_F_REQUEST | NLM_F_ACK);
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes[24..28], 1_u32.to_ne_bytes(), "flags");
        assert_eq!(bytes[28..32], 1_u32.to_ne_bytes(), "which of them change");
    }

    #[test]
    fn the_loopback_interface_is_found_by_name_and_one_that_is_not_there_is_refused() {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap();
        assert_eq!((lo.index, lo.functions), (1, vec![]));
        let error = netlink.link("no-such-if").unwrap_err();
        assert!(matches!(error, NetlinkError::Refused { .. }), "{error}");
        // The conversation goes on after a refusal.
        assert!(netlink.link("lo").is_ok());
    }

    #[test]
    fn an_interface_is_brought_up_and_one_without_functions_takes_no_address_for_them() {
        // In a network namespace of this thread alone, where lo starts down.
        #[expect(unsafe_code, reason = "unshare is a foreign call")]
        // SAFETY: no pointers; only this thread's network namespace changes.
        let alone = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        if !alone {
            return eprintln!("SKIPPED (no right to make a network namespace)");
        }
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap();
        assert!(!lo.up);
        netlink.set_up(lo.index).unwrap();
        assert!(netlink.link("lo").unwrap().up);
        let error = netlink.set_mac(lo.index, 0, Mac([2, 0, 0, 0, 0, 1]));
        let error = error.unwrap_err().to_string();
        let what = "setting the address of virtual function 0 to 02:00:00:00:00:01: ";
        assert!(error.starts_with(what), "{error}");
    }
}
