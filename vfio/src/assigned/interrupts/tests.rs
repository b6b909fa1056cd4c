//! What the guest writes, and what the machine and the device are told of it.

use devices::interrupt::MsiMessage;

use super::{
    super::{
        fake::{FakeHost, FakeSource},
        random::Random,
    },
    *,
};

const CAP: usize = 0x70;
const ENABLE: u8 = 0x80;
const MASK_ALL: u8 = 0x40;

fn msix(host: &Arc<FakeHost>, source: &FakeSource) -> Interrupts {
    let msix = At {
        offset: CAP,
        model: Msix::new(3),
    };
    Interrupts::new(host.clone(), source, None, Some(msix), None).unwrap()
}

fn write_entry(interrupts: &Interrupts, vector: u64, address: u32, masked: u8) {
    interrupts.table_write(vector * 16, &address.to_le_bytes());
    interrupts.table_write(vector * 16 + 8, &[0x31, 0, 0, 0]);
    interrupts.table_write(vector * 16 + 12, &[masked, 0, 0, 0]);
}

fn control(interrupts: &Interrupts, high: u8) {
    interrupts.config_write(CAP + 3, &[high]);
}

#[test]
fn linux_enables_msix_with_one_routing_update_and_one_growth() {
    let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
    let interrupts = msix(&host, &source);
    control(&interrupts, ENABLE | MASK_ALL);
    assert_eq!(host.take_calls(), ["arm Msix 0 [-]"]);
    (0..3).for_each(|vector| write_entry(&interrupts, vector, 0xfee0_0000, 1));
    control(&interrupts, ENABLE);
    assert!(source.take_routes().is_empty());
    write_entry(&interrupts, 1, 0xfee0_0000, 0);
    let message = MsiMessage {
        address: 0xfee0_0000,
        data: 0x31,
    };
    assert_eq!(source.take_routes(), [vec![(1, Some(message))]]);
    assert_eq!(host.take_calls(), ["disarm Msix", "arm Msix 0 [- fd -]"]);
    write_entry(&interrupts, 2, 0xfee0_0000, 0);
    assert_eq!(host.take_calls(), ["arm Msix 2 [fd]"]);
}

#[test]
fn unmasking_the_function_routes_all_vectors_in_one_update() {
    let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
    let interrupts = msix(&host, &source);
    control(&interrupts, ENABLE | MASK_ALL);
    (0..3).for_each(|vector| write_entry(&interrupts, vector, 0xfee0_0000, 0));
    host.take_calls();
    control(&interrupts, ENABLE);
    assert_eq!(source.take_routes().len(), 1);
    assert_eq!(host.take_calls(), ["disarm Msix", "arm Msix 0 [fd fd fd]"]);
}

