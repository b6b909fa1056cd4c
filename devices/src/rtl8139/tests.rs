//! The card on its bus: what is switched on, what goes out, what comes in, and its pin.

use std::{
    io::{PipeReader, PipeWriter, Read, Write},
    os::fd::{AsFd, BorrowedFd},
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{registers::*, *};
use crate::{
    bus::Bus,
    interrupt::IntxWire,
    mapping::{HostMapping, Memslots},
    pci::{registers::COMMAND as PCI_COMMAND, space::Windows},
    testing::{Cable, cable},
};

const AT: u64 = 0xe000_0000;

struct NoMemslots;

impl Memslots for NoMemslots {
    fn map(&self, _guest: u64, _memory: Arc<dyn HostMapping>) -> io::Result<u32> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unmap(&self, _slot: u32) {}
}

struct TestRam(GuestMemoryMmap);

impl GuestRam for TestRam {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.0
    }
}

/// Pins that are pipes, eight bytes a signal.
#[derive(Default)]
struct Pins(Mutex<Option<(PipeReader, PipeWriter)>>);

struct PipePin(PipeWriter, PipeReader);

impl IntxWire for PipePin {
    fn trigger(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn resample(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }
}

impl IntxSource for Pins {
    fn line(&self, _pin: u8) -> u8 {
        16
    }

    fn connect(&self, pin: u8) -> io::Result<Box<dyn IntxWire>> {
        assert_eq!(pin, 1);
        let (triggered, trigger) = io::pipe()?;
        let (resample, ended) = io::pipe()?;
        *self.0.lock().unwrap() = Some((triggered, ended));
        Ok(Box::new(PipePin(trigger, resample)))
    }
}

struct Table {
    bus: Arc<Bus>,
    ram: Arc<TestRam>,
    cable: Arc<Cable>,
    card: Arc<Rtl8139>,
    triggered: PipeReader,
    ended: PipeWriter,
}

fn table() -> Table {
    let (bus, pins) = (Arc::new(Bus::new()), Arc::new(Pins::default()));
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let ram = Arc::new(TestRam(memory));
    let windows = Windows {
        io: 0x1000..0x10000,
        memory32: AT..AT + (1 << 20),
        memory64: 1 << 40..1 << 41,
    };
    let space = PciSpace::new(
        bus.clone(),
        Arc::new(Bus::new()),
        Arc::new(NoMemslots),
        windows,
    );
    let wiring = Wiring {
        space: &space,
        intx: pins.clone(),
        ram: ram.clone(),
    };
    let cable = cable();
    let card = Rtl8139::new("net0", [2, 0, 0, 0, 0, 1], cable.clone(), &wiring).unwrap();
    card.assign_bar(1, AT);
    let on = (COMMAND_MEMORY | COMMAND_MASTER).to_le_bytes();
    let at = u16::try_from(PCI_COMMAND).unwrap();
    let _ = card.config_write(at, &on);
    let (triggered, ended) = pins.0.lock().unwrap().take().unwrap();
    let table = Table {
        bus,
        ram,
        cable,
        card,
        triggered,
        ended,
    };
    table.put(COMMAND, &[COMMAND_RX | COMMAND_TX]);
    table.put(RX_BUFFER, &0x10000_u32.to_le_bytes());
    table.put(RX_CONFIG, &RX_OWN.to_le_bytes());
    table.put(INTERRUPT_MASK, &[0xff; 2]);
    table
}

impl Table {
    fn put(&self, at: usize, data: &[u8]) {
        assert!(self.bus.write(AT + at as u64, data).is_some());
    }

    fn interrupt(&mut self) {
        self.triggered.read_exact(&mut [0; 8]).unwrap();
    }
}

#[test]
fn a_packet_goes_out_with_an_empty_header_and_interrupts() {
    let mut table = table();
    let sent: Vec<u8> = (0..60).collect();
    let at = GuestAddress(0x3000);
    table.ram.0.write_slice(&sent, at).unwrap();
    table.put(TX_ADDRESS, &0x3000_u32.to_le_bytes());
    table.put(TX_STATUS, &60_u32.to_le_bytes());
    let expected = [vec![0; 12], sent].concat();
    assert_eq!(*table.cable.sent.lock().unwrap(), [expected]);
    table.interrupt();
}

#[test]
fn a_packet_comes_in_and_interrupts_again_at_an_end_of_interrupt_that_did_not_hear_it() {
    let mut table = table();
    let packet = [vec![0; 12], vec![2, 0, 0, 0, 0, 1], vec![7; 60]].concat();
    let too_long = [vec![0; 12], vec![2, 0, 0, 0, 0, 1], vec![7; 2000]].concat();
    table.cable.bring(too_long);
    table.cable.bring(packet);
    table.interrupt();
    let came: u64 = table.ram.0.read_obj(GuestAddress(0x10000)).unwrap();
    assert_eq!(came.to_le_bytes()[..6], [1, 0x40, 70, 0, 2, 0]);
    table.ended.write_all(&1_u64.to_ne_bytes()).unwrap();
    table.interrupt();
}

#[test]
fn a_card_that_is_reset_or_may_not_master_the_bus_touches_no_memory() {
    let table = table();
    table.card.reset();
    let packet = [vec![0; 12], vec![2, 0, 0, 0, 0, 1], vec![7; 60]].concat();
    table.cable.bring(packet);
    drop(table.card);
    let came: u64 = table.ram.0.read_obj(GuestAddress(0x10000)).unwrap();
    assert_eq!(came, 0);
}
