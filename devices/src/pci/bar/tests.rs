//! BARs as software finds, sizes and moves them.

use super::*;
use crate::testing::{Random, widths_agree};

const IO: BarKind = BarKind::Io;
const LOW: BarKind = BarKind::Memory32 {
    prefetchable: false,
};
const HIGH: BarKind = BarKind::Memory64 { prefetchable: true };

fn spec(index: usize, kind: BarKind, size: u64) -> BarSpec {
    BarSpec { index, kind, size }
}

fn card() -> Bars {
    let specs = [
        spec(0, HIGH, 16 << 30),
        spec(2, LOW, 4096),
        spec(3, IO, 32),
        spec(4, HIGH, 16384),
        spec(ROM_INDEX, LOW, 65536),
    ];
    Bars::new(&specs).unwrap()
}

fn dword(bars: &Bars, offset: u16) -> u32 {
    let mut data = [0; 4];
    bars.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn ask_size(bars: &mut Bars, offset: u16) -> u32 {
    bars.write(offset, &[0xff; 4]);
    dword(bars, offset)
}

#[test]
fn all_ones_read_back_as_size_and_type() {
    let mut bars = card();
    assert_eq!(ask_size(&mut bars, 0x10), 0x0000_000c);
    assert_eq!(ask_size(&mut bars, 0x14), 0xffff_fffc);
    assert_eq!(ask_size(&mut bars, 0x18), 0xffff_f000);
    assert_eq!(ask_size(&mut bars, 0x1c), 0xffff_ffe1);
    assert_eq!(ask_size(&mut bars, 0x20), 0xffff_c00c);
    assert_eq!(ask_size(&mut bars, 0x24), 0xffff_ffff);
    assert_eq!(ask_size(&mut bars, 0x30), 0xffff_0001);
}

#[test]
fn the_low_bits_say_space_width_and_whether_reads_have_side_effects() {
    // PCI 3.0 §6.2.5.1: bit 0 is I/O; bits 2:1 are 10b for 64 bits; bit 3 is prefetchable.
    let wide = |prefetchable| BarKind::Memory64 { prefetchable };
    let narrow = |prefetchable| BarKind::Memory32 { prefetchable };
    for (kind, bits) in [
        (IO, 0b0001),
        (narrow(false), 0b0000),
        (narrow(true), 0b1000),
        (wide(false), 0b0100),
        (wide(true), 0b1100),
    ] {
        let mut bars = Bars::new(&[spec(0, kind, 4096)]).unwrap();
        assert_eq!(dword(&bars, 0x10), bits);
        bars.assign(0, 0xe000_0000);
        bars.reset();
        assert_eq!(dword(&bars, 0x10), bits, "after a reset");
    }
}

#[test]
fn reset_clears_every_address_and_disables_the_rom() {
    let mut bars = card();
    for (index, address) in [
        (0, 16 << 30),
        (2, 0xe000_0000),
        (3, 0xc040),
        (6, 0xe001_0000),
    ] {
        bars.assign(index, address);
    }
    bars.write(0x30, &[1]);
    assert_eq!(bars.decoded(COMMAND_MEMORY | COMMAND_IO).len(), 4);
    bars.reset();
    for index in [0, 2, 3, 4, 6] {
        assert_eq!(bars.address(index), Some(0));
    }
    assert_eq!(dword(&bars, 0x30), 0);
}

#[test]
fn the_registers_are_the_six_and_the_roms_and_no_others() {
    let contained: Vec<_> = (0..0x1000).filter(|&at| Bars::contains(at)).collect();
    let registers: Vec<_> = (0x10..0x28).chain(0x30..0x34).collect();
    assert_eq!(contained, registers);
}

#[test]
fn ports_answer_up_to_the_last_and_not_beyond() {
    let mut bars = Bars::new(&[spec(0, IO, 256)]).unwrap();
    for (address, answers) in [(0xff00, true), (0x1_0000, false), (0xffff_ef00, false)] {
        bars.assign(0, address);
        assert_eq!(
            !bars.decoded(COMMAND_IO).is_empty(),
            answers,
            "{address:#x}"
        );
    }
}

#[test]
fn a_register_without_a_bar_reads_zero() {
    let mut bars = Bars::new(&[spec(1, LOW, 4096)]).unwrap();
    assert_eq!(ask_size(&mut bars, 0x10), 0);
    assert_eq!(ask_size(&mut bars, 0x30), 0);
}

#[test]
fn a_bar_answers_only_where_its_space_is_enabled() {
    let mut bars = card();
    bars.assign(2, 0xe000_0000);
    bars.assign(3, 0xc040);
    let indices = |command| -> Vec<_> {
        let decoded = bars.decoded(command).into_iter();
        decoded.map(|decoded| decoded.index).collect()
    };
    assert!(indices(0).is_empty());
    assert_eq!(indices(COMMAND_IO), [3]);
    assert_eq!(indices(COMMAND_MEMORY), [2]);
    assert_eq!(indices(COMMAND_MEMORY | COMMAND_IO), [2, 3]);
}

#[test]
fn what_sizing_leaves_behind_answers_nowhere() {
    let mut bars = card();
    for offset in (0x10..0x28).step_by(4).chain([0x30]) {
        bars.write(offset, &[0xff; 4]);
        // Halfway through a 64-bit pair, too.
        assert_eq!(bars.decoded(COMMAND_MEMORY | COMMAND_IO), []);
    }
    bars.reset();
    assert_eq!(bars.decoded(COMMAND_MEMORY | COMMAND_IO), []);
}

#[test]
fn sizing_a_wide_bar_that_has_an_address_does_not_move_it_on_the_way() {
    let mut bars = card();
    bars.assign(4, 0x12_8000_4000);
    let place = |bars: &Bars| bars.decoded(COMMAND_MEMORY).first().map(|d| d.address);
    let low = dword(&bars, 0x20);
    bars.write(0x20, &[0xff; 4]);
    assert_eq!(
        (place(&bars), bars.address(4)),
        (None, Some(0x12_ffff_c000))
    );
    bars.write(0x20, &low.to_le_bytes());
    assert_eq!(place(&bars), Some(0x12_8000_4000));
    // The same address, meant as one.
    bars.write(0x20, &0xffff_c00c_u32.to_le_bytes());
    assert_eq!(place(&bars), Some(0x12_ffff_c000));
    // Of 16 GiB, the lower half holds no part of the address.
    bars.assign(0, 0x4_0000_0000);
    bars.write(0x10, &[0xff; 4]);
    assert_eq!(place(&bars), Some(0x4_0000_0000));
    // And of the smallest BAR for which that is so.
    let mut bars = Bars::new(&[spec(0, HIGH, 1 << 32)]).unwrap();
    bars.assign(0, 0x4_0000_0000);
    bars.write(0x10, &[0xff; 4]);
    assert_eq!(place(&bars), Some(0x4_0000_0000));
}

#[test]
fn the_rom_answers_once_its_own_enable_bit_is_set() {
    let mut bars = card();
    bars.assign(ROM_INDEX, 0xe001_0000);
    assert_eq!(bars.decoded(COMMAND_MEMORY), []);
    bars.write(0x30, &[1]);
    let decoded = bars.decoded(COMMAND_MEMORY);
    assert_eq!(decoded[0].address, 0xe001_0000);
    bars.assign(ROM_INDEX, 0xe002_0000);
    assert_eq!(dword(&bars, 0x30), 0xe002_0001);
}

#[test]
fn both_halves_make_the_address() {
    let mut bars = card();
    bars.write(0x20, &0x8000_4000_u32.to_le_bytes());
    bars.write(0x24, &0x0000_0012_u32.to_le_bytes());
    assert_eq!(bars.address(4), Some(0x12_8000_4000));
    assert_eq!(bars.decoded(COMMAND_MEMORY)[0].address, 0x12_8000_4000);
    assert_eq!(bars.address(5), None);
}

#[test]
fn bars_that_no_register_can_express_are_refused() {
    let refused = |specs: &[BarSpec]| Bars::new(specs).unwrap_err();
    assert_eq!(refused(&[spec(5, HIGH, 4096)]), BarError::NoSuchRegister(5));
    assert_eq!(refused(&[spec(7, LOW, 4096)]), BarError::NoSuchRegister(7));
    assert_eq!(
        refused(&[spec(ROM_INDEX, IO, 4096)]),
        BarError::NoSuchRegister(6)
    );
    let two = [spec(0, HIGH, 4096), spec(1, LOW, 4096)];
    assert_eq!(refused(&two), BarError::Taken(1));
    for (index, kind, size) in [
        (0, LOW, 0),
        (0, LOW, 12288),
        (0, LOW, 1 << 32),
        (0, LOW, 8),
        (0, IO, 2),
        (ROM_INDEX, LOW, 1024),
    ] {
        assert_eq!(
            refused(&[spec(index, kind, size)]),
            BarError::Size { index, size }
        );
    }
}

#[test]
fn byte_word_and_dword_accesses_agree() {
    let read = |bars: &Bars, at: u64, data: &mut [u8]| bars.read(at.try_into().unwrap(), data);
    let write = |bars: &mut Bars, at: u64, data: &[u8]| bars.write(at.try_into().unwrap(), data);
    widths_agree(card, (0x10..0x34, 4), read, write, 200_000);
}

// The naive model: one number per BAR, its mask applied on every write.
#[test]
fn any_sequence_of_writes_leaves_the_addresses_a_number_would() {
    let mut random = Random::new(1);
    let mut bars = card();
    let mut naive = [0_u64; 5];
    let mut seen = [0; 5];
    for _ in 0..100_000 {
        let (bar, offset, half, mask) = [
            (0, 0x10, 0, !((16_u64 << 30) - 1)),
            (0, 0x14, 32, !((16_u64 << 30) - 1)),
            (2, 0x18, 0, 0xffff_f000),
            (3, 0x1c, 0, 0xffff_ffe0),
            (4, 0x20, 0, !0x3fff),
            (4, 0x24, 32, !0x3fff),
        ][usize::try_from(random.within(0..6)).unwrap()];
        let value = random.value() & 0xffff_ffff;
        bars.write(offset, &value.to_le_bytes()[..4]);
        naive[bar] = (naive[bar] & !(0xffff_ffff << half) | value << half) & mask;
        assert_eq!(bars.address(bar), Some(naive[bar]));
        for decoded in bars.decoded(COMMAND_MEMORY | COMMAND_IO) {
            assert_eq!(decoded.address, naive[decoded.index]);
            assert!(decoded.address != 0);
            seen[decoded.index] += 1;
        }
    }
    assert!([0, 2, 4].iter().all(|&bar| seen[bar] > 1000), "{seen:?}");
}
