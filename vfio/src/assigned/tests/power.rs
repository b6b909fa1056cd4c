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

/// What is there at the address of BAR 0, as the guest reads it.
fn answers(guest: &Guest) -> bool {
    guest.memory.read(BAR0, &mut [0; 4])
}

#[test]
fn a_device_that_fell_asleep_or_was_pulled_out_behind_our_back_is_withdrawn_until_it_is_enabled_again()
 {
    let asleep = |host: &FakeHost| host.bytes(CONFIG)[usize::from(POWER)] = 3;
    let disabled = |host: &FakeHost| host.bytes(CONFIG)[usize::from(COMMAND)] = 0;
    let ones = |host: &FakeHost| host.bytes(CONFIG)[4..6].fill(0xff);
    let gone = |host: &FakeHost| host.is_gone.store(true, Ordering::Relaxed);
    for silence in [asleep, disabled, ones, gone] {
        let guest = guest();
        guest.write(COMMAND, &[2, 0]);
        assert!(!guest.function.withdraw_if_silent() && answers(&guest));
        silence(&guest.host);
        guest.host.take_calls();
        assert!(guest.function.withdraw_if_silent() && !answers(&guest));
        let calls = guest.host.take_calls();
        assert!(calls.contains(&"unmap 0x80000000".to_owned()));
        assert!(!guest.function.withdraw_if_silent());
        guest.host.is_gone.store(false, Ordering::Relaxed);
        guest.host.bytes(CONFIG)[usize::from(POWER)] = 0;
        guest.write(COMMAND, &[2, 0]);
        assert!(answers(&guest));
    }
}

#[test]
fn a_device_that_is_off_is_not_found_silent() {
    let guest = guest();
    assert!(!guest.function.withdraw_if_silent());
    guest.host.is_gone.store(true, Ordering::Relaxed);
    assert!(!guest.function.withdraw_if_silent());
}
