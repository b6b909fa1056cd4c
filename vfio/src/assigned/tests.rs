//! The function as a whole, on a stand-in for a card: an NIC's VF with MSI-X in a BAR of its own, and MSI and power management.

mod enumeration;
mod peers;
mod pin;
mod power;
mod relocation;
mod resets;
mod vga;

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use devices::{
    bus::Bus,
    mapping::{HostMapping, Memslots},
    pci::{
        Function,
        bar::{BarKind, BarSpec, ROM_INDEX},
        space::{PciSpace, Windows},
    },
};

use super::{
    AssignError, AssignedFunction, Options, Wiring,
    fake::{FakeHost, FakePins, FakeSource, Log},
    random::Random,
};
use crate::{Assignable, kernel::DmaTarget};

const CONFIG: u32 = 7;
const COMMAND: u16 = 0x04;
const POWER: u16 = 0x44;
const MSIX: u16 = 0x70;
const EXPRESS: u16 = 0xa0;
const BAR0: u64 = 0x8000_0000;
const BAR3: u64 = 0x8001_0000;

/// Memslots that write down what happens to them.
struct FakeMemslots(Log);

impl Memslots for FakeMemslots {
    fn map(&self, guest: u64, memory: Arc<dyn HostMapping>) -> io::Result<u32> {
        let call = format!("map {guest:#x} {:#x}", memory.len());
        self.0.lock().unwrap().push(call);
        Ok(u32::try_from(guest >> 12).unwrap())
    }

    fn unmap(&self, slot: u32) {
        self.0
            .lock()
            .unwrap()
            .push(format!("unmap {:#x}", slot << 12));
    }
}

/// Configuration space of the card.
fn config() -> Vec<u8> {
    let mut config = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x00, &[0x86, 0x80, 0xca, 0x10, 0x06, 0x05, 0x10, 0x00]);
    put(0x08, &[1, 0, 0, 2, 0, 0, 0x80]);
    put(0x10, &[0x0c]);
    put(0x1c, &[0x0c]);
    put(0x34, &[0x40]);
    put(0x3c, &[11, 1]);
    put(0x40, &[0x01, 0x50, 0x23, 0xc8]);
    put(0x50, &[0x05, 0x70, 0x80, 0x01]);
    put(0x70, &[0x11, 0xa0, 2, 0, 3, 0, 0, 0, 3, 0x20, 0, 0]);
    put(0xa0, &[0x10, 0, 0x02, 0, 0, 0, 0, 0x10]);
    put(0xac, &[0xff; 8]);
    put(0x100, &0x1401_0010u32.to_le_bytes());
    put(0x104, &[0xaa; 0x3c]);
    put(0x140, &0x0001_0003u32.to_le_bytes());
    put(0x144, &[0x55; 8]);
    config
}

fn card() -> FakeHost {
    FakeHost::default()
        .with_region(0, vec![0; 0x4000], true)
        .with_region(3, vec![0; 0x4000], true)
        .with_region(CONFIG, config(), false)
}

fn name() -> Assignable {
    Assignable::Function("03:10.3".parse().unwrap())
}

pub(super) struct Guest {
    host: Arc<FakeHost>,
    source: FakeSource,
    pub(super) memory: Arc<Bus>,
    io: Arc<Bus>,
    pub(super) function: Arc<AssignedFunction>,
}

impl Guest {
    pub(super) fn new(host: FakeHost) -> Result<Self, AssignError> {
        Self::with(host, &Options::default(), None)
    }

    fn with_function(name: &Assignable, host: FakeHost) -> Result<Self, AssignError> {
        Self::assign(name, host, &Options::default(), None)
    }

    pub(super) fn with(
        host: FakeHost,
        options: &Options,
        peers: Option<&Arc<dyn DmaTarget>>,
    ) -> Result<Self, AssignError> {
        Self::assign(&name(), host, options, peers)
    }

