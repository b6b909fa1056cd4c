//! Where virtio's registers are, and their bits. Virtual I/O Device 1.2: §2.1 (status), §4.1.4 (PCI capabilities and structures), §6
//! (features); the names are those of Linux's `virtio_pci.h` and `virtio_config.h`, shortened.

/// Vendor ID of all virtio devices (§4.1.2).
pub(super) const VENDOR: u16 = 0x1af4;
/// Device IDs start here; the device's type is added (§4.1.2).
pub(super) const DEVICE_BASE: u16 = 0x1040;

/// Capability of the common configuration (§4.1.4).
pub(super) const CAP_COMMON: u8 = 1;
/// Capability of the notification area.
pub(super) const CAP_NOTIFY: u8 = 2;
/// Capability of the interrupt status.
pub(super) const CAP_ISR: u8 = 3;
/// Capability of the device's own configuration.
pub(super) const CAP_DEVICE: u8 = 4;
/// Capability of the window in configuration space.
pub(super) const CAP_PCI_CONFIG: u8 = 5;

/// Status: features are agreed upon.
pub(super) const STATUS_FEATURES_OK: u8 = 8;
/// Status: the driver is set up.
pub(super) const STATUS_DRIVER_OK: u8 = 4;
/// Status: the device cannot go on until it is reset.
pub(super) const STATUS_NEEDS_RESET: u8 = 0x40;

/// Interrupt status: a queue was used.
pub(super) const ISR_QUEUE: u8 = 1;
/// Interrupt status: the configuration, or the status, changed.
pub(super) const ISR_CONFIG: u8 = 2;

/// How a vector register says that there is no vector.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Feature: descriptors may be in a table elsewhere.
pub(super) const F_INDIRECT_DESC: u64 = 1 << 28;
/// Feature: either side says from which entry on it wants to be told.
pub(super) const F_EVENT_IDX: u64 = 1 << 29;
/// Feature: this is no legacy device.
pub(super) const F_VERSION_1: u64 = 1 << 32;

/// Common configuration, by offset (§4.1.4.3).
pub(super) mod common {
    /// Which half of the device's features shows, 32 bits.
    pub(crate) const DEVICE_FEATURE_SELECT: usize = 0x00;
    /// That half.
    pub(crate) const DEVICE_FEATURE: usize = 0x04;
    /// Which half of the driver's features is written, 32 bits.
    pub(crate) const DRIVER_FEATURE_SELECT: usize = 0x08;
    /// That half.
    pub(crate) const DRIVER_FEATURE: usize = 0x0c;
    /// Vector of configuration changes, 16 bits.
    pub(crate) const CONFIG_VECTOR: usize = 0x10;
    /// How many queues there are, 16 bits.
    pub(crate) const NUM_QUEUES: usize = 0x12;
    /// Device status, 8 bits.
    pub(crate) const STATUS: usize = 0x14;
    /// The generation of the device's own configuration, 8 bits.
    pub(crate) const CONFIG_GENERATION: usize = 0x15;
    /// Which queue the following are of, 16 bits.
    pub(crate) const QUEUE_SELECT: usize = 0x16;
    /// Its size in entries, 16 bits.
    pub(crate) const QUEUE_SIZE: usize = 0x18;
    /// Its vector, 16 bits.
    pub(crate) const QUEUE_VECTOR: usize = 0x1a;
    /// Whether it is in use, 16 bits.
    pub(crate) const QUEUE_ENABLE: usize = 0x1c;
    /// Its place in the notification area, 16 bits.
    pub(crate) const QUEUE_NOTIFY_OFFSET: usize = 0x1e;
    /// Where its descriptors are, 64 bits, each half written by itself.
    pub(crate) const QUEUE_DESCRIPTORS: usize = 0x20;
    /// Where its available ring is.
    pub(crate) const QUEUE_AVAILABLE: usize = 0x28;
    /// Where its used ring is.
    pub(crate) const QUEUE_USED: usize = 0x30;
    /// Where all of that ends: what comes with VIRTIO_F_NOTIF_CONFIG_DATA and VIRTIO_F_RING_RESET is not offered.
    pub(crate) const LEN: usize = 0x38;
}
