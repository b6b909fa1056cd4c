//! The assigned PCI function.