    fn assign(
        name: &Assignable,
        host: FakeHost,
        options: &Options,
        peers: Option<&Arc<dyn DmaTarget>>,
    ) -> Result<Self, AssignError> {
        let (host, source, memory) = (Arc::new(host), FakeSource::default(), Arc::new(Bus::new()));
        let windows = Windows {
            io: 0x1000..0x1_0000,
            memory32: BAR0..0xc000_0000,
            memory64: 0..0,
        };
        let memslots = Arc::new(FakeMemslots(host.log()));
        let io = Arc::new(Bus::new());
        let space = PciSpace::new(memory.clone(), io.clone(), memslots, windows);
        let wiring = Wiring {
            space: &space,
            msi: &source,
            intx: Arc::new(FakePins(host.log())),
            peers,
        };
        let function = AssignedFunction::new(host.clone(), name, options, &wiring)?;
        function.assign_bar(0, BAR0);
        function.assign_bar(3, BAR3);
        Ok(Self {
            host,
            source,
            memory,
            io,
            function,
        })
    }

    fn read<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.function.config_read(offset, &mut data);
        data
    }

    pub(super) fn write(&self, offset: u16, data: &[u8]) -> Vec<String> {
        self.host.take_calls();
        let _ = self.function.config_write(offset, data);
        self.host.take_calls()
    }
}

fn guest() -> Guest {
    Guest::new(card()).unwrap()
}

#[test]
fn assigning_stops_the_device_that_opening_has_reset() {
    let host = card();
    host.bytes(CONFIG)[usize::from(POWER)] = 3;
    let log = host.log();
    let guest = Guest::new(host).unwrap();
    let calls = std::mem::take(&mut *log.lock().unwrap());
    // Awake, neither decoding nor mastering.
    assert_eq!(calls[..2], ["write 7 0x44 [0]", "write 7 0x4 [0, 4]"]);
    assert!(!calls.contains(&"reset".to_owned()));
    assert_eq!(guest.read(COMMAND), [0; 2]);
}

#[test]
fn the_guest_sees_an_integrated_endpoint_without_pin_link_or_sr_iov() {
    let guest = guest();
    assert_eq!(guest.read(0), [0x86, 0x80, 0xca, 0x10]);
    assert_eq!(guest.read(0x0e), [0]);
    assert_eq!(guest.read(0x3c), [0, 0]);
    assert_eq!(guest.read(EXPRESS + 2), [0x92]);
    assert_eq!(guest.read(EXPRESS + 0x0c), [0; 4]);
    assert_eq!(guest.read(0x100), 0x1400_0000u32.to_le_bytes());
    assert_eq!(guest.read(0x104), [0; 4]);
    assert_eq!(guest.read(0x144), [0x55; 4]);
    let wide = BarKind::Memory64 { prefetchable: true };
    let spec = |index| BarSpec {
        index,
        kind: wide,
        size: 0x4000,
    };
    assert_eq!(guest.function.bars(), [spec(0), spec(3)]);
}

#[test]
fn bars_come_after_the_device_decodes_and_go_before_it_stops() {
    let guest = guest();
    assert_eq!(
        guest.write(COMMAND, &[6, 0]),
        // BAR 3 without the pages of the MSI-X table and of the pending bits.
        [
            "write 7 0x4 [6, 4]",
            "map 0x80000000 0x4000",
            "map 0x80011000 0x1000",
            "map 0x80013000 0x1000"
        ]
    );
    assert_eq!(
        guest.write(COMMAND, &[4, 0]),
        [
            "unmap 0x80000000",
            "unmap 0x80013000",
            "unmap 0x80011000",
            "write 7 0x4 [4, 4]"
        ]
    );
}

#[test]
fn the_command_register_has_the_bits_that_the_device_has() {
    let guest = guest();
    assert_eq!(
        guest.write(COMMAND, &[0xff, 0xff])[0],
        "write 7 0x4 [57, 5]"
    );
    assert_eq!(guest.read(COMMAND), [0x57, 0x05]);
    // The device has neither I/O space nor memory write and invalidate, and no memory enable, as a VF.
    guest.host.bytes(CONFIG)[4] = 0x44;
    assert_eq!(guest.read(COMMAND), [0x46, 0x05]);
    assert_eq!(guest.read(COMMAND + 1), [0x05]);
}

