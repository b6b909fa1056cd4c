//! Each card alone in a guest with two processors, and given back afterwards.

use std::time::Duration;

use super::table::{CARDS, EDU, SERIAL, VGA, XHCI, machine};
use super::{Scenario, echo_serial, expect, expect_works, expect_written};
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::host::Host;

/// Where the card is in the guest.
const SLOT: usize = 8;
/// Uses the card, then does what is typed.
pub(super) const OBEY: &str = "echo == used; while read -r order; do eval \"$order\"; done";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario::<0>(),
        scenario::<1>(),
        scenario::<2>(),
        scenario::<3>(),
        scenario::<4>(),
        scenario::<5>(),
        scenario::<6>(),
        scenario::<7>(),
        scenario::<8>(),
        scenario::<9>(),
        scenario::<10>(),
        scenario::<11>(),
    ]
}

fn scenario<const CARD: usize>() -> Scenario {
    Scenario {
        name: CARDS[CARD].works_alone,
        machine,
        limit: Duration::from_secs(150),
        run: works_alone::<CARD>,
    }
}

fn works_alone<const CARD: usize>(l1: &Host) -> Result<()> {
    let card = &CARDS[CARD];
    let before = l1.driver(card.at)?;
    if CARD == SERIAL {
        echo_serial(l1)?;
    }
    // By force: the host has a default route through the igb, for it hears the router's advertisements.
    let mut guest = l1
        .viaduct(&format!(
            "run --force --cpus 2 --memory 256M --vfio {},addr=08",
            card.at
        ))
        .script(&format!("lab-card {} 8; {OBEY}", card.used_as))
        .start()?;
    let said = guest.wait_for("== used")?;
    let used = expect_works(l1, &said, card, SLOT)?;
    match CARD {
        EDU => expect_exact(&used.facts)?,
        VGA => expect_picture(l1, &mut guest)?,
        XHCI => expect_input(l1, &mut guest)?,
        _ => {}
    }
    guest.type_in("exit\n")?;
    guest.succeeds()?;
    expect_written(l1, card, &used)?;
    expect(
        l1.driver(card.at)? == before,
        &format!("{} is given back", card.at),
    )
}

fn expect_exact(facts: &str) -> Result<()> {
    for fact in [
        "factorials of 0 to 12;",
        "100 interrupts on line",
        "40 messages to 2 processors;",
        "6 copies there and back,",
    ] {
        expect(facts.contains(fact), &format!("{fact} is in {facts}"))?;
    }
    Ok(())
}

/// The guest draws, and what is on the screen is seen from outside L1.
fn expect_picture(l1: &Host, guest: &mut Guest<'_>) -> Result<()> {
    // The console's cursor blinks.
    guest.type_in("echo 0 > /sys/class/vtconsole/vtcon1/bind; lab-guest picture fb0\n")?;
    guest.wait_for("picture fb0 ok: ")?;
    let size = guest.wait_for("\n")?;
    // The driver copies its framebuffer to the card when it next gets to it, and says so to nobody.
    let mut wrong = String::new();
    for _ in 0..30 {
        let picture = l1.screendump("screen")?;
        let shown = format!("{}x{}", picture.width(), picture.height());
        let places = (0..picture.height())
            .flat_map(|row| (0..picture.width()).map(move |column| (column, row)));
        let first = places
            .into_iter()
            .find(|&(column, row)| picture.pixel(column, row) != Some(drawn(column, row)));
        wrong = match first {
            None if shown == size.trim() => return Ok(()),
            None => format!("the screen is {shown}, the framebuffer {size}"),
            Some((column, row)) => {
                format!("the pixel in column {column}, row {row} is not as drawn")
            }
        };
        l1.sh("sleep 0.2")?;
    }
    Err(Error::Unexpected(wrong))
}

/// What `lab-guest picture` draws: red, green and blue.
fn drawn(column: usize, row: usize) -> [u8; 3] {
    let byte = |value: usize| value.to_le_bytes()[0];
    [byte(column), byte(row), byte(column ^ row)]
}

/// What is typed and moved outside L1 arrives in the guest.
fn expect_input(l1: &Host, guest: &mut Guest<'_>) -> Result<()> {
    guest.type_in("lab-card keyboard 8\n")?;
    guest.wait_for("card keyboard 08.0 waits for")?;
    l1.press(&["a"])?;
    guest.wait_for("card keyboard 08.0 ok")?;
    let key = guest.wait_for("\n")?;
    expect(key.trim().ends_with(" 1 30 1 0"), "KEY_A goes down")?;
    guest.type_in("lab-card mouse 8\n")?;
    guest.wait_for("card mouse 08.0 waits for")?;
    l1.move_mouse(7, 0)?;
    guest.wait_for("card mouse 08.0 ok")?;
    let moved = guest.wait_for("\n")?;
    expect(moved.trim().ends_with(" 2 0 7 0"), "REL_X is 7")
}
