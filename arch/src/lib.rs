//! What the guest finds at power-on, as pure functions: values in, bytes out. No KVM, no I/O.
#![forbid(unsafe_code)]