#[test]
fn a_bar_that_moves_leaves_its_old_place_first() {
    let guest = guest();
    guest.write(COMMAND, &[2, 0]);
    let calls = guest.write(0x10, &0x8100_0000u32.to_le_bytes());
    assert_eq!(calls, ["unmap 0x80000000", "map 0x81000000 0x4000"]);
    // Sizing, with decoding on, is not a place.
    assert_eq!(guest.write(0x10, &[0xff; 4]), ["unmap 0x81000000"]);
    assert_eq!(guest.read(0x10), 0xffff_c00c_u32.to_le_bytes());
}

#[test]
fn the_rom_answers_once_the_guest_enables_it_and_memory() {
    const ROM: u32 = 6;
    const AT: u64 = 0x8002_0000;
    let guest = Guest::new(card().with_region(ROM, vec![0x55; 0x1000], false)).unwrap();
    guest.function.assign_bar(ROM_INDEX, AT);
    let is_there = || guest.memory.read(AT, &mut [0; 4]);
    guest.write(COMMAND, &[2, 0]);
    assert!(!is_there());
    guest.write(0x30, &[1]);
    assert!(is_there());
    let mut data = [0; 8];
    guest.memory.read(AT + 0xffc, &mut data[..4]);
    assert_eq!(data, [0x55, 0x55, 0x55, 0x55, 0, 0, 0, 0]);
    guest.write(COMMAND, &[0, 0]);
    assert!(!is_there());
    assert_eq!(guest.write(0x30, &[0xff; 4]), [""; 0]);
    assert_eq!(guest.read(0x30), 0xffff_f001_u32.to_le_bytes());
}

#[test]
fn the_table_is_emulated_and_the_rest_of_its_page_forwarded() {
    let guest = guest();
    guest.write(COMMAND, &[2, 0]);
    guest.write(MSIX + 2, &[0, 0x80]);
    let _ = guest.memory.write(BAR3, &0xfee0_0000u32.to_le_bytes());
    let _ = guest.memory.write(BAR3 + 12, &[0; 4]);
    assert_eq!(guest.source.take_routes().len(), 1);
    guest.host.take_calls();
    let _ = guest.memory.write(BAR3 + 0x30, &[1, 2]);
    assert_eq!(guest.host.take_calls(), ["write 3 0x30 [1, 2]"]);
    // Across the end of the table: nobody's.
    let _ = guest.memory.write(BAR3 + 0x2c, &[0; 8]);
    assert_eq!(guest.host.take_calls(), [""; 0]);
    assert_eq!(guest.host.bytes(3)[..0x30], [0; 0x30]);
    assert_eq!(guest.function.stats().trapped_accesses, [0, 0, 0, 4, 0, 0]);
}

#[test]
fn pending_bits_are_what_latched_and_not_what_the_device_says() {
    let guest = guest();
    guest.host.bytes(3)[0x2000] = 0xff;
    guest.write(COMMAND, &[2, 0]);
    guest.write(MSIX + 2, &[0, 0x80]);
    guest.source.latch(1);
    let mut pending = [0; 8];
    guest.memory.read(BAR3 + 0x2000, &mut pending);
    assert_eq!(pending, [2, 0, 0, 0, 0, 0, 0, 0]);
    let _ = guest.memory.write(BAR3 + 0x2000, &[0xff; 8]);
    assert_eq!(guest.host.bytes(3)[0x2000], 0xff);
}

#[test]
fn a_device_that_was_pulled_out_reads_all_ones_and_stays_off_the_bus() {
    let guest = guest();
    guest.write(COMMAND, &[2, 0]);
    guest.host.is_gone.store(true, Ordering::Relaxed);
    assert_eq!(guest.read(POWER), [0xff; 2]);
    let mut data = [0; 4];
    guest.memory.read(BAR3 + 0x100, &mut data);
    assert_eq!(data, [0xff; 4]);
    guest.write(COMMAND, &[0, 0]);
    assert_eq!(guest.write(COMMAND, &[2, 0]), [""; 0]);
    guest.function.reset();
}

