//! Reset: by the guest, of one function, and by the machine, of all.

use super::*;
use crate::{
    assigned::{ResetStats, reset_devices, reset_opened},
    kernel::Affected,
};

const ONE: &str = "05:01.0";
const OTHER: &str = "05:02.0";

/// A card that is reset alone by `methods`, if by any, on a bus with these functions.
fn resettable(methods: &[&str], bus: &[&str]) -> FakeHost {
    let mut host = card();
    host.cannot_reset = methods.is_empty();
    host.reset_methods = methods.iter().map(|&method| method.to_owned()).collect();
    let affected = |name: &&str| Affected {
        function: name.parse().unwrap(),
        driver: Some("vfio-pci".to_owned()),
        is_bridge: false,
        is_held: true,
    };
    host.scope = bus.iter().map(affected).collect();
    host
}

fn assigned(name: &str, host: FakeHost) -> Guest {
    let guest = Guest::with_function(&Assignable::Function(name.parse().unwrap()), host).unwrap();
    guest.host.take_calls();
    guest
}

fn functions(guests: &[&Guest]) -> Vec<Arc<AssignedFunction>> {
    guests.iter().map(|guest| guest.function.clone()).collect()
}

fn stats(method: &str, done: u64, failed: u64) -> ResetStats {
    let method = method.to_owned();
    ResetStats {
        method,
        done,
        failed,
    }
}

#[test]
fn a_function_level_reset_takes_the_guests_registers_with_it() {
    let guest = guest();
    guest.write(COMMAND, &[6, 0]);
    guest.write(MSIX + 2, &[0, 0x80]);
    let calls = guest.write(EXPRESS + 8, &[0, 0x80]);
    assert!(calls.contains(&"disarm Msix".to_owned()) && calls.contains(&"reset".to_owned()));
    assert!(
        !calls.iter().any(|call| call.starts_with("write 7 0xa")),
        "{calls:?}"
    );
    assert_eq!(guest.read(COMMAND), [0; 2]);
    assert_eq!(guest.read(MSIX + 2), [2, 0]);
    assert_eq!(guest.read(0x10), 0xcu32.to_le_bytes());
    assert!(!guest.memory.read(BAR0, &mut [0; 4]));
}

#[test]
fn the_register_that_starts_a_reset_is_written_without_one_while_the_bit_is_clear() {
    let guest = guest();
    guest.write(COMMAND, &[6, 0]);
    // Device control: everything but Initiate Function Level Reset (PCIe 6.0 §7.5.3.4).
    let calls = guest.write(EXPRESS + 8, &[0xff, 0x7f]);
    assert!(!calls.contains(&"reset".to_owned()), "{calls:?}");
    assert_eq!(guest.read(COMMAND), [6, 0]);
}

#[test]
fn a_device_that_cannot_be_reset_is_assigned_all_the_same() {
    let mut host = card();
    host.cannot_reset = true;
    let log = host.log();
    Guest::new(host).unwrap();
    assert!(!log.lock().unwrap().contains(&"reset".to_owned()));
}

#[test]
fn a_function_level_reset_never_hits_what_else_is_on_the_bus() {
    let guest = assigned(ONE, resettable(&[], &[ONE, OTHER]));
    guest.write(COMMAND, &[6, 0]);
    let calls = guest.write(EXPRESS + 8, &[0, 0x80]);
    assert!(
        !calls.iter().any(|call| call.contains("reset")),
        "{calls:?}"
    );
    // As good as it gets: off the bus.
    assert_eq!(calls.last().unwrap(), "write 7 0x4 [0, 4]");
    assert_eq!(guest.function.stats().reset, stats("none", 0, 1));
}

#[test]
fn a_reboot_resets_each_device_after_it_has_been_stopped() {
    let guest = assigned(ONE, resettable(&["flr", "pm"], &[]));
    guest.write(COMMAND, &[6, 0]);
    guest.host.take_calls();
    guest.function.reset();
    reset_devices(&functions(&[&guest]));
    let calls = guest.host.take_calls();
    assert!(calls[0].starts_with("unmap"), "{calls:?}");
    assert_eq!(
        calls[calls.len() - 3..],
        ["write 7 0x4 [0, 4]", "reset", "write 7 0x4 [0, 4]"]
    );
    assert_eq!(guest.function.stats().reset, stats("flr", 2, 0));
}

#[test]
fn functions_that_cannot_be_reset_alone_are_reset_with_their_bus_once() {
    let one = assigned(ONE, resettable(&[], &[ONE, OTHER]));
    let other = assigned(OTHER, resettable(&[], &[ONE, OTHER]));
    for reset in [reset_opened, reset_devices] {
        reset(&functions(&[&one, &other]));
        let quiet = "write 7 0x4 [0, 4]";
        assert_eq!(one.host.take_calls(), ["hot reset", quiet]);
        assert_eq!(other.host.take_calls(), [quiet]);
    }
    assert_eq!(one.function.stats().reset, stats("hot", 2, 0));
    assert_eq!(other.function.stats().reset, stats("hot", 2, 0));
}

#[test]
fn what_opening_has_reset_is_not_reset_again() {
    let alone = assigned(ONE, resettable(&["flr"], &[ONE]));
    let cycled = assigned("06:00.0", resettable(&["pm", "bus"], &["06:00.0"]));
    reset_opened(&functions(&[&alone, &cycled]));
    assert_eq!(alone.host.take_calls(), [""; 0]);
    assert_eq!(alone.function.stats().reset, stats("flr", 1, 0));
    // But for a power state, which is not to be relied on.
    assert_eq!(cycled.host.take_calls()[0], "hot reset");
    assert_eq!(cycled.function.stats().reset, stats("bus", 2, 0));
}

#[test]
fn where_the_bus_cannot_be_reset_a_function_does_what_it_can_for_itself() {
    let mut host = resettable(&["pm"], &[ONE]);
    host.hot_reset_errno = Some(libc::EINVAL);
    let cycled = assigned(ONE, host);
    reset_devices(&functions(&[&cycled]));
    assert_eq!(cycled.host.take_calls()[..2], ["hot reset", "reset"]);
    assert_eq!(cycled.function.stats().reset, stats("pm", 2, 0));

    let mut host = resettable(&[], &[OTHER]);
    host.hot_reset_errno = Some(libc::EINVAL);
    let stuck = assigned(OTHER, host);
    reset_devices(&functions(&[&stuck]));
    assert_eq!(stuck.function.stats().reset, stats("none", 0, 1));
}

#[test]
fn a_bus_that_somebody_else_is_on_is_not_reset() {
    let mut host = resettable(&[], &[ONE, OTHER]);
    host.scope[1].driver = Some("e1000".to_owned());
    let one = assigned(ONE, host);
    reset_devices(&functions(&[&one]));
    assert_eq!(one.host.take_calls(), [""; 0]);
    assert_eq!(one.function.stats().reset, stats("none", 0, 1));
}
