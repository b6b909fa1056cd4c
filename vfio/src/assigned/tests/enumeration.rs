//! What it costs in memory slots that a guest finds, enables and uses the function: each change of one stops all vCPUs for a moment.

use super::*;

/// How often something was mapped and unmapped.
fn changes(calls: &[String]) -> (usize, usize) {
    let count = |what: &str| calls.iter().filter(|call| call.starts_with(what)).count();
    (count("map"), count("unmap"))
}

impl Guest {
    /// Sizes all BARs as Linux does (`__pci_read_base` in drivers/pci/probe.c): decoding is off meanwhile, and not written if it was.
    fn size_bars(&self) -> Vec<String> {
        let mut calls = Vec::new();
        for register in (0x10..0x28).step_by(4).chain([0x30]) {
            let [low, high] = self.read(COMMAND);
            if low & 3 != 0 {
                calls.extend(self.write(COMMAND, &[low & !3, high]));
            }
            let address: [u8; 4] = self.read(register);
            calls.extend(self.write(register, &[0xff; 4]));
            self.read::<4>(register);
            calls.extend(self.write(register, &address));
            if low & 3 != 0 {
                calls.extend(self.write(COMMAND, &[low, high]));
            }
        }
        calls
    }
}

#[test]
fn from_the_first_look_to_a_running_driver_each_part_is_mapped_once() {
    let guest = guest();
    assert_eq!(changes(&guest.size_bars()), (0, 0));
    // pci_enable_device, pci_set_master, and MSI-X: masked, with the pin off, unmasked.
    let mut calls = guest.write(COMMAND, &[2, 0]);
    calls.extend(guest.write(COMMAND, &[6, 0]));
    calls.extend(guest.write(MSIX + 2, &[0, 0xc0]));
    calls.extend(guest.write(COMMAND, &[6, 4]));
    calls.extend(guest.write(MSIX + 2, &[0, 0x80]));
    assert_eq!(changes(&calls), (3, 0));
    // The driver goes and comes back.
    let mut calls = guest.write(MSIX + 2, &[0, 0]);
    calls.extend(guest.write(COMMAND, &[2, 0]));
    calls.extend(guest.write(COMMAND, &[6, 0]));
    assert_eq!(changes(&calls), (0, 0));
}

#[test]
fn a_look_at_a_function_that_decodes_maps_again_what_it_unmapped_and_no_more() {
    let guest = guest();
    guest.write(COMMAND, &[2, 0]);
    // Seven registers, three parts.
    assert_eq!(changes(&guest.size_bars()), (21, 21));
}
