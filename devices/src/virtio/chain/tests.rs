//! Chains of descriptors, good ones and every kind of garbage.

use super::{
    super::testing::{Driver, INDIRECT, MEMORY_LEN, NEXT, WRITE, ram},
    *,
};
use crate::testing::Random;

const DATA: u64 = 0x10000;

fn next(driver: &Driver) -> Result<Option<Chain>, Garbage> {
    let memory = &driver.ram.0;
    let mut queue = driver.registers().queue(memory, 0).unwrap();
    Chain::next(&mut queue, memory)
}

fn driver() -> Driver {
    Driver::new(ram(), 0x1000)
}

fn buffer(address: u64, len: usize) -> Buffer {
    Buffer {
        address: GuestAddress(address),
        len,
    }
}

#[test]
fn a_chain_is_what_is_read_and_then_what_is_written() {
    let mut driver = driver();
    assert_eq!(next(&driver), Ok(None));
    driver.request(&[(DATA, 16, 0), (DATA + 64, 0, 0), (0x2_0000, 512, WRITE)]);
    let chain = next(&driver).unwrap().unwrap();
    assert_eq!(chain.readable, [buffer(DATA, 16)]);
    assert_eq!(chain.writable, [buffer(0x2_0000, 512)]);
}

#[test]
fn a_chain_goes_by_its_first_descriptor() {
    let mut driver = driver();
    driver.describe(5, (DATA, 16, NEXT, 2));
    driver.describe(2, (0x2_0000, 512, WRITE, 0));
    driver.offer(5);
    let chain = next(&driver).unwrap().unwrap();
    assert_eq!((chain.head, chain.readable.len()), (5, 1));
}

#[test]
fn a_value_is_put_where_it_belongs_however_the_buffers_are_cut() {
    let memory = &ram().0;
    let buffers = [
        buffer(0x1000, 4),
        buffer(0x2000, 4),
        buffer(0x3000, 1),
        buffer(0x4000, 9),
    ];
    let image = || -> Vec<u8> {
        let bytes = buffers.iter().flat_map(|one| {
            let mut bytes = vec![0; one.len];
            memory.read_slice(&mut bytes, one.address).unwrap();
            bytes
        });
        bytes.collect()
    };
    for offset in 0..16 {
        for buffer in &buffers {
            memory
                .write_slice(&vec![0; buffer.len], buffer.address)
                .unwrap();
        }
        put(&buffers, offset, [0xaa, 0xbb], memory).unwrap();
        let mut expected = vec![0; 18];
        expected[offset..offset + 2].copy_from_slice(&[0xaa, 0xbb]);
        assert_eq!(image(), expected, "{offset}");
    }
}

#[test]
fn a_chain_in_an_indirect_table_is_the_same_chain() {
    let mut driver = driver();
    driver.describe_at(0x8000, 0, (DATA, 16, NEXT, 3));
    driver.describe_at(0x8000, 3, (0x2_0000, 512, WRITE, 0));
    driver.request(&[(0x8000, 4 * 16, INDIRECT)]);
    let chain = next(&driver).unwrap().unwrap();
    assert_eq!(chain.readable, [buffer(DATA, 16)]);
    assert_eq!(chain.writable, [buffer(0x2_0000, 512)]);
}

#[test]
fn a_chain_that_does_not_end_is_garbage() {
    let mut driver = driver();
    driver.describe(0, (DATA, 16, NEXT, 1));
    driver.describe(1, (DATA, 16, NEXT, 0));
    driver.offer(0);
    assert_eq!(next(&driver), Err(Garbage::Chain), "a loop");
    driver.describe(1, (DATA, 16, NEXT, 16));
    assert_eq!(next(&driver), Err(Garbage::Chain), "out of the table");
    driver.describe(0, (u64::MAX - 8, 16, INDIRECT, 0));
    assert_eq!(next(&driver), Err(Garbage::Chain), "a table nowhere");
    driver.describe(0, (0x8000, 17, INDIRECT, 0));
    assert_eq!(next(&driver), Err(Garbage::Chain), "half a descriptor");
    driver.describe(0, (0x8000, 16, INDIRECT, 0));
    driver.describe_at(0x8000, 0, (0x8000, 16, INDIRECT, 0));
    assert_eq!(next(&driver), Err(Garbage::Chain), "a table in a table");
}

