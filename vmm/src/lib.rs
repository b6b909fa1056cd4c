//! The machine: KVM, guest RAM, assembly, the vCPU loop, control; and what the `viaduct` command does with it.

mod affinity;
pub mod binding;
pub mod boot;
pub mod cli;
pub mod console;
pub mod core_file;
pub mod doctor;
pub mod events;
pub mod input;
pub mod kvm;
pub mod list;
pub mod machine;
pub mod names;
pub mod net;
mod output;
pub mod platform;
pub mod processors;
mod publish;
pub mod ram;
pub mod run;
pub mod signals;
pub mod sriov;
pub mod stats;
#[cfg(test)]
mod tiny_guest;
pub mod uring;
pub mod vcpu;
pub mod vhost;
