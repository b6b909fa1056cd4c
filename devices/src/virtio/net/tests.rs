//! Packets both ways, commands, and what of a driver makes no sense.

use std::{os::fd::BorrowedFd, sync::Mutex};

use vm_memory::GuestAddress;

use super::{
    super::{
        Buffer, Ring,
        chain::Chain,
        device::Device,
        registers::{F_VERSION_1, common},
        testing::{Driver, FakeMsi, MEMORY_LEN, WRITE, ram},
    },
    *,
};
use crate::testing::{Cable, Random, cable};

const IDENTITY: Identity = Identity {
    number: 0,
    mac: [2, 0, 0, 0, 0, 1],
    mtu: Some(1500),
};

fn net(cables: &[Arc<Cable>]) -> Net {
    let wires = cables.iter().map(|cable| cable.clone() as Arc<dyn Wire>);
    let mut net = Net::new(&IDENTITY, wires.collect(), None).unwrap();
    net.agree(F_VERSION_1 | F_CTRL_VQ | F_MQ);
    net
}

fn buffer(address: u64, len: usize) -> Buffer {
    Buffer {
        address: GuestAddress(address),
        len,
    }
}

fn readable(buffers: &[Buffer]) -> Chain {
    Chain {
        readable: buffers.to_vec(),
        ..Chain::default()
    }
}

fn writable(buffers: &[Buffer]) -> Chain {
    Chain {
        writable: buffers.to_vec(),
        ..Chain::default()
    }
}

