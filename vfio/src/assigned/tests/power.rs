//! Power states: D3hot and back.

use super::*;

#[test]
fn a_function_that_sleeps_is_off_the_bus() {
    let guest = guest();
    guest.write(COMMAND, &[2, 0]);
    let calls = guest.write(POWER, &[3, 0]);
    assert_eq!(
        calls,
        [
            "unmap 0x80000000",
            "unmap 0x80013000",
            "unmap 0x80011000",
            "write 7 0x44 [3, 0]"
        ]
    );
    assert!(!guest.memory.read(BAR0, &mut [0; 4]));
    let calls = guest.write(POWER, &[0, 0]);
    assert_eq!(calls[0], "write 7 0x44 [0, 0]");
    assert!(guest.memory.read(BAR0, &mut [0; 4]));
}

#[test]
fn what_the_guest_wrote_to_a_function_that_slept_is_in_force_when_it_wakes() {
    let guest = guest();
    guest.write(COMMAND, &[6, 0]);
    guest.write(POWER, &[3, 0]);
    guest.write(COMMAND, &[2, 0]);
    // vfio-pci puts back what was there when it fell asleep, in a device that forgets.
    let calls = guest.write(POWER, &[0, 0]);
    assert_eq!(calls[..2], ["write 7 0x44 [0, 0]", "write 7 0x4 [2, 4]"]);
    assert_eq!(calls[2], "map 0x80000000 0x4000");
    assert_eq!(guest.read(COMMAND), [2, 0]);
}

#[test]
fn a_function_that_stays_awake_is_not_bothered() {
    let guest = guest();
    guest.write(COMMAND, &[6, 0]);
    assert_eq!(guest.write(POWER, &[0, 0]), ["write 7 0x44 [0, 0]"]);
}

#[test]
fn a_function_that_sleeps_is_woken_by_a_reset() {
    let guest = guest();
    guest.write(POWER, &[3, 0]);
    guest.host.take_calls();
    guest.function.reset();
    assert_eq!(
        guest.host.take_calls()[..2],
        ["write 7 0x44 [0]", "write 7 0x4 [0, 4]"]
    );
    guest.function.assign_bar(0, BAR0);
    guest.write(COMMAND, &[2, 0]);
    assert!(guest.memory.read(BAR0, &mut [0; 4]));
}
