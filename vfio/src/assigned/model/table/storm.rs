//! Several vCPUs at once, all of them at odds with each other.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use devices::bus::Bus;

use super::{ECAM, SLOTS, Table, devfn, register_of};
use crate::assigned::{model::hardware::Hardware, random::Random};

const VCPUS: u64 = 4;
const ACCESSES: usize = 20_000;
/// Far more than it takes: who is not done by then waits for a lock that never comes.
const PATIENCE: Duration = Duration::from_secs(120);

impl Table {
    /// Lets vCPUs loose on the cards, and looks whether everything can be taken away afterwards.
    pub(in crate::assigned::model) fn storm(self, seed: u64) {
        let cards = self.cards.iter().map(|seat| seat.oracle.hardware.clone());
        let cards: Vec<_> = cards.collect();
        cards.iter().for_each(|hardware| hardware.expect_races());
        let (done, ended) = mpsc::channel();
        for vcpu in 0..VCPUS {
            let (memory, io) = (self.memory.clone(), self.io.clone());
            let (cards, done) = (cards.clone(), done.clone());
            let mut random = Random::new(seed << 8 | vcpu);
            // Not in a scope, which would wait for one that hangs.
            thread::spawn(move || {
                (0..ACCESSES).for_each(|_| access(&memory, &io, &cards, &mut random));
                done.send(()).unwrap();
            });
        }
        drop(done);
        for vcpu in 0..VCPUS {
            let end = ended.recv_timeout(PATIENCE);
            assert_eq!(end, Ok(()), "seed {seed}: only {vcpu} vCPUs came to an end");
        }
        for number in 0..SLOTS.len() {
            let _ = self.memory.write(config(number, 4), &[0; 2]);
        }
        assert_eq!(self.slots.mapped(), []);
        assert_eq!(self.slots.reached(), []);
    }
}

fn config(number: usize, at: u64) -> u64 {
    ECAM + devfn(number) * 4096 + at
}

/// One access of a vCPU's.
fn access(memory: &Bus, io: &Bus, cards: &[Arc<Hardware>], random: &mut Random) {
    let number = random.below(cards.len());
    let (card, value) = (&cards[number].card, random.value().to_le_bytes());
    let write = |at: u64, data: &[u8]| {
        let _ = memory.write(config(number, at), data);
    };
    match random.below(10) {
        0..4 => write(4, &[random.byte() & 7, 0]),
        4 => {
            let power = card.power().map_or(4, |(at, _)| at);
            write(power as u64, &[random.pick(&[0, 0, 3])]);
        }
        5 => write(random.next() % 64 * 4, &value[..4]),
        6 => {
            if let Some((at, _)) = card.msix() {
                write(at as u64 + 3, &[random.pick(&[0, 0x80, 0xc0])]);
            }
        }
        _ if card.bars.is_empty() => {}
        7 => {
            // To and fro between a few places, where others are as well.
            let bar = random.pick(&card.bars);
            let address = 0xc000_0000_u32 + 0x1000 * u32::from(random.byte() & 7);
            write(register_of(bar.index), &address.to_le_bytes());
        }
        _ => {
            let at = 0xc000_0000 + random.next() % 0x1200 * 8;
            let _ = memory.write(at, &value);
            memory.read(at, &mut [0; 4]);
            io.read(0x1000 + random.next() % 0x100 * 4, &mut [0; 4]);
        }
    }
}
