//! A device as its driver sees it, from its capabilities to a served request.

use std::sync::mpsc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{
    super::{
        Answer, Chain, Garbage, Kind,
        registers::{STATUS_NEEDS_RESET, common},
        testing::{Driver, FakeDoorbells, FakeMsi, WRITE, ram},
    },
    *,
};
use crate::{
    bus::Bus,
    mapping::{HostMapping, Memslots},
    pci::{
        capabilities,
        registers::{COMMAND, COMMAND_MASTER, COMMAND_MEMORY},
        space::Windows,
    },
};

const AT: u64 = 0xe000_0000;
const DATA: u64 = 0x10000;

struct NoMemslots;

impl Memslots for NoMemslots {
    fn map(&self, _guest: u64, _memory: Arc<dyn HostMapping>) -> io::Result<u32> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unmap(&self, _slot: u32) {}
}

/// Answers each request with one byte, and tells of it.
struct Echo(mpsc::Sender<Vec<u8>>);

impl Backend for Echo {
    fn kind(&self) -> Kind {
        Kind {
            name: "echo0".into(),
            device_type: 63,
            class: 0xff_00_00,
            features: 0,
            queues: vec![Driver::SIZE, Driver::SIZE],
            config: vec![1, 2, 3, 4].into(),
        }
    }

    fn agree(&mut self, _features: u64) {}

    fn serve(
        &mut self,
        queue: usize,
        mut request: Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Answer, Garbage> {
        let header: [u8; 4] = request.take_header(memory)?;
        let _ = self.0.send(header.to_vec());
        let at = request.take_last_byte()?;
        memory.write_obj(u8::try_from(queue).unwrap(), at).unwrap();
        Ok(Answer::Done(1))
    }
}

/// A machine with one device, whose BAR is in place.
struct Table {
    bus: Arc<Bus>,
    msi: FakeMsi,
    doorbells: FakeDoorbells,
    driver: Driver,
    function: Arc<VirtioFunction>,
    served: mpsc::Receiver<Vec<u8>>,
}

fn table() -> Table {
    let (bus, ram, msi) = (Arc::new(Bus::new()), ram(), FakeMsi::default());
    let windows = Windows {
        io: 0..0,
        memory32: AT..AT + 0x10_0000,
        memory64: 0..0,
    };
    let space = PciSpace::new(bus.clone(), Arc::default(), Arc::new(NoMemslots), windows);
    let doorbells = FakeDoorbells::default();
    let (told, served) = mpsc::channel();
    let wiring = Wiring {
        space: &space,
        msi: &msi,
        doorbells: Arc::new(doorbells.clone()),
        ram: ram.clone(),
        at_start: Arc::new(|| {}),
    };
    let function = VirtioFunction::new(Box::new(Echo(told)), &wiring).unwrap();
    function.assign_bar(0, AT);
    let on = COMMAND_MEMORY | COMMAND_MASTER;
    let _ = function.config_write(4, &on.to_le_bytes());
    assert_eq!(COMMAND, 4);
    Table {
        bus,
        msi,
        doorbells,
        driver: Driver::new(ram, 0x1000),
        function,
        served,
    }
}

impl Table {
    fn write(&self, register: usize, data: &[u8]) {
        assert!(self.bus.write(AT + register as u64, data).is_some());
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.bus.read(AT + common::STATUS as u64, &mut status);
        status[0]
    }

    /// What a driver does until DRIVER_OK, with the second queue and vectors 0 and 2.
    fn start(&self) {
        self.write(common::STATUS, &[3]);
        self.write(common::DRIVER_FEATURE_SELECT, &[1, 0, 0, 0]);
        self.write(common::DRIVER_FEATURE, &[1, 0, 0, 0]);
        self.write(common::STATUS, &[11]);
        self.write(common::CONFIG_VECTOR, &[0, 0]);
        self.write(common::QUEUE_SELECT, &[1, 0]);
        self.write(common::QUEUE_VECTOR, &[2, 0]);
        let registers = [
            common::QUEUE_DESCRIPTORS,
            common::QUEUE_AVAILABLE,
            common::QUEUE_USED,
        ];
        for (register, place) in registers.into_iter().zip(self.driver.places()) {
            self.write(register, &place.to_le_bytes()[..4]);
        }
        self.write(common::QUEUE_ENABLE, &[1, 0]);
        self.write(common::STATUS, &[15]);
    }

    fn ring(&self) {
        self.write(0x3004, &[1, 0]);
    }

