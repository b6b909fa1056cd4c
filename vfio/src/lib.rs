//! Real hardware: the host's side of it, VFIO, and the assigned PCI function.
