//! What the guest finds at power-on, as pure functions: values in, bytes out. No KVM, no I/O.
#![forbid(unsafe_code)]

pub mod boot;
pub mod e820;
pub mod layout;
pub mod ram;

#[cfg(test)]
mod random;
