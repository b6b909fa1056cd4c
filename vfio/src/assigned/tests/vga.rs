//! The legacy VGA addresses of the function, and when they are its.

use super::*;

const VGA: u32 = 8;
const TEXT: u64 = 0xb_8000;

fn display() -> FakeHost {
    card().with_region(VGA, vec![0x77; 0xc_0000], false)
}

fn guest_with_vga(host: FakeHost) -> Result<Guest, AssignError> {
    let options = Options {
        vga: true,
        ..Options::default()
    };
    Guest::with(host, &options, None)
}

fn is_there(bus: &Bus, address: u64) -> bool {
    bus.read(address, &mut [0])
}

#[test]
fn vga_addresses_follow_the_command_register() {
    let guest = guest_with_vga(display()).unwrap();
    let there = || {
        let ports = [0x3b4, 0x3bb, 0x3c0, 0x3df].map(|port| is_there(&guest.io, port));
        (is_there(&guest.memory, TEXT), ports)
    };
    assert_eq!(there(), (false, [false; 4]));
    for (command, memory, ports) in [
        (1, false, true),
        (2, true, false),
        (3, true, true),
        (0, false, false),
    ] {
        guest.write(COMMAND, &[command, 0]);
        assert_eq!(there(), (memory, [ports; 4]), "{command}");
    }
    // Between them are others' ports, and a BAR can be nowhere near.
    guest.write(COMMAND, &[3, 0]);
    assert!(!is_there(&guest.io, 0x3bc) && !is_there(&guest.io, 0x3e0));
    guest.write(POWER, &[3, 0]);
    assert_eq!(there(), (false, [false; 4]));
    guest.write(POWER, &[0, 0]);
    assert_eq!(there(), (true, [true; 4]));
    guest.function.reset();
    assert_eq!(there(), (false, [false; 4]));
}

#[test]
fn an_access_reaches_the_device_at_its_legacy_address_and_width() {
    let guest = guest_with_vga(display()).unwrap();
    guest.write(COMMAND, &[3, 0]);
    guest.host.take_calls();
    let _ = guest.memory.write(TEXT, &[0x41, 0x07]);
    let _ = guest.io.write(0x3d4, &[0x0e]);
    assert_eq!(
        guest.host.take_calls(),
        ["write 8 0xb8000 [41, 7]", "write 8 0x3d4 [e]"]
    );
    let mut data = [0; 4];
    guest.memory.read(TEXT, &mut data);
    assert_eq!(data, [0x41, 0x07, 0x77, 0x77]);
    guest.host.is_gone.store(true, Ordering::Relaxed);
    guest.io.read(0x3cc, &mut data[..1]);
    assert_eq!(data[0], 0xff);
    assert_eq!(guest.function.stats().vga_accesses, 4);
}

#[test]
fn what_is_dropped_leaves_its_vga_addresses() {
    let Guest {
        memory,
        io,
        function,
        ..
    } = guest_with_vga(display()).unwrap();
    let _ = function.config_write(COMMAND, &[3, 0]);
    assert!(is_there(&memory, TEXT) && is_there(&io, 0x3c0));
    drop(function);
    assert!(!is_there(&memory, TEXT) && !is_there(&io, 0x3c0));
}

#[test]
fn a_device_that_is_no_vga_is_refused_by_name_and_only_if_it_was_asked_to_be_one() {
    let refused = guest_with_vga(card()).err().unwrap();
    assert!(matches!(refused, AssignError::NotVga(_)));
    assert!(refused.to_string().starts_with("0000:03:10.3: vga=on, but"));
    let guest = Guest::new(display()).unwrap();
    guest.write(COMMAND, &[3, 0]);
    assert!(!is_there(&guest.memory, TEXT));
}

#[test]
fn an_opregion_is_shown_where_its_copy_is_and_nowhere_else() {
    let mut opregion = vec![0; 8 << 10];
    opregion[..16].copy_from_slice(b"IntelGraphicsMem");
    let mut config = config();
    // Where the host has it.
    config[0xfc..0x100].copy_from_slice(&0x7b00_0000u32.to_le_bytes());
    let host = FakeHost::default()
        .with_region(CONFIG, config, false)
        .with_specific_region(11, (0x8000_8086, 1), opregion.clone());
    let guest = Guest::new(host).unwrap();
    assert_eq!(guest.read(0xfc), [0; 4]);
    assert_eq!(guest.function.opregion(0xf_0000..0xf_1000), None);
    assert_eq!(guest.read(0xfc), [0; 4]);
    assert_eq!(guest.function.opregion(0xf_0000..0xf_2000), Some(opregion));
    assert_eq!(guest.read(0xfc), 0xf_0000u32.to_le_bytes());
    guest.write(0xfc, &[0xff; 4]);
    guest.function.reset();
    assert_eq!(guest.read(0xfc), 0xf_0000u32.to_le_bytes());
    assert_eq!(
        guest.function.stats().added_regions,
        ["region 11, the OpRegion of Intel graphics"]
    );
}