fn packet(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

#[test]
fn a_packet_goes_out_as_it_is_in_memory_however_it_is_cut() {
    let (cable, ram) = (cable(), ram());
    let mut net = net(std::slice::from_ref(&cable));
    let sent = packet(100);
    for (part, at) in [(0..5, 0x1000), (5..60, 0x2000), (60..100, 0x3000)] {
        let part: &[u8] = &sent[part];
        ram.0.write_slice(part, GuestAddress(at)).unwrap();
    }
    let pieces = [buffer(0x1000, 5), buffer(0x2000, 55), buffer(0x3000, 40)];
    let served = net.serve(1, readable(&pieces), &ram.0);
    assert_eq!(served, Ok(Answer::Done(0)));
    assert_eq!(*cable.sent.lock().unwrap(), [sent]);
}

#[test]
fn a_packet_comes_in_however_the_room_is_cut_and_says_that_it_is_in_one_request() {
    let (cable, ram) = (cable(), ram());
    let mut net = net(std::slice::from_ref(&cable));
    let room = [buffer(0x1000, 11), buffer(0x2000, 50), buffer(0x3000, 100)];
    let request = || writable(&room);
    assert_eq!(net.serve(0, request(), &ram.0), Ok(Answer::NotYet));
    cable.coming.lock().unwrap().push_back(packet(100));
    assert_eq!(net.serve(0, request(), &ram.0), Ok(Answer::Done(100)));
    let mut came = [0; 100];
    let (first, rest) = came.split_at_mut(11);
    let (second, third) = rest.split_at_mut(50);
    for (part, at) in [(first, 0x1000), (second, 0x2000), (third, 0x3000)] {
        ram.0.read_slice(part, GuestAddress(at)).unwrap();
    }
    let mut expected = packet(100);
    expected[10..12].copy_from_slice(&[1, 0]);
    assert_eq!(came[..], expected);
    assert_eq!(net.serve(0, request(), &ram.0), Ok(Answer::NotYet));
}

#[test]
fn what_cannot_be_a_packet_is_not_sent_and_room_for_none_is_garbage() {
    let (cable, ram) = (cable(), ram());
    let mut net = net(std::slice::from_ref(&cable));
    for len in [0, 11, LONGEST + 1] {
        let pieces: &[Buffer] = &[buffer(0x1000, len)];
        let served = net.serve(1, readable(pieces), &ram.0);
        assert_eq!(served, Ok(Answer::Done(0)), "{len}");
    }
    assert!(cable.sent.lock().unwrap().is_empty());
    let served = net.serve(1, readable(&[buffer(0x1000, LONGEST)]), &ram.0);
    assert_eq!(served, Ok(Answer::Done(0)));
    assert_eq!(cable.sent.lock().unwrap().len(), 1);
    cable.coming.lock().unwrap().push_back(packet(100));
    let served = net.serve(0, writable(&[buffer(0x1000, 11)]), &ram.0);
    assert_eq!(served, Err(Garbage::Request("packet")));
}

#[test]
fn each_pair_has_an_interface_of_its_own_and_a_header_is_the_least_room() {
    let (cables, ram) = ([cable(), cable(), cable()], ram());
    let mut net = net(&cables);
    for (pair, cable) in cables.iter().enumerate() {
        cable.coming.lock().unwrap().push_back(packet(HEADER_LEN));
        let room = writable(&[buffer(0x1000, HEADER_LEN)]);
        let served = net.serve(2 * pair, room, &ram.0);
        assert_eq!(served, Ok(Answer::Done(12)), "pair {pair}");
        let served = net.serve(2 * pair + 1, readable(&[buffer(0x1000, 60)]), &ram.0);
        assert_eq!(served, Ok(Answer::Done(0)));
        let sent = |cable: &Arc<Cable>| cable.sent.lock().unwrap().len();
        assert_eq!(cables.iter().map(sent).sum::<usize>(), pair + 1);
        assert_eq!(sent(cable), 1);
    }
}

#[test]
fn what_an_interface_fails_at_is_counted_and_what_a_guest_does_wrong_is_not() {
    let (cable, ram) = (cable(), ram());
    let mut net = net(std::slice::from_ref(&cable));
    let mut failures = |kind| {
        *cable.fails.lock().unwrap() = Some(kind);
        let before = net.failures;
        let served = net.serve(0, writable(&[buffer(0x1000, 100)]), &ram.0);
        assert_eq!(served, Ok(Answer::NotYet));
        let receiving = net.failures - before;
        let served = net.serve(1, readable(&[buffer(0x1000, 100)]), &ram.0);
        assert_eq!(served, Ok(Answer::Done(0)));
        (receiving, net.failures - before - receiving)
    };
    assert_eq!(failures(io::ErrorKind::NetworkDown), (1, 1));
    assert_eq!(failures(io::ErrorKind::WouldBlock), (0, 1));
    assert_eq!(failures(io::ErrorKind::InvalidInput), (1, 0));
}

/// Whether there is something at the device's source.
fn is_ready(net: &Net) -> bool {
    let outer = Epoll::new().unwrap();
    let source = net.source().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    outer.ctl(ControlOperation::Add, source, event).unwrap();
    outer.wait(0, &mut [EpollEvent::default()]).unwrap() > 0
}

#[test]
fn the_device_wakes_for_packets_on_the_pairs_in_use_until_it_has_looked() {
    let (cables, ram) = ([cable(), cable()], ram());
    let mut net = net(&cables);
    net.stirred();
    assert!(!is_ready(&net));
    ram.0
        .write_slice(&[4, 0, 2, 0], GuestAddress(0x1000))
        .unwrap();
    let two_pairs = Chain {
        readable: vec![buffer(0x1000, 4)],
        writable: vec![buffer(0x2000, 1)],
        ..Chain::default()
    };
    assert_eq!(net.serve(4, two_pairs, &ram.0), Ok(Answer::Done(1)));
    for cable in &cables {
        cable.bring(packet(60));
        assert!(is_ready(&net));
        assert!(!net.stirred(), "the configuration is the same");
        assert!(!is_ready(&net));
    }
}

#[test]
fn commands_come_by_the_queue_after_the_pairs_that_the_driver_knows_of() {
    // virtio 1.2 §5.1.2: without VIRTIO_NET_F_MQ there is one pair, whatever the interface has.
    let cables = [cable(), cable(), cable()];
    let mut net = net(&cables);
    for (features, control) in [
        (F_CTRL_VQ | F_MQ, Some(6)),
        (F_CTRL_VQ, Some(2)),
        (F_MQ, None),
        (F_VERSION_1, None),
    ] {
        net.agree(features);
        let queue = (0..8).find(|&queue| net.role(queue) == Role::Control);
        assert_eq!(queue, control, "{features:#x}");
    }
}

#[test]
fn the_features_are_those_that_an_interface_with_offloads_has() {
    // virtio 1.2 §5.1.3: CSUM, GUEST_CSUM, MAC; GUEST_TSO4, TSO6, ECN, UFO; HOST_ the same; STATUS.
    let always = 1 << 0 | 1 << 1 | 1 << 5 | 0b1111 << 7 | 0b1111 << 11 | 1 << 16;
    let (mtu, merged, commands, pairs) = (1 << 3, 1 << 15, 1 << 17, 1 << 22);
    let features =
        |identity: &Identity, count, has_engine| kind(identity, count, has_engine).features;
    let without = Identity {
        mtu: None,
        ..IDENTITY
    };
    assert_eq!(features(&without, 1, false), always);
    assert_eq!(features(&IDENTITY, 1, true), always | mtu | merged);
    let two = features(&IDENTITY, 2, false);
    assert_eq!(two, always | mtu | commands | pairs);
    assert_eq!(kind(&IDENTITY, 2, false).queues, [256, 256, 256, 256, 64]);
}

#[test]
fn an_interface_with_one_queue_has_no_commands_and_all_say_address_link_and_packet_size() {
    let one = net(&[cable()]).kind();
    assert_eq!(one.queues.len(), 2);
    assert_eq!(one.features & (F_MQ | F_CTRL_VQ | F_MRG_RXBUF), 0);
    assert_ne!(one.features & F_MTU, 0);
    let two = net(&[cable(), cable()]).kind();
    assert_eq!(two.queues.len(), 5);
    assert_eq!(two.features & (F_MQ | F_CTRL_VQ), F_MQ | F_CTRL_VQ);
    let mut config = [0; 12];
    two.config.read(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 2, 0, 0xdc, 5]);
}

