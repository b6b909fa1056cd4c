//! Where the registers of configuration space are, and their bits.
//!
//! PCI Local Bus 3.0 §6.1 (header), §6.2 (its registers); the names are those of Linux's `pci_regs.h`, shortened.

/// Vendor ID, 16 bits.
pub const VENDOR_ID: usize = 0x00;
/// Device ID, 16 bits.
pub const DEVICE_ID: usize = 0x02;
/// Command, 16 bits.
pub const COMMAND: usize = 0x04;
/// Command: answers in I/O space.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command: answers in memory space.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: may master the bus (DMA, and messages too).
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command: INTx disable.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status, 16 bits.
pub const STATUS: usize = 0x06;
/// Status: an INTx interrupt is pending.
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// Status: there is a capability list.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Revision, 8 bits; the class code is the 24 bits above.
pub const REVISION: usize = 0x08;
/// Class code, 24 bits: programming interface, subclass, base class.
pub const CLASS: usize = 0x09;
/// Cache line size, 8 bits.
pub const CACHE_LINE: usize = 0x0c;
/// Latency timer, 8 bits.
pub const LATENCY_TIMER: usize = 0x0d;
/// Header type, 8 bits.
pub const HEADER_TYPE: usize = 0x0e;
/// Header type: the device has more than one function.
pub const HEADER_MULTIFUNCTION: u8 = 1 << 7;
/// The first of six base address registers, 32 bits each.
pub const BAR0: usize = 0x10;
/// What comes after the last base address register: CardBus CIS pointer, 32 bits.
pub const CARDBUS_CIS: usize = 0x28;
/// Subsystem vendor ID, 16 bits.
pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
/// Subsystem ID, 16 bits.
pub const SUBSYSTEM_ID: usize = 0x2e;
/// Expansion ROM base address, 32 bits.
pub const ROM: usize = 0x30;
/// First capability, 8 bits.
pub const CAPABILITIES: usize = 0x34;
/// Interrupt line, 8 bits.
pub const INTERRUPT_LINE: usize = 0x3c;
/// Interrupt pin, 8 bits: 0 none, 1 INTA.
pub const INTERRUPT_PIN: usize = 0x3d;
/// Where the header ends and capabilities may start.
pub const HEADER_END: usize = 0x40;
/// Where conventional configuration space ends and extended capabilities start.
pub const EXTENDED: usize = 0x100;
/// Size of a function's configuration space, in bytes.
pub const CONFIG_LEN: usize = 0x1000;

/// Capability ID: power management.
pub const CAP_POWER: u8 = 0x01;
/// Capability ID: MSI.
pub const CAP_MSI: u8 = 0x05;
/// Capability ID: vendor specific.
pub const CAP_VENDOR: u8 = 0x09;
/// Capability ID: PCI Express.
pub const CAP_EXPRESS: u8 = 0x10;
/// Capability ID: MSI-X.
pub const CAP_MSIX: u8 = 0x11;
/// Capability ID: Advanced Features (FLR for conventional functions).
pub const CAP_ADVANCED_FEATURES: u8 = 0x13;

/// Extended capability ID: alternative routing ID.
pub const EXT_ARI: u16 = 0x0e;
/// Extended capability ID: address translation services.
pub const EXT_ATS: u16 = 0x0f;
/// Extended capability ID: single root I/O virtualization.
pub const EXT_SRIOV: u16 = 0x10;
/// Extended capability ID: page request interface.
pub const EXT_PRI: u16 = 0x13;
/// Extended capability ID: resizable BAR.
pub const EXT_RESIZABLE_BAR: u16 = 0x15;
/// Extended capability ID: process address space ID.
pub const EXT_PASID: u16 = 0x1b;
/// Extended capability ID: resizable BARs of VFs.
pub const EXT_VF_RESIZABLE_BAR: u16 = 0x24;
