//! The lab's hand in L1: this same program, run there by L1's init, takes commands over a virtio-serial port, runs any number
//! of them at once, and sends back what they say as they say it.

mod client;
mod server;
mod wire;

pub(crate) use client::{Agent, Event, Job, Output};
pub(crate) use server::serve;
pub(crate) use wire::Request;

/// The port's name, on QEMU's command line and in L1's sysfs.
pub(crate) const PORT: &str = "lab.agent";
