//! The registers of Realtek's RTL8139C, as Linux's 8139too knows them (drivers/net/ethernet/realtek/8139too.c); the names are its,
//! spelt out.

/// Its address, six bytes.
pub(super) const ADDRESS: usize = 0x00;
/// Which groups' packets are received: a bit for each of 64 hashes.
pub(super) const MULTICAST: usize = 0x08;
/// Four descriptors of packets to be sent: size and state, 32 bits each.
pub(super) const TX_STATUS: usize = 0x10;
/// Where these packets are, 32 bits each.
pub(super) const TX_ADDRESS: usize = 0x20;
/// How many of them there are.
pub(super) const TX_DESCRIPTORS: usize = 4;
/// Where the ring of received packets is, 32 bits.
pub(super) const RX_BUFFER: usize = 0x30;
/// Command, 8 bits.
pub(super) const COMMAND: usize = 0x37;
/// Where in the ring the driver reads, less 16; 16 bits.
pub(super) const RX_READ: usize = 0x38;
/// Where in the ring the next packet goes, 16 bits.
pub(super) const RX_WRITE: usize = 0x3a;
/// Which interrupts are wanted, 16 bits.
pub(super) const INTERRUPT_MASK: usize = 0x3c;
/// Which have come; writing ones clears them.
pub(super) const INTERRUPT_STATUS: usize = 0x3e;
/// How packets are sent, 32 bits, and which chip this is.
pub(super) const TX_CONFIG: usize = 0x40;
/// How and which packets are received, 32 bits.
pub(super) const RX_CONFIG: usize = 0x44;
/// Packets that there was no room for, 24 bits; a write clears it.
pub(super) const RX_MISSED: usize = 0x4c;
/// Command of the EEPROM, 8 bits.
pub(super) const EEPROM: usize = 0x50;
/// Where what is configured begins, and its length: kept, and of no consequence here.
pub(super) const CONFIGURATION: usize = 0x51;
pub(super) const CONFIGURATION_LEN: usize = 0x0d;
/// The state of the medium, 8 bits; 0 is a link of 100 Mbit/s.
pub(super) const MEDIUM: usize = 0x58;
/// Descriptors' states in short, 16 bits.
pub(super) const TX_SUMMARY: usize = 0x60;
/// The transceiver's control, status, what it says of itself, what its partner says, and how that went; 16 bits each.
pub(super) const PHY_CONTROL: usize = 0x62;
pub(super) const PHY_STATUS: usize = 0x64;
pub(super) const PHY_OWN: usize = 0x66;
pub(super) const PHY_PARTNER: usize = 0x68;
pub(super) const PHY_EXPANSION: usize = 0x6a;
/// How many bytes of registers there are.
pub(super) const LEN: usize = 0x100;

pub(super) const COMMAND_EMPTY: u8 = 1 << 0;
pub(super) const COMMAND_TX: u8 = 1 << 2;
pub(super) const COMMAND_RX: u8 = 1 << 3;
pub(super) const COMMAND_RESET: u8 = 1 << 4;

pub(super) const TX_SIZE: u32 = 0x1fff;
pub(super) const TX_OWN: u32 = 1 << 13;
pub(super) const TX_OK: u32 = 1 << 15;
pub(super) const TX_ABORTED: u32 = 1 << 30;

pub(super) const INTERRUPT_RX: u16 = 1 << 0;
pub(super) const INTERRUPT_TX: u16 = 1 << 2;
pub(super) const INTERRUPT_TX_ERROR: u16 = 1 << 3;

pub(super) const RX_ALL: u32 = 1 << 0;
pub(super) const RX_OWN: u32 = 1 << 1;
pub(super) const RX_GROUPS: u32 = 1 << 2;
pub(super) const RX_EVERYBODY: u32 = 1 << 3;
pub(super) const RX_NO_WRAP: u32 = 1 << 7;
/// The ring is 8 KiB, shifted by this field.
pub(super) const RX_RING_SHIFT: u32 = 11;

/// Of a received packet: good, for everybody, for us, for a group.
pub(super) const PACKET_OK: u16 = 1 << 0;
pub(super) const PACKET_EVERYBODY: u16 = 1 << 13;
pub(super) const PACKET_OWN: u16 = 1 << 14;
pub(super) const PACKET_GROUP: u16 = 1 << 15;

/// The chip in TX_CONFIG: an RTL8139C.
pub(super) const CHIP: u32 = 0x7400_0000;
