//! Configuration space through I/O ports: CONFIG_ADDRESS and CONFIG_DATA (PCI 3.0 §3.2.2.3.2).
//!
//! The chipset's reset control register is a byte at 0xcf9, inside CONFIG_ADDRESS. Only a dword at 0xcf8 is CONFIG_ADDRESS, so the two
//! share ports without harm; one device on the bus answers for both and hands narrower accesses at 0xcf9 on.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use super::root::PciRoot;
use crate::bus::{Action, BusDevice};

/// How many ports, from 0xcf8 on.
pub const CONFIG_PORTS_LEN: u64 = 8;

const RESET: u64 = 1;
const DATA: u64 = 4;
const ADDRESS_ENABLE: u32 = 1 << 31;

/// The eight ports from 0xcf8 on.
pub struct ConfigPorts {
    root: Arc<PciRoot>,
    reset: Arc<dyn BusDevice>,
    // As on hardware there is one latch for all vCPUs; guests take a lock around address and data.
    address: AtomicU32,
}

impl ConfigPorts {
    /// `reset` answers byte accesses at the second port, 0xcf9, as its offset 0.
    pub fn new(root: Arc<PciRoot>, reset: Arc<dyn BusDevice>) -> Self {
        Self {
            root,
            reset,
            address: AtomicU32::new(0),
        }
    }

    /// The function and register that the data ports stand for, if any does.
    fn target(&self, offset: u64) -> Option<(u8, u16)> {
        let address = self.address.load(Ordering::Relaxed);
        let [register, devfn, bus, _] = address.to_le_bytes();
        let lane = u8::try_from(offset.checked_sub(DATA)?).ok()?;
        let here = address & ADDRESS_ENABLE != 0 && bus == 0;
        here.then_some((devfn, u16::from(register & !3 | lane & 3)))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (0, Ok(whole)) = (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            *whole = self.address.load(Ordering::Relaxed).to_le_bytes();
        } else if offset == RESET && data.len() == 1 {
            self.reset.read(0, data);
        } else if let Some((devfn, register)) = self.target(offset) {
            self.root.config_read(devfn, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        if let (0, Ok(whole)) = (offset, <[u8; 4]>::try_from(data)) {
            // Bits 1:0 are read-only zero, 30:24 reserved.
            let address = u32::from_le_bytes(whole) & 0x80ff_fffc;
            self.address.store(address, Ordering::Relaxed);
        } else if offset == RESET && data.len() == 1 {
            return self.reset.write(0, data);
        } else if let Some((devfn, register)) = self.target(offset) {
            return self.root.config_write(devfn, register, data);
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pci::Slot,
        testing::{Card, Scratch, widths_agree},
    };

    fn ports() -> (ConfigPorts, Arc<Scratch>) {
        let root = Arc::new(PciRoot::new());
        let slot = Slot {
            device: 6,
            function: 1,
        };
        root.add(slot, Card::new(0x1234, &[])).unwrap();
        let reset = Scratch::new(0x0e, Action::Reset);
        (ConfigPorts::new(root, reset.clone()), reset)
    }

    fn read<const N: usize>(ports: &ConfigPorts, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        ports.read(offset, &mut data);
        data
    }

    fn point(ports: &ConfigPorts, address: u32) {
        assert_eq!(ports.write(0, &address.to_le_bytes()), Action::None);
    }

    #[test]
    fn the_address_picks_the_register_and_the_data_port_its_byte() {
        let (ports, _) = ports();
        point(&ports, 0x8000_3100);
        assert_eq!(read(&ports, 0), [0x00, 0x31, 0x00, 0x80]);
        assert_eq!(read(&ports, 4), [0xf4, 0x1a, 0x34, 0x12]);
        assert_eq!(read(&ports, 6), [0x34, 0x12]);
        assert_eq!(read(&ports, 7), [0x12]);
        point(&ports, 0x8000_3104);
        assert_eq!(ports.write(5, &[0x04]), Action::None);
        assert_eq!(read(&ports, 4), [0x00, 0x04]);
    }

    #[test]
    fn without_enable_or_on_another_bus_nobody_answers() {
        let (ports, _) = ports();
        for address in [0x0000_3100, 0x8001_3100, 0x8000_3000] {
            point(&ports, address);
            assert_eq!(read(&ports, 4), [0xff; 4]);
            assert_eq!(ports.write(4, &[0; 4]), Action::None);
        }
    }

    #[test]
    fn a_byte_at_cf9_is_the_reset_registers_and_nothing_narrow_moves_the_address() {
        let (ports, reset) = ports();
        point(&ports, 0x8000_3100);
        assert_eq!(ports.write(1, &[0x06]), Action::Reset);
        assert_eq!(*reset.written.lock().unwrap(), [(0, vec![0x06])]);
        assert_eq!(read(&ports, 1), [0x0e]);
        assert_eq!(ports.write(0, &[0xaa]), Action::None);
        assert_eq!(ports.write(0, &[0xaa; 2]), Action::None);
        assert_eq!(ports.write(2, &[0xaa; 4]), Action::None);
        assert_eq!(read(&ports, 0), [0x00, 0x31, 0x00, 0x80]);
        assert_eq!(read(&ports, 2), [0xff; 2]);
    }

    #[test]
    fn byte_word_and_dword_accesses_to_the_data_agree() {
        for register in (0..0x40).step_by(4) {
            let model = || {
                let (ports, _) = ports();
                point(&ports, 0x8000_3100 + register);
                ports
            };
            let write = |ports: &mut ConfigPorts, at, data: &[u8]| {
                assert_eq!(ports.write(at, data), Action::None);
            };
            widths_agree(model, (4..8, 4), ConfigPorts::read, write, 6_000);
        }
    }
}
