//! Tests that need a whole machine.

mod binding;
mod facts;
mod mediated;
