//! What the guest finds at power-on, as pure functions: values in, bytes out. No KVM, no I/O.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod e820;
pub mod lapic;
pub mod layout;
pub mod msr;
pub mod ram;
pub mod smbios;

#[cfg(test)]
mod random;
