//! The INTx pin of the function: when it is listened to, and in which order.

use super::*;
use crate::kernel::IrqIndex;

/// Speaks on its pin, and decodes memory.
const ON: [u8; 2] = [2, 0];
const OFF: [u8; 2] = [0, 0];
/// Interrupt status, then the line and the pin.
const STATUS: u16 = 0x06;
const LINE: u16 = 0x3c;

fn guest_with_pin() -> Guest {
    let mut host = card();
    host.has_pin = true;
    let guest = Guest::new(host).unwrap();
    guest.host.take_calls();
    guest
}

/// What was done to the pin and to messages, and the commands that the device got.
fn of_interrupts(calls: &[String]) -> Vec<&str> {
    let is_of_bars = |call: &str| call.starts_with("map") || call.starts_with("unmap");
    let calls = calls.iter().map(String::as_str);
    calls.filter(|call| !is_of_bars(call)).collect()
}

#[test]
fn the_guest_finds_the_pin_and_its_line_and_finds_them_again_after_a_reset() {
    let guest = guest_with_pin();
    assert_eq!(guest.read(LINE), [11, 1]);
    guest.write(LINE, &[5, 9]);
    assert_eq!(guest.read(LINE), [5, 1]);
    guest.function.reset();
    assert_eq!(guest.read(LINE), [11, 1]);
}

#[test]
fn the_device_speaks_on_its_pin_only_once_somebody_listens() {
    let guest = guest_with_pin();
    let calls = guest.write(COMMAND, &ON);
    assert_eq!(
        of_interrupts(&calls),
        [
            "write 7 0x4 [2, 4]",
            "connect 1",
            "arm Intx 0 [fd]",
            "unmask on fd",
            "write 7 0x4 [2, 0]"
        ]
    );
    // Once.
    assert_eq!(guest.write(COMMAND, &ON), [""; 0]);
}

#[test]
fn a_function_that_is_off_is_not_heard() {
    let guest = guest_with_pin();
    assert!(!guest.host.is_armed(IrqIndex::Intx, 0));
    guest.write(COMMAND, &ON);
    let calls = guest.write(COMMAND, &OFF);
    assert_eq!(
        of_interrupts(&calls),
        [
            "write 7 0x4 [0, 0]",
            "disarm Intx",
            "disconnect",
            "write 7 0x4 [0, 4]"
        ]
    );
}

#[test]
fn the_guests_intx_disable_is_the_devices_and_leaves_the_wire_alone() {
    let guest = guest_with_pin();
    guest.write(COMMAND, &ON);
    assert_eq!(guest.write(COMMAND + 1, &[4]), ["write 7 0x4 [2, 4]"]);
    assert_eq!(guest.read(COMMAND), [2, 4]);
    assert_eq!(guest.write(COMMAND + 1, &[0]), ["write 7 0x4 [2, 0]"]);
    assert!(guest.host.is_armed(IrqIndex::Intx, 0));
}

#[test]
fn the_interrupt_status_is_the_devices() {
    let guest = guest_with_pin();
    assert_eq!(guest.read(STATUS), [0x10, 0]);
    guest.host.bytes(CONFIG)[usize::from(STATUS)] |= 8;
    assert_eq!(guest.read(STATUS), [0x18, 0]);
}

#[test]
fn messages_take_over_from_the_pin_and_give_back_to_it() {
    for (at, enable, index) in [(MSIX, 0x8000_u16, "Msix"), (0x50, 1, "Msi")] {
        let guest = guest_with_pin();
        guest.write(COMMAND, &ON);
        let calls = guest.write(at + 2, &enable.to_le_bytes());
        assert_eq!(calls[..2], ["disarm Intx", "disconnect"], "{index}");
        assert!(calls[2].starts_with(&format!("arm {index} ")), "{calls:?}");
        assert_eq!(calls[3..], ["write 7 0x4 [2, 4]"], "{index}");
        assert_eq!(guest.read(COMMAND), ON);
        assert_eq!(
            guest.write(at + 2, &[0, 0]),
            [
                &format!("disarm {index}"),
                // Quiet again on the pin that the kernel has just let speak, then heard.
                "arm Intx 0 [-]",
                "disarm Intx",
                "connect 1",
                "arm Intx 0 [fd]",
                "unmask on fd",
                "write 7 0x4 [2, 0]"
            ]
        );
    }
}