    fn request(&mut self) {
        self.driver
            .request(&[(DATA, 4, 0), (DATA + 0x100, 1, WRITE)]);
        self.ring();
    }
}

fn config(function: &VirtioFunction) -> Vec<u8> {
    let mut config = vec![0; 256];
    for (offset, dword) in (0..).step_by(4).zip(config.chunks_mut(4)) {
        function.config_read(offset, dword);
    }
    config
}

#[test]
fn every_structure_has_a_capability_that_says_where_it_is() {
    let table = table();
    let config = config(&table.function);
    assert_eq!(config[..4], [0xf4, 0x1a, 0x7f, 0x10]);
    let found: Vec<_> = capabilities::standard(&config).collect();
    assert_eq!(found.len(), 6);
    let kinds = found.iter().filter(|found| found.id == CAP_VENDOR);
    let kinds: Vec<_> = kinds
        .map(|found| {
            let offset = u32::from_le_bytes(config[found.offset + 8..][..4].try_into().unwrap());
            (config[found.offset + 3], offset)
        })
        .collect();
    let expected = [(1, 0), (2, 0x3000), (3, 0x1000), (4, 0x2000), (5, 0)];
    assert_eq!(kinds, expected);
}

#[test]
fn a_request_is_served_and_its_queues_vector_signalled() {
    let mut table = table();
    table.start();
    table
        .driver
        .ram
        .0
        .write_slice(b"ping", GuestAddress(DATA))
        .unwrap();
    table.request();
    table.msi.wait(2);
    assert_eq!(table.served.recv().unwrap(), b"ping");
    assert_eq!(table.driver.used(), Some((0, 1)));
    let answer: u8 = table
        .driver
        .ram
        .0
        .read_obj(GuestAddress(DATA + 0x100))
        .unwrap();
    assert_eq!(answer, 1);
    let mut isr = [0];
    assert!(table.bus.read(AT + 0x1000, &mut isr));
    assert_eq!(isr, [1]);
    assert!(table.bus.read(AT + 0x1000, &mut isr));
    assert_eq!(isr, [0], "reading it cleared it");
}

#[test]
fn garbage_costs_the_guest_the_device_until_it_resets_it() {
    let mut table = table();
    table.start();
    table.driver.offer(99);
    table.ring();
    table.msi.wait(0);
    assert_eq!(table.status(), 15 | STATUS_NEEDS_RESET);
    table.write(common::STATUS, &[0]);
    assert_eq!(table.status(), 0);
    table.driver = Driver::new(table.driver.ram.clone(), 0x4000);
    table.start();
    table.request();
    table.msi.wait(2);
    assert_eq!(table.driver.used(), Some((0, 1)));
}

#[test]
fn a_queue_outside_of_memory_costs_the_guest_the_device_as_well() {
    let mut table = table();
    table.driver = Driver::new(ram(), 0x1_0000_0000 - 0x1000);
    table.start();
    table.msi.wait(0);
    assert_eq!(table.status(), 15 | STATUS_NEEDS_RESET);
}

#[test]
fn a_device_that_was_reset_serves_nothing_of_before() {
    let mut table = table();
    table.start();
    table.write(common::STATUS, &[0]);
    table.request();
    table.function.reset();
    assert!(table.served.try_recv().is_err());
    assert_eq!(table.driver.used(), None);
}

#[test]
fn a_device_that_may_not_reach_memory_serves_nothing_until_it_is_set_up_anew() {
    let mut table = table();
    table.start();
    let _ = table.function.config_write(4, &[2, 0]);
    table.request();
    let _ = table.function.config_write(4, &[6, 0]);
    assert_eq!(table.status(), 15 | STATUS_NEEDS_RESET);
    table.write(common::STATUS, &[0]);
    assert!(table.served.try_recv().is_err(), "nothing of before");
    table.driver = Driver::new(table.driver.ram.clone(), 0x4000);
    table.start();
    table.request();
    table.msi.wait(2);
    assert_eq!(table.driver.used(), Some((0, 1)));
}

#[test]
fn doorbells_hang_where_the_bar_is_and_nowhere_else() {
    let table = table();
    let hung = || table.doorbells.0.lock().unwrap().clone();
    assert_eq!(hung(), [AT + 0x3000, AT + 0x3004]);
    let moved = u32::try_from(AT + 0x8000).unwrap();
    let _ = table.function.config_write(0x10, &moved.to_le_bytes());
    assert_eq!(hung(), [AT + 0xb000, AT + 0xb004]);
    let _ = table.function.config_write(4, &[0, 0]);
    assert!(hung().is_empty());
    let _ = table.function.config_write(4, &[2, 0]);
    assert_eq!(hung().len(), 2);
    table.function.reset();
    assert!(hung().is_empty());
}

#[test]
fn the_bar_is_reached_through_configuration_space_as_well() {
    let table = table();
    let at = capabilities::standard(&config(&table.function)).last();
    let at = u16::try_from(at.unwrap().offset).unwrap();
    let window = |offset: u32, len: u32| {
        let _ = table.function.config_write(at + 4, &[0; 4]);
        let _ = table.function.config_write(at + 8, &offset.to_le_bytes());
        let _ = table.function.config_write(at + 12, &len.to_le_bytes());
    };
    window(0x2000, 2);
    let mut data = [0; 4];
    table.function.config_read(at + 16, &mut data);
    assert_eq!(data, [1, 2, 0, 0]);
    window(0x14, 1);
    let _ = table.function.config_write(at + 16, &[1, 0, 0, 0]);
    assert_eq!(table.status(), 1);
    for (offset, len) in [(0x15, 2), (0, 3), (0x8000, 4), (u32::MAX - 3, 4)] {
        window(offset, len);
        table.function.config_read(at + 16, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
