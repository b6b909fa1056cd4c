//! The guard between a guest's rings and the memory of this process.

use std::ops::Range;

use vm_memory::GuestMemoryBackend;

use super::*;

const GIB: u64 = 1 << 30;
/// RAM below a hole, two ranges that meet, and RAM above 4 GiB.
const RAM: [Range<u64>; 4] = [
    0..0x8_0000,
    0x10_0000..0x18_0000,
    0x18_0000..0x20_0000,
    4 * GIB..4 * GIB + 0x8_0000,
];

fn memory(ranges: &[Range<u64>]) -> GuestMemoryMmap {
    let range = |range: &Range<u64>| {
        let len = usize::try_from(range.end - range.start).unwrap();
        (GuestAddress(range.start), len)
    };
    let ranges: Vec<_> = ranges.iter().map(range).collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

/// A ring of `size` entries with its three parts, in the order of [`Ring`], at `parts`.
fn ring(bell: &EventFd, size: u16, parts: [u64; 3]) -> Ring<'_> {
    let [descriptors, available, used] = parts;
    Ring {
        queue: 1,
        max: 1 << 15,
        size,
        descriptors,
        available,
        used,
        bell,
        line: None,
    }
}

/// The bytes that the kernel accesses of each part (virtio 1.2 §2.7): 16 for a descriptor; flags,
/// index, 2 for an entry and the event index; flags, index, 8 for an entry and the event index.
fn lens(size: u16) -> [u64; 3] {
    let size = u64::from(size);
    [16 * size, 4 + 2 * size + 2, 4 + 8 * size + 2]
}

/// Whether all of the `part`th part of a ring may be at `at`, while the others are in memory.
fn is_taken(memory: &GuestMemoryMmap, part: usize, size: u16, at: u64) -> bool {
    let bell = nobody().unwrap();
    let mut parts = [0; 3];
    parts[part] = at;
    check(&ring(&bell, size, parts), memory).is_ok()
}

#[test]
fn each_part_of_a_ring_of_any_size_has_to_end_where_ram_ends() {
    let memory = memory(&RAM);
    for size in [1, 2, 256, 0x4000] {
        for (part, len) in lens(size).into_iter().enumerate() {
            for Range { start, end } in RAM {
                let taken = |at| is_taken(&memory, part, size, at);
                let what =
                    format!("part {part} of {size} entries, RAM from {start:#x} to {end:#x}");
                assert!(
                    taken(start) && taken(start + 8) && taken(end - len - 8),
                    "{what}"
                );
                assert!(taken(end - len), "{what}");
                assert!(!taken(end - len + 1), "{what}");
                assert!(!taken(end - 1), "{what}");
            }
        }
    }
}

#[test]
fn a_ring_outside_of_ram_or_over_a_hole_is_refused() {
    let memory = memory(&RAM);
    for (part, len) in lens(256).into_iter().enumerate() {
        // In the hole, from RAM into it, from it into RAM, behind all RAM, at the end of the
        // address space and around it.
        let wrong = [
            0x8_0000,
            0xc_0000,
            0x8_0000 - len / 2,
            0x10_0000 - len / 2,
            0x10_0000 - 1,
            4 * GIB - 1,
            4 * GIB + 0x8_0000,
            1 << 63,
            u64::MAX - len,
            u64::MAX - len + 1,
            u64::MAX - 1,
            u64::MAX,
        ];
        for at in wrong {
            assert!(!is_taken(&memory, part, 256, at), "part {part} at {at:#x}");
        }
    }
}

#[test]
fn a_ring_over_the_hole_is_refused_whatever_its_length() {
    // The hole is shorter than the longest table of descriptors, which is half a megabyte.
    let memory = memory(&[0..0x10_0000, 0x10_1000..0x40_0000]);
    for (part, len) in lens(1 << 15).into_iter().enumerate() {
        assert!(is_taken(&memory, part, 1 << 15, 0x10_0000 - len));
        assert!(!is_taken(&memory, part, 1 << 15, 0x10_0800 - len / 2));
        assert!(is_taken(&memory, part, 1 << 15, 0x10_1000));
    }
}

#[test]
fn a_ring_over_two_ranges_that_meet_is_refused() {
    // The guest sees one piece of RAM, and this process may have the two anywhere.
    let memory = memory(&RAM);
    for (part, len) in lens(256).into_iter().enumerate() {
        for into in [1, len / 2, len - 1] {
            let at = 0x18_0000 - into;
            assert!(!is_taken(&memory, part, 256, at), "part {part} at {at:#x}");
        }
    }
}

#[test]
fn a_ring_without_ram_is_refused_and_the_error_names_the_queue() {
    let bell = nobody().unwrap();
    let refused = check(&ring(&bell, 256, [0; 3]), &GuestMemoryMmap::default());
    let refused = refused.unwrap_err().to_string();
    assert!(refused.starts_with("queue 1: "), "{refused}");
}

#[test]
fn any_ring_is_taken_exactly_if_each_part_lies_in_one_range_of_ram() {
    // A linear congruential generator: the same numbers in every run.
    let mut state = 1_u64;
    let mut below = |limit: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % limit
    };
    let memory = memory(&RAM);
    let bell = nobody().unwrap();
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..100_000 {
        let size = 1_u16 << below(16);
        let lens = lens(size);
        let parts = lens.map(|len| {
            // Anywhere in a range, or close to one of its ends or to where the part would end with
            // it.
            let Range { start, end } = &RAM[usize::try_from(below(4)).unwrap()];
            let edges = [*start, *end, end.wrapping_sub(len), start.wrapping_sub(len)];
            match below(4) {
                0 => edges[usize::try_from(below(4)).unwrap()]
                    .wrapping_add(below(8))
                    .wrapping_sub(4),
                _ => start + below(end - start),
            }
        });
        let is_in_ram = |(at, len): (u64, u64)| {
            RAM.iter().any(|range| {
                range.start <= at && u128::from(at) + u128::from(len) <= range.end.into()
            })
        };
        let expected = parts.into_iter().zip(lens).all(is_in_ram);
        let result = check(&ring(&bell, size, parts), &memory);
        assert_eq!(result.is_ok(), expected, "{size} entries at {parts:x?}");
        *if expected { &mut taken } else { &mut refused } += 1;
    }
    assert!(
        taken > 10_000 && refused > 10_000,
        "{taken} taken, {refused} refused"
    );
}

#[test]
fn the_kernel_is_told_of_each_range_of_ram_as_it_is() {
    let memory = memory(&RAM);
    let told: Vec<_> = memory.iter().map(|range| region(range).unwrap()).collect();
    assert_eq!(told.len(), RAM.len());
    for (told, range) in told.iter().zip(&RAM) {
        assert_eq!(told.guest_phys_addr, range.start);
        assert_eq!(told.memory_size, range.end - range.start);
        let [first, last] = [range.start, range.end - 1]
            .map(|at| memory.get_host_address(GuestAddress(at)).unwrap() as u64);
        assert_eq!(told.userspace_addr, first);
        assert_eq!(told.userspace_addr + told.memory_size - 1, last);
    }
}