#[test]
fn a_driver_gets_packets_on_as_many_pairs_as_it_asks_for() {
    let (cables, ram) = ([cable(), cable(), cable()], ram());
    let mut net = net(&cables);
    let attached = || [0, 1, 2].map(|pair: usize| *cables[pair].is_attached.lock().unwrap());
    assert_eq!(attached(), [true, false, false]);
    let mut command = |bytes: &[u8]| {
        ram.0.write_slice(bytes, GuestAddress(0x1000)).unwrap();
        let chain = Chain {
            readable: vec![buffer(0x1000, bytes.len())],
            writable: vec![buffer(0x2000, 1)],
            ..Chain::default()
        };
        assert_eq!(net.serve(6, chain, &ram.0), Ok(Answer::Done(1)));
        ram.0.read_obj::<u8>(GuestAddress(0x2000)).unwrap()
    };
    assert_eq!(command(&[4, 0, 2, 0]), CTRL_OK);
    assert_eq!(attached(), [true, true, false]);
    for wrong in [[4, 0, 0, 0], [4, 0, 4, 0], [4, 1, 2, 0], [0, 0, 1, 0]] {
        assert_eq!(command(&wrong), CTRL_ERR, "{wrong:?}");
    }
    assert_eq!(command(&[4, 0, 3, 0]), CTRL_OK);
    assert_eq!(attached(), [true, true, true]);
    net.agree(F_VERSION_1);
    assert_eq!(attached(), [true, false, false]);
}

