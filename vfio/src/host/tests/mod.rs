//! Tests that need a whole machine.

mod binding;
mod facts;
mod function;
mod mediated;
mod recorded;
mod sriov;
mod unbinding;
mod variants;
