//! The network device's numbers: virtio 1.2 §5.1. The names are those of Linux's `virtio_net.h`, shortened.

/// Virtio's number for it.
pub(super) const DEVICE_TYPE: u16 = 1;
/// An Ethernet controller: PCI 3.0 appendix D.
pub(super) const CLASS: u32 = 0x02_00_00;

/// §5.1.3: the device computes checksums.
pub(super) const F_CSUM: u64 = 1 << 0;
/// The driver does with packets whose checksum nobody computed.
pub(super) const F_GUEST_CSUM: u64 = 1 << 1;
/// The configuration has the largest packet that gets through.
pub(super) const F_MTU: u64 = 1 << 3;
/// It has an address.
pub(super) const F_MAC: u64 = 1 << 5;
/// The driver takes large TCP segments over IPv4, …
pub(super) const F_GUEST_TSO4: u64 = 1 << 7;
/// … over IPv6, …
pub(super) const F_GUEST_TSO6: u64 = 1 << 8;
/// … with congestion marked, …
pub(super) const F_GUEST_ECN: u64 = 1 << 9;
/// … and large UDP datagrams.
pub(super) const F_GUEST_UFO: u64 = 1 << 10;
/// The device takes the same.
pub(super) const F_HOST_TSO4: u64 = 1 << 11;
pub(super) const F_HOST_TSO6: u64 = 1 << 12;
pub(super) const F_HOST_ECN: u64 = 1 << 13;
pub(super) const F_HOST_UFO: u64 = 1 << 14;
/// A packet may be put into several requests.
pub(super) const F_MRG_RXBUF: u64 = 1 << 15;
/// The configuration says whether the link is up.
pub(super) const F_STATUS: u64 = 1 << 16;
/// There is a queue for commands.
pub(super) const F_CTRL_VQ: u64 = 1 << 17;
/// There are several pairs of queues.
pub(super) const F_MQ: u64 = 1 << 22;

/// §5.1.4: the link is up.
pub(super) const STATUS_LINK_UP: u16 = 1;

/// Length in bytes of what comes before each packet (§5.1.6), with the number of requests that the packet is in.
pub(super) const HEADER_LEN: usize = 12;
/// Where that number is.
pub(super) const NUM_BUFFERS: usize = 10;

/// §5.1.6.5: class and command of "use so many pairs of queues", and what is answered.
pub(super) const CTRL_MQ: u8 = 4;
pub(super) const CTRL_MQ_VQ_PAIRS_SET: u8 = 0;
pub(super) const CTRL_OK: u8 = 0;
pub(super) const CTRL_ERR: u8 = 1;