#[test]
fn a_head_outside_of_the_table_and_an_index_too_far_ahead_are_garbage() {
    let mut driver = driver();
    driver.offer(Driver::SIZE);
    assert_eq!(next(&driver), Err(Garbage::Chain));
    driver.publish(Driver::SIZE + 1);
    assert_eq!(next(&driver), Err(Garbage::Ring));
}

#[test]
fn buffers_outside_of_memory_or_in_the_wrong_order_are_garbage() {
    let mut driver = driver();
    for (address, len) in [
        (MEMORY_LEN - 8, 9),
        (MEMORY_LEN, 1),
        (u64::MAX, 1),
        (0, u32::MAX),
    ] {
        driver.request(&[(address, len, WRITE)]);
        let wrong = Garbage::Buffer { address, len };
        assert_eq!(next(&driver).unwrap_err(), wrong);
        driver = Driver::new(ram(), 0x1000);
    }
    driver.request(&[(DATA, 16, WRITE), (DATA, 16, 0)]);
    assert_eq!(next(&driver), Err(Garbage::Order));
}

#[test]
fn a_header_is_taken_off_however_it_is_cut() {
    let driver = driver();
    let memory = &driver.ram.0;
    memory.write_slice(b"abcdefgh", GuestAddress(DATA)).unwrap();
    let mut chain = Chain {
        readable: vec![buffer(DATA, 1), buffer(DATA + 1, 5), buffer(DATA + 6, 2)],
        ..Chain::default()
    };
    assert_eq!(chain.take_header(memory), Ok(*b"abc"));
    assert_eq!(chain.readable, [buffer(DATA + 3, 3), buffer(DATA + 6, 2)]);
    assert_eq!(chain.take_header(memory), Ok(*b"defgh"));
    let missing = Garbage::Request("header");
    assert_eq!(chain.take_header::<1>(memory), Err(missing));
}

#[test]
fn the_last_byte_is_taken_off_however_it_is_cut() {
    let mut chain = Chain {
        writable: vec![buffer(DATA, 2), buffer(0x5000, 1)],
        ..Chain::default()
    };
    let take = |chain: &mut Chain| chain.take_last_byte().map(|at| at.0);
    assert_eq!(take(&mut chain), Ok(0x5000));
    assert_eq!(take(&mut chain), Ok(DATA + 1));
    assert_eq!(chain.writable, [buffer(DATA, 1)]);
    assert_eq!(take(&mut chain), Ok(DATA));
    assert_eq!(take(&mut chain), Err(Garbage::Request("status")));
}

#[test]
fn whatever_is_in_a_queue_its_buffers_are_in_memory_and_no_longer_than_it() {
    let mut random = Random::new(11);
    let driver = driver();
    let memory = &driver.ram.0;
    let mut served = 0;
    for _ in 0..20_000 {
        for index in 0..Driver::SIZE {
            driver.describe(index, garbage(&mut random));
            driver.describe_at(0x8000, index, garbage(&mut random));
        }
        for entry in 0..Driver::SIZE {
            let head = u16::try_from(random.within(0..20)).unwrap();
            let at = driver.base + 0x404 + 2 * u64::from(entry);
            memory.write_obj(head, GuestAddress(at)).unwrap();
        }
        driver.publish(u16::try_from(random.within(0..20)).unwrap());
        let mut queue = driver.registers().queue(memory, 0).unwrap();
        for _ in 0..=Driver::SIZE {
            let Ok(Some(chain)) = Chain::next(&mut queue, memory) else {
                break;
            };
            served += 1;
            let mut buffers = chain.readable.iter().chain(&chain.writable);
            assert!(buffers.all(|buffer| buffer.address.0 + buffer.len as u64 <= MEMORY_LEN));
        }
    }
    assert!(served > 10_000, "only {served} chains were none of garbage");
}

/// A descriptor that is often nearly right.
fn garbage(random: &mut Random) -> (u64, u32, u16, u16) {
    let address = match random.within(0..8) {
        0 => random.next(),
        1 => MEMORY_LEN - random.within(0..32),
        2 => 0x8000,
        _ => random.within(0..MEMORY_LEN / 2),
    };
    let len = match random.within(0..8) {
        0 => u32::MAX,
        1 => 0,
        _ => u32::try_from(random.within(0..32)).unwrap() * 16,
    };
    let flags = u16::try_from(random.within(0..8)).unwrap();
    let next = u16::try_from(random.within(0..18)).unwrap();
    (
        address,
        len,
        flags & !(u16::try_from(random.within(0..8)).unwrap()),
        next,
    )
}
