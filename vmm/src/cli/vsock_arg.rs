//! `--vsock CID[,SOCKET]`, or `--vsock cid=CID[,socket=PATH]`.

use std::{path::PathBuf, str::FromStr};

/// The argument of `--vsock`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockArg {
    /// The guest's number.
    pub cid: u32,
    /// What programs of the host's connect to; the kernel's own sockets if absent.
    pub socket: Option<PathBuf>,
}

/// The text is not a socket device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VsockArgError {
    /// A guest cannot have this number: 0 to 2 and the highest are taken (virtio 1.2 §5.10.4).
    #[error(
        "'{0}' cannot be the guest's number: choose one from 3 to 4294967294, such as --vsock 3"
    )]
    Cid(String),
    /// It has no number.
    #[error(
        "say the guest's number as well: --vsock 3,/run/guest.vsock, or cid=3,socket=/run/guest.vsock"
    )]
    Missing,
    /// An option nobody knows. A comma cannot be part of a name.
    #[error("'{0}' is not an option of --vsock: there are cid= and socket=")]
    Unknown(String),
}

impl FromStr for VsockArg {
    type Err = VsockArgError;

    fn from_str(text: &str) -> Result<Self, VsockArgError> {
        let (mut cid, mut socket) = (None, None);
        for (place, part) in text.split(',').enumerate() {
            match (place, part.split_once('=')) {
                (_, Some(("cid", value))) => cid = Some(parse_cid(value)?),
                (_, Some(("socket", value))) if !value.is_empty() => socket = Some(value.into()),
                (0, None) => cid = Some(parse_cid(part)?),
                (1, None) if !part.is_empty() => socket = Some(part.into()),
                _ => return Err(VsockArgError::Unknown(part.to_owned())),
            }
        }
        let cid = cid.ok_or(VsockArgError::Missing)?;
        Ok(Self { cid, socket })
    }
}

fn parse_cid(text: &str) -> Result<u32, VsockArgError> {
    let cid = text.parse().ok();
    cid.filter(|cid| (3..u32::MAX).contains(cid))
        .ok_or_else(|| VsockArgError::Cid(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_device_is_a_number_and_a_socket_in_either_notation() {
        let of = |text: &str| text.parse::<VsockArg>();
        let wanted = Ok(VsockArg {
            cid: 3,
            socket: Some("/run/v".into()),
        });
        assert_eq!(of("3,/run/v"), wanted);
        assert_eq!(of("cid=3,socket=/run/v"), wanted);
        assert_eq!(of("socket=/run/v,cid=3"), wanted);
        let socket = None;
        assert_eq!(of("3"), Ok(VsockArg { cid: 3, socket }));
        assert_eq!(of("socket=/run/v"), Err(VsockArgError::Missing));
        for cid in ["0", "2", "4294967295", "4294967296", "x", ""] {
            let refused = Err(VsockArgError::Cid(cid.into()));
            assert_eq!(of(&format!("{cid},/run/v")), refused);
        }
        assert_eq!(of("3,/a,b"), Err(VsockArgError::Unknown("b".into())));
    }
}
