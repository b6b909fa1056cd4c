//! Emulated hardware: the bus, PCI, UART, RTC, power registers.
//!
//! Devices know traits for interrupts and for guest memory that is mapped straight through; never KVM, never VFIO. The machine
//! implements those traits.
#![deny(unsafe_code)]

pub mod bus;
pub mod doorbell;
pub mod fw_cfg;
pub mod interrupt;
pub mod mapping;
mod output;
pub mod pci;
pub mod power;
pub mod pvpanic;
pub mod register_file;
pub mod rtc;
pub mod rtl8139;
#[cfg(test)]
mod testing;
pub mod uart;
pub mod virtio;
