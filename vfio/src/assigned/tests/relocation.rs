//! The MSI-X table beside other registers, and on pages of its own.

use super::*;
use crate::{assigned::MsixTable, kernel::RegionIndex};

const BAR5: u64 = 0x8003_0000;

fn guest_with_relocated_table(mut host: FakeHost) -> Guest {
    for (region, _) in &mut host.regions {
        region.msix_mappable = region.index == RegionIndex(3);
    }
    let options = Options {
        msix: MsixTable::Relocated,
        ..Options::default()
    };
    let guest = Guest::with(host, &options, None).unwrap();
    guest.function.assign_bar(5, BAR5);
    guest
}

#[test]
fn registers_beside_the_table_are_counted_apart() {
    let guest = guest();
    guest.write(COMMAND, &[2, 0]);
    let touch = |offset| assert!(guest.memory.read(BAR3 + offset, &mut [0; 4]));
    // Entries of the table, two registers, the pending bits, a register on their page.
    for offset in [0x00, 0x10, 0x30, 0xffc, 0x2000, 0x2008] {
        touch(offset);
    }
    let stats = guest.function.stats();
    assert_eq!(
        (stats.accesses_beside_msix, stats.trapped_accesses[3]),
        (3, 6)
    );
}

#[test]
fn a_bar_that_is_trapped_whole_has_no_registers_that_the_table_slows_down() {
    let options = Options {
        mmap: false,
        ..Options::default()
    };
    let guest = Guest::with(card(), &options, None).unwrap();
    assert!(
        !guest
            .write(COMMAND, &[2, 0])
            .iter()
            .any(|call| call.starts_with("map"))
    );
    guest.memory.read(BAR3 + 0x30, &mut [0; 4]);
    guest.memory.read(BAR0, &mut [0; 4]);
    let stats = guest.function.stats();
    assert_eq!(stats.accesses_beside_msix, 0);
    assert_eq!(stats.trapped_accesses, [1, 0, 0, 1, 0, 0]);
}

#[test]
fn a_relocated_table_leaves_its_bar_to_the_guest_and_works_where_it_went() {
    let guest = guest_with_relocated_table(card());
    let calls = guest.write(COMMAND, &[2, 0]);
    assert!(
        calls.contains(&"map 0x80010000 0x4000".to_owned()),
        "{calls:?}"
    );
    assert!(!calls.iter().any(|call| call.contains("map 0x80030000")));
    // BAR 5 at 0, and one page further on.
    assert_eq!(guest.read(MSIX + 4), [5, 0, 0, 0, 5, 0x10, 0, 0]);
    guest.write(MSIX + 2, &[0, 0x80]);
    let _ = guest.memory.write(BAR5, &0xfee0_0000u32.to_le_bytes());
    let _ = guest.memory.write(BAR5 + 12, &[0; 4]);
    assert_eq!(guest.source.take_routes().len(), 1);
    guest.source.latch(1);
    let mut pending = [0xff; 8];
    guest.memory.read(BAR5 + 0x1000, &mut pending);
    assert_eq!(pending, [2, 0, 0, 0, 0, 0, 0, 0]);
    // Beside them there is nothing.
    guest.host.take_calls();
    let _ = guest.memory.write(BAR5 + 0x30, &[1, 2]);
    assert_eq!(guest.host.take_calls(), [""; 0]);
    assert_eq!(guest.host.bytes(3)[..0x30], [0; 0x30]);
}

#[test]
fn a_bar_that_grew_for_the_table_is_the_devices_up_to_its_own_end() {
    let mut config = config();
    config[0x24] = 0;
    let host = FakeHost::default()
        .with_region(3, vec![0x77; 0x4000], true)
        .with_region(5, vec![0; 0x1000], true)
        .with_region(CONFIG, config, false);
    let guest = guest_with_relocated_table(host);
    let size = guest
        .function
        .bars()
        .iter()
        .find(|bar| bar.index == 3)
        .map(|bar| bar.size);
    assert_eq!(size, Some(0x8000));
    let calls = guest.write(COMMAND, &[2, 0]);
    assert!(
        calls.contains(&"map 0x80010000 0x4000".to_owned()),
        "{calls:?}"
    );
    let read = |offset| {
        let mut data = [0; 4];
        guest.memory.read(BAR3 + offset, &mut data);
        data
    };
    assert_eq!(read(0x3ffc), [0x77; 4]);
    assert_eq!(read(0x400c), [1, 0, 0, 0]);
    assert_eq!(read(0x5000), [0; 4]);
    assert_eq!(read(0x6000), [0xff; 4]);
}

#[test]
fn a_table_that_cannot_go_stays_and_works() {
    let options = Options {
        msix: MsixTable::Relocated,
        ..Options::default()
    };
    // The kernel does not say that the table's page may be mapped.
    let guest = Guest::with(card(), &options, None).unwrap();
    assert_eq!(guest.read(MSIX + 4), [3, 0, 0, 0, 3, 0x20, 0, 0]);
    guest.write(COMMAND, &[2, 0]);
    guest.write(MSIX + 2, &[0, 0x80]);
    let _ = guest.memory.write(BAR3 + 12, &[0; 4]);
    assert_eq!(guest.source.take_routes().len(), 1);
}
