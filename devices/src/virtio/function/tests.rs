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
    // virtio 1.2 §4.1.4: cap_len, and length; what notifications multiply a queue's number by (§4.1.4.4).
    let dword = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    let vendors = found.iter().filter(|found| found.id == CAP_VENDOR);
    let lengths: Vec<_> = vendors
        .map(|found| (config[found.offset + 2], dword(found.offset + 12)))
        .collect();
    assert_eq!(lengths, [(16, 0x38), (20, 8), (16, 1), (16, 4), (20, 0)]);
    let notify = found
        .iter()
        .find(|one| config[one.offset + 3] == 2)
        .unwrap();
    assert_eq!(dword(notify.offset + 16), 4);
    // Three vectors; table and pending bits in the same BAR.
    let msix = capabilities::find(&config, CAP_MSIX).unwrap();
    assert_eq!(config[msix + 2..msix + 4], [2, 0]);
    assert_eq!((dword(msix + 4), dword(msix + 8)), (0x4000, 0x5000));
    assert_eq!(table.function.bars(), [window::SPEC]);
    assert_eq!(table.function.name(), "echo0");
}

#[test]
fn of_the_capabilities_only_the_windows_registers_and_the_message_control_are_written() {
    let table = table();
    let before = config(&table.function);
    let found: Vec<_> = capabilities::standard(&before).collect();
    let msix = capabilities::find(&before, CAP_MSIX).unwrap();
    let window = found.last().unwrap().offset;
    for offset in (0x40..0x100).filter(|&offset| !(window + 16..window + 20).contains(&offset)) {
        let _ = table
            .function
            .config_write(u16::try_from(offset).unwrap(), &[0xff]);
    }
    let after = config(&table.function);
    let changed: Vec<_> = (0x40..0x100)
        .filter(|&at| before[at] != after[at])
        .collect();
    let expected = std::iter::once(msix + 3)
        .chain([window + 4])
        .chain(window + 8..window + 16);
    assert_eq!(changed, expected.collect::<Vec<_>>());
}

#[test]
fn a_vector_that_is_not_there_is_none() {
    let table = table();
    let vector = |vector: u16| {
        table.write(common::CONFIG_VECTOR, &vector.to_le_bytes());
        let mut data = [0; 2];
        table.bus.read(AT + common::CONFIG_VECTOR as u64, &mut data);
        u16::from_le_bytes(data)
    };
    assert_eq!((vector(2), vector(3), vector(0xffff)), (2, 0xffff, 0xffff));
}

#[test]
fn the_msix_table_is_in_the_bar_and_a_reset_of_the_function_forgets_it_and_what_is_latched() {
    let table = table();
    let msix = capabilities::find(&config(&table.function), CAP_MSIX).unwrap();
    let msix = u16::try_from(msix).unwrap();
    let _ = table.function.config_write(msix + 2, &[0x00, 0x80]);
    table.write(0x4010, &0xfee0_0000_u32.to_le_bytes());
    table.write(0x401c, &[0; 4]);
    assert_eq!(table.msi.routed(), [1]);
    let mut entry = [0; 4];
    table.bus.read(AT + 0x4010, &mut entry);
    assert_eq!(entry, 0xfee0_0000_u32.to_le_bytes());
    table.msi.latch(1);
    table.msi.latch(2);
    let pending = || {
        let mut data = [0; 8];
        table.bus.read(AT + 0x5000, &mut data);
        u64::from_le_bytes(data)
    };
    assert_eq!(pending(), 0b100, "what has a message is not pending");
    table.start();
    table.function.reset();
    assert!(table.msi.routed().is_empty());
    table.function.assign_bar(0, AT);
    let _ = table.function.config_write(4, &[6, 0]);
    assert_eq!((table.status(), pending()), (0, 0));
    let mut control = [0; 4];
    table.function.config_read(msix, &mut control);
    assert_eq!(control[2..], [2, 0], "disabled");
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
    // INTx disable: nothing that concerns a device that masters the bus.
    let _ = table.function.config_write(4, &[6, 4]);
    let _ = table.function.config_write(0x0c, &[8]);
    assert_eq!(table.status(), 15);
    let _ = table.function.config_write(4, &[2, 0]);
    assert_eq!(table.status(), 15 | STATUS_NEEDS_RESET);
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
    // Where each of these reads something if it is let through.
    for (offset, len) in [
        (0x2001, 2),
        (0x2002, 4),
        (0x2000, 3),
        (0x2000, 0),
        (0x8000, 4),
        (u32::MAX - 3, 4),
    ] {
        window(offset, len);
        table.function.config_read(at + 16, &mut data);
        assert_eq!(data, [0; 4], "{len} bytes at {offset:#x}");
    }
    window(0x2000, 4);
    let _ = table.function.config_write(at + 4, &[1]);
    table.function.config_read(at + 16, &mut data);
    assert_eq!(data, [0; 4], "there is no second BAR");
    let _ = table.function.config_write(at + 4, &[0]);
    table.function.config_read(at + 16, &mut data);
    assert_eq!(data, [1, 2, 3, 4]);
}
