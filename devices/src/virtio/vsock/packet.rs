//! A packet's header (virtio 1.2 §5.10.6), as bytes in a queue and as its fields.

/// Length of a header in bytes.
pub(super) const HEADER_LEN: usize = 44;
/// The only kind of socket there is here (§5.10.6.3): a stream.
pub(super) const STREAM: u16 = 1;

/// What a packet is for. Linux's `virtio_vsock.h` has the numbers.
pub(super) mod op {
    /// Asks for a connection.
    pub(crate) const REQUEST: u16 = 1;
    /// Accepts one.
    pub(crate) const RESPONSE: u16 = 2;
    /// There is no such connection, or no longer.
    pub(crate) const RESET: u16 = 3;
    /// One side stops sending, or receiving, or both.
    pub(crate) const SHUTDOWN: u16 = 4;
    /// Data.
    pub(crate) const DATA: u16 = 5;
    /// Says how much room there is.
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    /// Asks for that.
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// Flag of a shutdown: who says so receives nothing any more.
pub(super) const NO_RECEIVE: u32 = 1;
/// Flag of a shutdown: who says so sends nothing any more.
pub(super) const NO_SEND: u32 = 2;
/// Both of them: it is over.
pub(super) const NEITHER: u32 = NO_RECEIVE | NO_SEND;

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub(super) from_cid: u64,
    pub(super) to_cid: u64,
    pub(super) from_port: u32,
    pub(super) to_port: u32,
    /// How much data follows, in bytes.
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// How much the sender has room for, of this connection, in bytes.
    pub(super) room: u32,
    /// How much of what it received it has passed on; counts on from 2^32 to 0.
    pub(super) forwarded: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let word = |at| u16::from_le_bytes([byte(at), byte(at + 1)]);
        let dword = |at| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        let qword = |at| u64::from(dword(at)) | u64::from(dword(at + 4)) << 32;
        Self {
            from_cid: qword(0),
            to_cid: qword(8),
            from_port: dword(16),
            to_port: dword(20),
            len: dword(24),
            kind: word(28),
            op: word(30),
            flags: dword(32),
            room: dword(36),
            forwarded: dword(40),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend(self.from_cid.to_le_bytes());
        bytes.extend(self.to_cid.to_le_bytes());
        bytes.extend(self.from_port.to_le_bytes());
        bytes.extend(self.to_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.room.to_le_bytes());
        bytes.extend(self.forwarded.to_le_bytes());
        bytes
    }

    /// A reset in answer to this packet.
    pub(super) fn refusal(&self) -> Self {
        Self {
            from_cid: self.to_cid,
            to_cid: self.from_cid,
            from_port: self.to_port,
            to_port: self.from_port,
            kind: self.kind,
            op: op::RESET,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_reset_the_other_way() {
        let packet = Header::parse(&[1; HEADER_LEN]);
        let packet = Header {
            from_cid: 3,
            to_cid: 2,
            from_port: 1024,
            to_port: 80,
            ..packet
        };
        // virtio 1.2 §5.10.6.1: addresses exchanged, the same type, no payload.
        let expected = Header {
            from_cid: 2,
            to_cid: 3,
            from_port: 80,
            to_port: 1024,
            kind: packet.kind,
            op: op::RESET,
            ..Header::default()
        };
        assert_eq!(packet.refusal().bytes(), expected.bytes());
    }

    #[test]
    fn a_header_is_read_as_it_is_written_and_each_field_has_its_place() {
        let bytes: Vec<u8> = (1..=44).collect();
        let header = Header::parse(bytes.as_slice().try_into().unwrap());
        assert_eq!(header.from_cid, 0x0807_0605_0403_0201);
        assert_eq!((header.kind, header.op), (0x1e1d, 0x201f));
        assert_eq!(header.forwarded, 0x2c2b_2a29);
        assert_eq!(header.bytes(), bytes);
    }
}