#[test]
fn what_the_host_leaves_undone_on_packets_is_what_the_driver_does() {
    let cable = cable();
    let mut net = net(std::slice::from_ref(&cable));
    let mut taken = |features| {
        net.agree(features);
        cable.taken.lock().unwrap().take().unwrap()
    };
    assert_eq!(taken(F_VERSION_1), Offloads::default());
    // Not without the checksum, which a driver has to take with it.
    assert_eq!(taken(F_GUEST_TSO4 | F_GUEST_ECN), Offloads::default());
    let each = [
        F_GUEST_CSUM,
        F_GUEST_TSO4,
        F_GUEST_TSO6,
        F_GUEST_ECN,
        F_GUEST_UFO,
    ];
    for set in 0..1 << each.len() {
        let has = [0, 1, 2, 3, 4].map(|bit| set & 1 << bit != 0);
        let features = each.iter().zip(has).filter(|(_, has)| *has);
        let [checksum, tso4, tso6, ecn, ufo] = has;
        // §5.1.3.1: everything needs the checksum, and ECN one of the two TSOs.
        let expected = Offloads {
            checksum,
            tso4: checksum && tso4,
            tso6: checksum && tso6,
            ecn: checksum && ecn && (tso4 || tso6),
            ufo: checksum && ufo,
        };
        assert_eq!(taken(features.map(|(feature, _)| feature).sum()), expected);
    }
    assert_eq!(
        taken(F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_UFO),
        Offloads {
            checksum: true,
            tso4: true,
            ufo: true,
            ..Offloads::default()
        }
    );
}

/// Whatever descriptors a driver writes: served, refused or waiting, and never a panic nor a packet that was not in memory.
#[test]
fn garbage_of_a_driver_costs_it_the_device_at_most() {
    let (cables, ram) = ([cable(), cable()], ram());
    let mut net = net(&cables);
    let mut random = Random::new(0xae7);
    let (mut sent, mut received) = (0, 0);
    for _ in 0..20_000 {
        let mut driver = Driver::new(ram.clone(), 0x1000);
        for index in 0..4 {
            let address = random.within(0..MEMORY_LEN + 0x2000);
            let len = u32::try_from(random.within(0..0x20000) >> random.within(0..17)).unwrap();
            let flags = u16::try_from(random.within(0..8)).unwrap();
            let next = u16::try_from(random.within(0..6)).unwrap();
            driver.describe(index, (address, len, flags, next));
        }
        ram.0.write_obj(0_u16, GuestAddress(0x1402)).unwrap();
        driver.offer(u16::try_from(random.within(0..5)).unwrap());
        let mut queue = driver.registers().queue(&ram.0, F_VERSION_1).unwrap();
        cables[0].coming.lock().unwrap().push_back(packet(70));
        let Ok(Some(chain)) = Chain::next(&mut queue, &ram.0) else {
            continue;
        };
        let at = usize::try_from(random.within(0..6)).unwrap();
        let room = chain.writable_len();
        let mut given = Vec::new();
        for part in &chain.readable {
            let start = given.len();
            given.resize(start + part.len, 0);
            ram.0.read_slice(&mut given[start..], part.address).unwrap();
        }
        if let Ok(Answer::Done(written)) = net.serve(at, chain, &ram.0) {
            assert!(usize::try_from(written).unwrap() <= room);
        }
        received += usize::from(cables[0].coming.lock().unwrap().is_empty());
        cables[0].coming.lock().unwrap().clear();
        for cable in &cables {
            for packet in std::mem::take(&mut *cable.sent.lock().unwrap()) {
                assert!(given.ends_with(&packet));
                sent += 1;
            }
        }
    }
    assert!(
        sent > 100 && received > 100,
        "{sent} sent, {received} received"
    );
}

/// What an engine was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Start(Vec<(usize, u64, bool)>),
    Line(usize, bool),
    Stop,
}

struct FakeEngine(Arc<Mutex<Vec<Asked>>>);

