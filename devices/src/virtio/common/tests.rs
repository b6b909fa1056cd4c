//! The registers as a driver uses them, and as it should not.

use super::{super::registers::F_EVENT_IDX, *};
use crate::testing::Random;

const OFFERED: u64 = F_VERSION_1 | F_EVENT_IDX | 1 << 5;

fn common() -> Common {
    Common::new(OFFERED, &[256, 64])
}

fn word(common: &Common, at: usize) -> u16 {
    let mut data = [0; 2];
    common.read(at, &mut data, false, 7);
    u16::from_le_bytes(data)
}

fn dword(common: &Common, at: usize) -> u32 {
    let mut data = [0; 4];
    common.read(at, &mut data, false, 7);
    u32::from_le_bytes(data)
}

fn status(common: &Common) -> u8 {
    let mut data = [0];
    common.read(at::STATUS, &mut data, false, 7);
    data[0]
}

fn set(common: &mut Common, at: usize, data: &[u8]) {
    assert_eq!(common.write(at, data), Effect::None);
}

fn take(common: &mut Common, features: u64) {
    let bytes = features.to_le_bytes();
    for (select, half) in [(0_u32, &bytes[..4]), (1, &bytes[4..])] {
        set(common, at::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
        set(common, at::DRIVER_FEATURE, half);
    }
}

fn agreed() -> Common {
    let mut common = common();
    set(&mut common, at::STATUS, &[1]);
    set(&mut common, at::STATUS, &[3]);
    take(&mut common, F_VERSION_1);
    set(&mut common, at::STATUS, &[11]);
    common
}

#[test]
fn features_show_by_halves_and_there_are_no_others() {
    let mut common = common();
    let mut offered = |select: u32| {
        set(
            &mut common,
            at::DEVICE_FEATURE_SELECT,
            &select.to_le_bytes(),
        );
        dword(&common, at::DEVICE_FEATURE)
    };
    assert_eq!(offered(0), 1 << 29 | 1 << 5);
    assert_eq!(offered(1), 1);
    assert_eq!((offered(2), offered(u32::MAX)), (0, 0));
}

#[test]
fn features_that_were_not_offered_or_a_legacy_driver_are_not_ok() {
    for wrong in [0, 1 << 5, F_VERSION_1 | 1 << 6] {
        let mut common = common();
        set(&mut common, at::STATUS, &[3]);
        take(&mut common, wrong);
        set(&mut common, at::STATUS, &[11]);
        assert_eq!(status(&common), 3, "{wrong:#x}");
        set(&mut common, at::STATUS, &[7]);
        assert_eq!(status(&common), 3, "and the device does not start");
    }
    assert_eq!(status(&agreed()), 11);
}

#[test]
fn features_stay_once_they_are_agreed_upon() {
    let mut common = agreed();
    take(&mut common, F_VERSION_1 | F_EVENT_IDX);
    assert_eq!(common.features(), F_VERSION_1);
}

#[test]
fn the_device_starts_once_and_a_zero_resets_it() {
    let mut common = agreed();
    assert_eq!(common.write(at::STATUS, &[15]), Effect::Start);
    assert_eq!(common.write(at::STATUS, &[15]), Effect::None);
    assert_eq!(common.write(at::STATUS, &[0]), Effect::Reset);
    common.reset();
    assert_eq!(status(&common), 0);
    assert_eq!(common.features(), 0);
    assert_eq!(word(&common, at::NUM_QUEUES), 2);
}

#[test]
fn a_device_that_needs_a_reset_says_so() {
    let mut data = [0];
    agreed().read(at::STATUS, &mut data, true, 7);
    assert_eq!(data, [0x4b]);
}

#[test]
fn a_queue_is_set_up_by_its_registers_until_it_is_enabled() {
    let mut common = agreed();
    set(&mut common, at::QUEUE_SELECT, &[1, 0]);
    assert_eq!(word(&common, at::QUEUE_SIZE), 64);
    assert_eq!(word(&common, at::QUEUE_NOTIFY_OFFSET), 1);
    set(&mut common, at::QUEUE_SIZE, &[16, 0]);
    for (register, address) in [
        (at::QUEUE_DESCRIPTORS, 0x11_2222_3000_u64),
        (at::QUEUE_AVAILABLE, 0x11_2222_4000),
        (at::QUEUE_USED, 0x11_2222_5000),
    ] {
        let bytes = address.to_le_bytes();
        set(&mut common, register, &bytes[..4]);
        set(&mut common, register + 4, &bytes[4..]);
    }
    set(&mut common, at::QUEUE_ENABLE, &[1, 0]);
    // Too late.
    set(&mut common, at::QUEUE_SIZE, &[32, 0]);
    set(&mut common, at::QUEUE_USED, &[0; 4]);
    set(&mut common, at::QUEUE_ENABLE, &[0, 0]);
    let enabled: Vec<_> = common.enabled().collect();
    let [(1, queue)] = enabled[..] else {
        panic!("{enabled:?}")
    };
    assert_eq!((queue.size, queue.used), (16, 0x11_2222_5000));
    assert_eq!(queue.descriptors, 0x11_2222_3000);
}

#[test]
fn the_halves_of_a_register_may_come_in_any_order_and_again() {
    let mut common = agreed();
    let write = |common: &mut Common, half, value: u32| {
        set(common, at::QUEUE_USED + half, &value.to_le_bytes());
    };
    for (half, value, expected) in [
        (4, 0x11, (0, 0x11)),
        (0, 0x2222_5000, (0x2222_5000, 0x11)),
        (4, 0x33, (0x2222_5000, 0x33)),
        (0, 0x4444_5000, (0x4444_5000, 0x33)),
    ] {
        write(&mut common, half, value);
        let halves = (
            dword(&common, at::QUEUE_USED),
            dword(&common, at::QUEUE_USED + 4),
        );
        assert_eq!(halves, expected);
    }
}

#[test]
fn a_queue_is_enabled_by_a_one_and_before_the_device_runs() {
    // virtio 1.2 §4.1.4.3: the driver writes 1; §3.1.1: queues are set up before DRIVER_OK.
    let mut common = agreed();
    for value in [2, 0xffff_u16] {
        set(&mut common, at::QUEUE_ENABLE, &value.to_le_bytes());
        assert_eq!(common.enabled().count(), 0, "{value:#x}");
    }
    set(&mut common, at::QUEUE_ENABLE, &[1, 0]);
    assert_eq!(common.enabled().count(), 1);
    assert_eq!(common.write(at::STATUS, &[15]), Effect::Start);
    set(&mut common, at::QUEUE_SELECT, &[1, 0]);
    set(&mut common, at::QUEUE_ENABLE, &[1, 0]);
    assert_eq!(common.enabled().count(), 1, "too late");
}

#[test]
fn only_the_status_is_written_by_a_byte() {
    let mut common = agreed();
    for offset in (0..0x48).filter(|&offset| offset != at::STATUS) {
        set(&mut common, offset, &[0]);
    }
    assert_eq!((status(&common), common.enabled().count()), (11, 0));
}

#[test]
fn a_queue_that_is_not_there_has_no_size_and_takes_nothing() {
    let mut common = agreed();
    set(&mut common, at::QUEUE_SELECT, &[2, 0]);
    assert_eq!(word(&common, at::QUEUE_SIZE), 0);
    set(&mut common, at::QUEUE_ENABLE, &[1, 0]);
    set(&mut common, at::QUEUE_VECTOR, &[1, 0]);
    set(&mut common, at::QUEUE_DESCRIPTORS, &[1; 4]);
    assert_eq!(common.enabled().count(), 0);
}

#[test]
fn a_vector_is_what_the_driver_chose_if_it_got_that() {
    let mut common = agreed();
    let wanted = common.write(at::CONFIG_VECTOR, &[2, 0]);
    assert_eq!(wanted, Effect::Vector(Cause::Config, 2));
    common.set_vector(Cause::Config, Some(2));
    assert_eq!(word(&common, at::CONFIG_VECTOR), 2);
    common.set_vector(Cause::Queue(0), None);
    assert_eq!(word(&common, at::QUEUE_VECTOR), NO_VECTOR);
}

#[test]
fn a_write_of_another_width_than_its_registers_is_ignored() {
    let mut common = agreed();
    set(&mut common, at::STATUS, &[0, 0]);
    set(&mut common, at::STATUS, &[0, 0, 0, 0]);
    set(&mut common, at::QUEUE_DESCRIPTORS, &[1; 8]);
    set(&mut common, at::QUEUE_DESCRIPTORS + 2, &[1; 4]);
    set(&mut common, at::QUEUE_SELECT, &[1]);
    assert_eq!(status(&common), 11);
    assert_eq!(word(&common, at::QUEUE_SELECT), 0);
    assert_eq!(dword(&common, at::QUEUE_DESCRIPTORS), 0);
}

#[test]
fn all_widths_read_the_same_after_any_writes() {
    let mut random = Random::new(9);
    let mut common = common();
    for _ in 0..50_000 {
        let len = 1 << random.within(0..4);
        let offset = usize::try_from(random.within(0..0x48)).unwrap();
        if common.write(offset, &random.value().to_le_bytes()[..len]) == Effect::Reset {
            common.reset();
        }
        let mut whole = [0; 8];
        common.read(offset, &mut whole[..len], false, 7);
        for (at, expected) in (offset..).zip(&whole[..len]) {
            let mut byte = [0];
            common.read(at, &mut byte, false, 7);
            assert_eq!(byte[0], *expected);
        }
    }
}