#[test]
fn a_command_that_the_device_did_not_take_is_sent_again_when_the_guest_repeats_it() {
    let guest = guest();
    guest.host.is_gone.store(true, Ordering::Relaxed);
    assert_eq!(guest.write(COMMAND, &[2, 0]), [""; 0]);
    guest.host.is_gone.store(false, Ordering::Relaxed);
    let calls = guest.write(COMMAND, &[2, 0]);
    assert_eq!(calls[..2], ["write 7 0x4 [2, 4]", "map 0x80000000 0x4000"]);
}

#[test]
fn what_is_dropped_is_off_the_bus_and_silent() {
    let Guest {
        host,
        memory,
        function,
        ..
    } = guest();
    let _ = function.config_write(COMMAND, &[6, 0]);
    let _ = function.config_write(MSIX + 2, &[0, 0x80]);
    host.take_calls();
    drop(function);
    assert_eq!(
        host.take_calls(),
        [
            "unmap 0x80000000",
            "unmap 0x80013000",
            "unmap 0x80011000",
            "disarm Msix",
            "write 7 0x4 [0, 4]"
        ]
    );
    assert!(!memory.read(BAR0, &mut [0; 4]));
}

#[test]
fn bridges_and_bars_that_cannot_be_are_refused_by_name() {
    let bridge = card();
    bridge.bytes(CONFIG)[0x0e] = 1;
    let refused = Guest::new(bridge).err().unwrap();
    assert!(matches!(
        refused,
        AssignError::NotAnEndpoint { header_type: 1, .. }
    ));
    let odd = card().with_region(2, vec![0; 12288], true);
    let refused = Guest::new(odd).err().unwrap();
    let source = std::error::Error::source(&refused).unwrap();
    assert!(refused.to_string().starts_with("0000:03:10.3\n  "));
    assert!(source.to_string().starts_with("BAR 2: 12288 bytes"));
}

#[test]
fn bytes_words_and_dwords_agree_everywhere() {
    let (whole, bytes) = (guest(), guest());
    let mut random = Random::new(0x5eed);
    for step in 0..20_000 {
        let len = 1 << random.below(3);
        // Mostly where something is.
        let end = if random.once_in(4) { 4096 } else { 0x110 };
        let at = u16::try_from(random.below(end) / len * len).unwrap();
        let value = random.next().to_le_bytes();
        // A reset in the middle of a dword is no access that a width could agree on.
        if at / 4 * 4 == EXPRESS + 8 {
            continue;
        }
        let _ = whole.function.config_write(at, &value[..len]);
        for (at, byte) in (at..).zip(&value[..len]) {
            let _ = bytes.function.config_write(at, &[*byte]);
        }
        let (mut one, mut many) = ([0; 4], [0; 4]);
        whole.function.config_read(at, &mut one[..len]);
        for (at, byte) in (at..).zip(&mut many[..len]) {
            bytes.function.config_read(at, std::slice::from_mut(byte));
        }
        assert_eq!(one, many, "step {step}: {len} bytes at {at:#x}");
    }
}

#[test]
fn what_is_ours_never_reaches_the_device() {
    let guest = guest();
    let mut random = Random::new(0xbad);
    for _ in 0..20_000 {
        let at = u16::try_from(random.below(1024) * 4).unwrap();
        let value = random.value().to_le_bytes();
        let _ = guest.function.config_write(at, &value[..4]);
    }
    let (before, after) = (config(), guest.host.bytes(CONFIG).clone());
    for ours in [
        0x00..0x04,
        0x0e..0x0f,
        0x10..0x2c,
        0x30..0x35,
        0x3c..0x3e,
        0x40..0x42,
    ] {
        assert_eq!(before[ours.clone()], after[ours]);
    }
    // MSI, MSI-X, link registers, SR-IOV.
    for ours in [0x50..0x5e, 0x70..0x7c, 0xa0..0xa4, 0xac..0xb4, 0x100..0x144] {
        assert_eq!(before[ours.clone()], after[ours]);
    }
}
