//! Devices of garbage: noise where registers should be, cards with a few bytes changed, regions of any size. They are refused or lived
//! with; none may bring the function down, whatever a guest then does.

use devices::pci::Function;

use super::card::Card;
use crate::{
    assigned::{AssignError, MsixTable, Options, fake::FakeHost, random::Random, tests::Guest},
    kernel::Area,
};

const IMAGES: u64 = 100_000;
const CONFIG: u32 = 7;

fn config(random: &mut Random) -> Vec<u8> {
    let mut config = match random.below(4) {
        0 => {
            let len = random.pick(&[0, 63, 64, 255, 256, 1000, 4096, 5000]);
            (0..len).map(|_| random.byte()).collect()
        }
        _ => Card::draw(random).image(|| 0),
    };
    if config.len() < 64 {
        return config;
    }
    for _ in 0..random.below(8) {
        let end = random.pick(&[0x40, 0x100, config.len()]);
        let at = random.below(end.min(config.len()));
        config[at] = random.byte();
    }
    if !random.once_in(20) {
        config[0x0e] = 0;
        config[0x06] |= 0x10;
    }
    config
}

fn host(random: &mut Random) -> FakeHost {
    let mut host = FakeHost::default().with_region(CONFIG, config(random), false);
    for bar in 0..6 {
        if random.once_in(2) {
            continue;
        }
        host = host.with_region(bar, vec![0; 32], false);
        let (info, _) = host.regions.last_mut().unwrap();
        info.size = match random.below(8) {
            0 => random.next() >> random.below(64),
            1 => 12288,
            _ => 1 << random.below(64),
        };
        info.msix_mappable = random.once_in(2);
        for _ in 0..random.below(3) {
            let offset = random.next() >> random.below(64) & 0xffff_f800;
            let len = 1 + (random.next() >> random.below(64) & 0xffff_f800);
            info.mappable.push(Area { offset, len });
        }
    }
    host.has_pin = random.once_in(2);
    host
}

/// A guest that tries what it was given.
fn try_out(guest: &Guest, random: &mut Random) {
    guest.write(4, &[7, 0]);
    for bar in guest.function.bars() {
        guest
            .function
            .assign_bar(bar.index, 0x8000_0000 + ((bar.index as u64) << 24));
    }
    for _ in 0..16 {
        let end = random.pick(&[0x40, 0x100, 0x100, 0x200, 4096]);
        let len = 1 << random.below(3);
        let at = u16::try_from(random.below(end) / len * len).unwrap();
        guest.write(at, &random.value().to_le_bytes()[..len]);
        guest.function.config_read(at, &mut [0; 4][..len]);
        let address = 0x8000_0000 + random.next() % 0xe0_0000 * 8;
        let _ = guest.memory.write(address, &[0; 8]);
        guest.memory.read(address, &mut [0; 8]);
    }
}

#[test]
fn a_device_of_garbage_is_refused_or_lived_with() {
    let mut random = Random::new(0xdead_beef);
    let (mut refused, mut assigned) = (0, 0);
    for _ in 0..IMAGES {
        let options = Options {
            mmap: !random.once_in(4),
            msix: random.pick(&[MsixTable::InPlace, MsixTable::Relocated]),
            ..Options::default()
        };
        match Guest::with(host(&mut random), &options, None) {
            Ok(guest) => {
                try_out(&guest, &mut random);
                assigned += 1;
            }
            Err(
                AssignError::Read { .. }
                | AssignError::NotAnEndpoint { .. }
                | AssignError::Bars { .. },
            ) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        refused > 10_000 && assigned > 10_000,
        "{refused} {assigned}"
    );
}