impl Engine for FakeEngine {
    fn start(&mut self, _features: u64, rings: &[Ring<'_>]) -> io::Result<()> {
        let rings = rings.iter();
        let rings = rings.map(|ring| (ring.queue, ring.used, ring.line.is_some()));
        self.0.lock().unwrap().push(Asked::Start(rings.collect()));
        Ok(())
    }

    fn interrupt_by(&mut self, queue: usize, line: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let asked = Asked::Line(queue, line.is_some());
        self.0.lock().unwrap().push(asked);
        Ok(())
    }

    fn stop(&mut self) {
        self.0.lock().unwrap().push(Asked::Stop);
    }
}

fn set_up(device: &mut Device, queue: u16, driver: &Driver, vector: u16) {
    let mut word = |offset: usize, value: u16| device.common_write(offset, &value.to_le_bytes());
    word(common::QUEUE_SELECT, queue);
    word(common::QUEUE_SIZE, Driver::SIZE);
    word(common::QUEUE_VECTOR, vector);
    let places = [
        common::QUEUE_DESCRIPTORS,
        common::QUEUE_AVAILABLE,
        common::QUEUE_USED,
    ];
    for (register, place) in places.into_iter().zip(driver.places()) {
        let low = u32::try_from(place).unwrap();
        device.common_write(register, &low.to_le_bytes());
    }
    device.common_write(common::QUEUE_ENABLE, &1_u16.to_le_bytes());
}

#[test]
fn an_engine_gets_the_packets_queues_and_the_thread_keeps_the_commands() {
    let (ram, msi, asked) = (ram(), FakeMsi::default(), Arc::default());
    let cables = [cable(), cable()];
    let wires = cables.iter().map(|cable| cable.clone() as Arc<dyn Wire>);
    let engine = Box::new(FakeEngine(Arc::clone(&asked)));
    let net = Net::new(&IDENTITY, wires.collect(), Some(engine)).unwrap();
    assert_eq!(net.source(), None, "the engine is woken by itself");
    let mut device = Device::new(Box::new(net), &msi, ram.clone(), Arc::new(|| {})).unwrap();
    let mut drivers = [0x1000, 0x2000, 0x3000].map(|base| Driver::new(ram.clone(), base));

    let features = (F_VERSION_1 >> 32, F_CTRL_VQ | F_MQ);
    for (half, value) in [(0_u32, features.1), (1, features.0)] {
        device.common_write(common::DRIVER_FEATURE_SELECT, &half.to_le_bytes());
        let value = u32::try_from(value).unwrap();
        device.common_write(common::DRIVER_FEATURE, &value.to_le_bytes());
    }
    device.common_write(common::STATUS, &[0x0b]);
    for (number, (queue, vector)) in [(0, 1), (1, 0xffff), (4, 5)].into_iter().enumerate() {
        set_up(&mut device, queue, &drivers[number], vector);
    }
    asked.lock().unwrap().clear();
    device.common_write(common::STATUS, &[0x0f]);
    let rings = vec![(0, 0x1800, true), (1, 0x2800, false)];
    assert_eq!(
        asked.lock().unwrap().drain(..).collect::<Vec<_>>(),
        [Asked::Start(rings)]
    );

    // A command is served by the thread while the engine has the rest.
    ram.0
        .write_slice(&[4, 0, 2, 0], GuestAddress(0x8000))
        .unwrap();
    drivers[2].request(&[(0x8000, 4, 0), (0x9000, 1, WRITE)]);
    device.bells[4].write(1).unwrap();
    msi.wait(5);
    assert!(*cables[1].is_attached.lock().unwrap());

    device.common_write(common::QUEUE_SELECT, &1_u16.to_le_bytes());
    device.common_write(common::QUEUE_VECTOR, &2_u16.to_le_bytes());
    device.common_write(common::STATUS, &[0]);
    let asked: Vec<_> = asked.lock().unwrap().drain(..).collect();
    assert_eq!(asked, [Asked::Line(1, true), Asked::Stop]);
}