#[test]
fn masking_a_vector_leaves_it_armed_and_shows_what_latches() {
    let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
    let interrupts = msix(&host, &source);
    control(&interrupts, ENABLE);
    write_entry(&interrupts, 0, 0xfee0_0000, 0);
    host.take_calls();
    source.take_routes();
    interrupts.table_write(12, &[1]);
    assert_eq!(source.take_routes(), [vec![(0, None)]]);
    assert!(host.take_calls().is_empty());
    source.latch(0);
    let mut pending = [0xff; 8];
    interrupts.pba_read(0, &mut pending);
    assert_eq!(pending, [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn disabling_unroutes_then_disarms_and_forgets_what_latched() {
    let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
    let interrupts = msix(&host, &source);
    control(&interrupts, ENABLE);
    write_entry(&interrupts, 0, 0xfee0_0000, 0);
    source.latch(1);
    source.take_routes();
    host.take_calls();
    control(&interrupts, 0);
    assert_eq!(source.take_routes(), [vec![(0, None)]]);
    assert_eq!(host.take_calls(), ["disarm Msix"]);
    assert!(!source.is_latched(1));
}

#[test]
fn msi_arms_as_many_vectors_as_the_guest_enabled() {
    let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
    let layout = devices::pci::msi::MsiLayout {
        wide: true,
        masking: false,
        vectors: 4,
    };
    let msi = At {
        offset: 0x50,
        model: Msi::new(layout),
    };
    let interrupts = Interrupts::new(host.clone(), &source, Some(msi), None, None).unwrap();
    interrupts.config_write(0x54, &0xfee0_1000u32.to_le_bytes());
    interrupts.config_write(0x5c, &[0x40, 0]);
    interrupts.config_write(0x52, &[0x11, 0]);
    assert_eq!(host.take_calls(), ["arm Msi 0 [fd fd]"]);
    assert_eq!(source.take_routes()[0].len(), 2);
    interrupts.config_write(0x52, &[0, 0]);
    assert_eq!(host.take_calls(), ["disarm Msi"]);
}

#[test]
fn a_device_that_got_one_msi_vector_for_several_keeps_it_while_others_are_masked() {
    let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
    *host.most_vectors.lock().unwrap() = Some(1);
    let layout = devices::pci::msi::MsiLayout {
        wide: true,
        masking: true,
        vectors: 4,
    };
    let msi = At {
        offset: 0x50,
        model: Msi::new(layout),
    };
    let interrupts = Interrupts::new(host.clone(), &source, Some(msi), None, None).unwrap();
    interrupts.config_write(0x52, &[0x21, 0]);
    assert!(host.is_armed(IrqIndex::Msi, 0));
    host.take_calls();
    interrupts.config_write(0x60, &[2, 0, 0, 0]);
    interrupts.config_write(0x60, &[0, 0, 0, 0]);
    assert_eq!(host.take_calls(), [""; 0]);
}

#[test]
fn whatever_the_guest_writes_a_vector_with_a_route_is_armed() {
    for host in [FakeHost::default(), FakeHost::default().that_can_grow()] {
        let (host, source) = (Arc::new(host), FakeSource::default());
        let interrupts = msix(&host, &source);
        let (mut random, mut routed) = (Random::new(1), [false; 3]);
        let mut armed = 0;
        for step in 0..20_000 {
            match random.below(4) {
                0 => control(&interrupts, random.pick(&[0, ENABLE, ENABLE | MASK_ALL])),
                1 if random.once_in(50) => interrupts.reset(),
                _ => {
                    let at = random.below(12) as u64 * 4;
                    interrupts.table_write(at, &[random.byte() & 1, 0, 0, 0]);
                }
            }
            for (vector, message) in source.take_routes().into_iter().flatten() {
                routed[vector] = message.is_some();
            }
            host.take_calls();
            for vector in (0..3).filter(|&vector| routed[vector]) {
                assert!(
                    host.is_armed(IrqIndex::Msix, vector),
                    "{vector}, step {step}"
                );
                armed += 1;
            }
        }
        assert!(armed > 1000, "{armed} vectors with a route");
    }
}

/// With both capabilities, and a message in vector 1 of each: two of MSI's four are in use.
fn both(host: &Arc<FakeHost>, source: &FakeSource) -> Interrupts {
    let layout = devices::pci::msi::MsiLayout {
        wide: false,
        masking: false,
        vectors: 4,
    };
    let msi = At {
        offset: 0x50,
        model: Msi::new(layout),
    };
    let msix = At {
        offset: CAP,
        model: Msix::new(3),
    };
    let interrupts = Interrupts::new(host.clone(), source, Some(msi), Some(msix), None).unwrap();
    interrupts.config_write(0x54, &0xfee0_1000u32.to_le_bytes());
    interrupts.config_write(0x58, &[0x40, 0]);
    write_entry(&interrupts, 1, 0xfee0_2000, 0);
    interrupts
}

const MSI: IrqIndex = IrqIndex::Msi;
const MSIX: IrqIndex = IrqIndex::Msix;

fn enable(interrupts: &Interrupts, kind: IrqIndex, enabled: bool) {
    match kind {
        IrqIndex::Msi => interrupts.config_write(0x52, &[if enabled { 0x11 } else { 0 }, 0]),
        _ => control(interrupts, if enabled { ENABLE } else { 0 }),
    }
}

/// Where vectors 0 and 1 go, after all that was told since `routed`.
fn follow(source: &FakeSource, routed: &mut [Option<u64>; 2]) -> [Option<u64>; 2] {
    for (vector, message) in source.take_routes().into_iter().flatten() {
        routed[vector] = message.map(|message| message.address);
    }
    *routed
}

fn addresses(kind: IrqIndex) -> [Option<u64>; 2] {
    match kind {
        IrqIndex::Msi => [Some(0xfee0_1000); 2],
        _ => [None, Some(0xfee0_2000)],
    }
}

#[test]
fn of_two_kinds_enabled_at_once_the_later_is_in_force_and_then_the_one_that_is_left() {
    for (first, second) in [(MSI, MSIX), (MSIX, MSI)] {
        for (disabled, left) in [(first, second), (second, first)] {
            let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
            let interrupts = both(&host, &source);
            let mut routed = [None; 2];
            enable(&interrupts, first, true);
            assert_eq!(follow(&source, &mut routed), addresses(first));
            enable(&interrupts, second, true);
            assert_eq!(follow(&source, &mut routed), addresses(second));
            assert!(host.is_armed(second, 1));
            enable(&interrupts, disabled, false);
            assert_eq!(follow(&source, &mut routed), addresses(left));
            assert!(host.is_armed(left, 1), "{left:?} without {disabled:?}");
            enable(&interrupts, left, false);
            assert_eq!(follow(&source, &mut routed), [None; 2]);
            assert!(!host.is_armed(left, 1));
        }
    }
}

#[test]
fn a_kind_that_waits_is_told_by_nobody_and_comes_back_as_it_was_written_meanwhile() {
    let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
    let interrupts = both(&host, &source);
    enable(&interrupts, MSIX, true);
    enable(&interrupts, MSI, true);
    source.take_routes();
    host.take_calls();
    source.latch(2);
    write_entry(&interrupts, 2, 0xfee0_3000, 0);
    interrupts.table_write(28, &[1]);
    let mut pending = [0; 8];
    interrupts.pba_read(0, &mut pending);
    assert_eq!(pending, [0; 8], "what latches is MSI's");
    assert_eq!(source.take_routes(), Vec::<Vec<_>>::new());
    assert_eq!(host.take_calls(), [""; 0]);
    enable(&interrupts, MSI, false);
    let last = source.take_routes().pop().unwrap();
    let vectors: Vec<_> = last.iter().map(|(vector, _)| *vector).collect();
    assert_eq!(vectors, [2], "vector 1 was masked meanwhile");
    assert!(host.is_armed(MSIX, 2) && !host.is_armed(MSI, 0));
}

#[test]
fn a_reset_leaves_neither_of_two_kinds_in_force() {
    let (host, source) = (Arc::new(FakeHost::default()), FakeSource::default());
    let interrupts = both(&host, &source);
    enable(&interrupts, MSI, true);
    enable(&interrupts, MSIX, true);
    let mut routed = [None; 2];
    follow(&source, &mut routed);
    interrupts.reset();
    assert_eq!(follow(&source, &mut routed), [None; 2]);
    assert!(!host.is_armed(MSI, 0) && !host.is_armed(MSIX, 1));
    enable(&interrupts, MSI, true);
    assert!(host.is_armed(MSI, 1));
}
