//! The few rtnetlink requests that virtual functions need (rtnetlink(7)).

mod link;
mod setting;

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub use link::FunctionSettings;
pub(super) use link::Link;
pub use setting::{LinkState, Rate, Setting, Vlan};

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
    /// This is no running machine.
    #[error("{0}: a recorded machine has no network side to ask")]
    Recorded(String),
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

impl NetlinkError {
    /// What the kernel said, where it refused.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { cause, .. } => cause.raw_os_error(),
            _ => None,
        }
    }
}

/// The network side of a host.
pub(super) trait Links: Send + Sync {
    /// What there is to know of an interface.
    fn link(&self, name: &str) -> Result<Link, NetlinkError>;
    /// `ip link set <link> up`.
    fn set_up(&self, link: &Link) -> Result<(), NetlinkError>;
    /// `ip link set <link> vf <function> …`.
    fn set(&self, link: &Link, function: u32, setting: Setting) -> Result<(), NetlinkError>;
}

/// The machine that runs.
pub(super) struct Running;

impl Links for Running {
    fn link(&self, name: &str) -> Result<Link, NetlinkError> {
        Netlink::open()?.link(name)
    }

    fn set_up(&self, link: &Link) -> Result<(), NetlinkError> {
        let what = "bringing it up";
        Netlink::open()?.tell(what, set_up(link.index))
    }

    fn set(&self, link: &Link, function: u32, setting: Setting) -> Result<(), NetlinkError> {
        let what = format!(
            "setting the {} of virtual function {function}",
            setting.name()
        );
        Netlink::open()?.tell(&what, setting.message(link.index, function))
    }
}

/// A machine of files.
pub(super) struct Recorded;

impl Links for Recorded {
    fn link(&self, name: &str) -> Result<Link, NetlinkError> {
        Err(NetlinkError::Recorded(name.to_owned()))
    }

    fn set_up(&self, link: &Link) -> Result<(), NetlinkError> {
        Err(NetlinkError::Recorded(link.index.to_string()))
    }

    fn set(&self, link: &Link, _: u32, setting: Setting) -> Result<(), NetlinkError> {
        Err(NetlinkError::Recorded(format!("{} {setting}", link.index)))
    }
}

/// A conversation with the kernel.
struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// `struct nlmsghdr` and `struct ifinfomsg`; the attributes come after them.
const HEADER_BYTES: usize = 16 + 16;

impl Netlink {
    fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(NetlinkError::Socket)?;
        let sequence = 0;
        Ok(Self { socket, sequence })
    }

    fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            // Without the counters: all functions together have to fit an attribute, which is no longer than 64 KiB.
            LinkAttribute::ExtMask(vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats]),
        ];
        let what = format!("asking for interface {name}");
        let answer = self.ask(&what, RouteNetlinkMessage::GetLink(message), 0)?;
        match parse(&what, &answer)? {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(Link::new(
                &link,
                answer.get(HEADER_BYTES..).unwrap_or_default(),
            )),
            other => Err(NetlinkError::Unreadable {
                what,
                why: format!("no link in it: {other:?}"),
            }),
        }
    }

    fn tell(&mut self, what: &str, message: RouteNetlinkMessage) -> Result<(), NetlinkError> {
        let answer = self.ask(what, message, NLM_F_ACK)?;
        parse(what, &answer).map(drop)
    }

    /// One request, one answer.
    fn ask(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<u8>, NetlinkError> {
        log::trace!("{what}");
        self.sequence = self.sequence.wrapping_add(1);
        let request = packet(message, self.sequence, NLM_F_REQUEST | flags);
        self.socket
            .send(&request, 0)
            .map_err(NetlinkError::Socket)?;
        let (answer, _) = self.socket.recv_from_full().map_err(NetlinkError::Socket)?;
        Ok(answer)
    }
}

/// The message in an answer; `None` is the kernel's "done".
fn parse(what: &str, answer: &[u8]) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
    let answer = NetlinkMessage::deserialize(answer).map_err(|error| {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_an_address_is_a_request_that_is_acknowledged() {
        let message = Setting::Mac(Mac([2, 0, 0x5e, 0x10, 0, 1])).message(7, 3);
        let bytes = packet(message, 1, NLM_F_REQUEST | NLM_F_ACK);
        assert_eq!(bytes.len(), HEADER_BYTES + 4 + 4 + 4 + 36);
        assert_eq!(bytes[4..8], [19, 0, 5, 0], "RTM_SETLINK, request and ack");
    }

    #[test]
    fn bringing_up_changes_the_up_flag_and_no_other() {
        let bytes = packet(set_up(7), 1, NLM_F_REQUEST | NLM_F_ACK);
        assert_eq!(bytes.len(), HEADER_BYTES);
        assert_eq!(bytes[24..28], 1_u32.to_ne_bytes(), "flags");
        assert_eq!(bytes[28..32], 1_u32.to_ne_bytes(), "which of them change");
    }

    #[test]
    fn the_loopback_interface_is_found_by_name_and_one_that_is_not_there_is_refused() {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap();
        assert_eq!((lo.index, lo.functions), (1, vec![]));
        let error = netlink.link("no-such-if").unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODEV), "{error}");
        // The conversation goes on after a refusal.
        assert!(netlink.link("lo").is_ok());
    }

    #[test]
    fn an_interface_is_brought_up_and_one_without_functions_takes_nothing_for_them() {
        // In a network namespace of this thread alone, where lo starts down.
        #[expect(unsafe_code, reason = "unshare is a foreign call")]
        // SAFETY: no pointers; only this thread's network namespace changes.
        let alone = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        if !alone {
            let error = io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
            return println!("SKIPPED (a network namespace of its own: {error})");
        }
        let lo = Running.link("lo").unwrap();
        assert!(!lo.up);
        Running.set_up(&lo).unwrap();
        assert!(Running.link("lo").unwrap().up);
        let error = Running.set(&lo, 0, Setting::Trust(true)).unwrap_err();
        let text = error.to_string();
        let what = "setting the trust of virtual function 0: ";
        assert!(text.starts_with(what), "{text}");
        assert_eq!(error.errno(), Some(libc::EOPNOTSUPP));
    }
}