#[test]
fn a_reset_disconnects_the_pin_until_the_function_is_on_again() {
    let guest = guest_with_pin();
    guest.write(COMMAND, &ON);
    let calls = guest.write(EXPRESS + 8, &[0, 0x80]);
    let at = |call: &str| calls.iter().position(|is| is == call).unwrap();
    assert!(at("disarm Intx") < at("disconnect") && at("disconnect") < at("reset"));
    assert!(!guest.host.is_armed(IrqIndex::Intx, 0));
    guest.write(COMMAND, &ON);
    assert!(guest.host.is_armed(IrqIndex::Intx, 0));
    guest.host.take_calls();
    guest.function.reset();
    assert!(guest.host.take_calls().contains(&"disconnect".to_owned()));
    guest.write(COMMAND, &ON);
    assert!(guest.host.is_armed(IrqIndex::Intx, 0));
}

fn card_whose_pin_is_taken() -> FakeHost {
    let mut host = card();
    host.has_pin = true;
    host.pin_is_taken.store(true, Ordering::Relaxed);
    host
}

#[test]
fn a_function_with_messages_does_without_a_pin_whose_line_is_taken() {
    let guest = Guest::new(card_whose_pin_is_taken()).unwrap();
    assert_eq!(guest.read(LINE), [0, 0]);
    assert_eq!(guest.write(COMMAND, &ON)[0], "write 7 0x4 [2, 4]");
    assert!(!guest.host.is_armed(IrqIndex::Intx, 0));
    guest.function.reset();
    assert_eq!(guest.read(LINE), [0, 0]);
}

#[test]
fn a_function_with_nothing_but_its_pin_is_refused_when_its_line_is_taken() {
    let host = card_whose_pin_is_taken();
    host.bytes(CONFIG)[0x34] = 0;
    let refused = Guest::new(host).err().unwrap();
    let text = refused.to_string();
    assert!(matches!(refused, AssignError::Pin { .. }), "{text}");
    assert!(text.starts_with(
        "0000:03:10.3: its INTx pin cannot share its interrupt line, which is in use\n"
    ));
}

#[test]
fn who_has_the_line_is_named_with_what_takes_it_away() {
    let line = crate::host::InterruptLine {
        number: 22,
        users: vec!["ahci[0000:00:1f.2]".to_owned(), "eth0".to_owned()],
    };
    let error = AssignError::Pin {
        function: name(),
        line: Some(line),
        source: io::Error::from_raw_os_error(libc::EBUSY),
    };
    assert_eq!(
        error.to_string(),
        "0000:03:10.3: its INTx pin cannot share IRQ 22 with ahci[0000:00:1f.2] and eth0\n  \
         take it from the other driver:  viaduct bind 0000:00:1f.2"
    );
}

#[test]
fn a_pin_that_is_lost_is_tried_again_when_the_function_is_switched_on_again() {
    let guest = guest_with_pin();
    guest.host.pin_is_taken.store(true, Ordering::Relaxed);
    let calls = guest.write(COMMAND, &ON);
    assert_eq!(
        of_interrupts(&calls),
        [
            "write 7 0x4 [2, 4]",
            "connect 1",
            "arm Intx 0 [fd]",
            "disconnect"
        ]
    );
    assert_eq!(guest.write(COMMAND, &[6, 0]), ["write 7 0x4 [6, 4]"]);
    guest.host.pin_is_taken.store(false, Ordering::Relaxed);
    guest.write(COMMAND, &OFF);
    guest.write(COMMAND, &ON);
    assert!(guest.host.is_armed(IrqIndex::Intx, 0));
}

#[test]
fn whatever_the_guest_writes_the_pin_is_heard_exactly_while_it_is_on_and_sends_no_messages() {
    let guest = guest_with_pin();
    let mut random = Random::new(0x1117);
    for step in 0..20_000 {
        let value = random.next().to_le_bytes();
        match random.below(5) {
            0 | 1 => guest.write(COMMAND, &value[..2]),
            2 => guest.write(MSIX + 2, &value[..2]),
            3 => guest.write(0x52, &value[..2]),
            _ if random.once_in(50) => guest.write(EXPRESS + 8, &[0, 0x80]),
            _ => guest.write(POWER, &value[..1]),
        };
        let [command, _] = guest.read(COMMAND);
        let messages =
            guest.read::<2>(MSIX + 2)[1] & 0x80 != 0 || guest.read::<1>(0x52)[0] & 1 != 0;
        assert_eq!(
            guest.host.is_armed(IrqIndex::Intx, 0),
            command & 7 != 0 && !messages,
            "step {step}"
        );
        let quiet = guest.host.bytes(CONFIG)[usize::from(COMMAND) + 1] & 4 != 0;
        assert!(
            quiet || guest.host.is_armed(IrqIndex::Intx, 0),
            "step {step}"
        );
    }
}
