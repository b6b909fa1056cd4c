//! Cards of every class, driven by a guest's stock drivers: each alone, all together, by every kind of interrupt that a driver can
//! be told to use, through reloads, reboots and abuse.

mod abuse;
mod alone;
mod lines;
mod sleep;
mod table;
mod together;
mod untried;

use super::{Scenario, expect};
use crate::disks::RANDOM_BYTES;
use crate::error::{Error, Result};
use crate::host::Host;
pub(crate) use table::{CARDS, Card, EDU, Interrupts, RTL8139, machine};
pub(super) use together::work_through_reboots;

/// Where `lab-card` writes on a disk, and how much.
const WRITTEN: std::ops::Range<usize> = 8 << 20..9 << 20;

pub(super) fn scenarios() -> Vec<Scenario> {
    [
        alone::scenarios(),
        lines::scenarios(),
        sleep::scenarios(),
        together::scenarios(),
        abuse::scenarios(),
        untried::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

pub(super) fn thorough() -> Vec<Scenario> {
    abuse::thorough()
}

/// What `lab-card` said of a card that works: `card KIND SLOT ok driver=D irq=K:N FACTS`.
#[derive(Debug)]
pub(crate) struct Use {
    pub(crate) driver: String,
    pub(crate) interrupts: String,
    pub(crate) count: u64,
    facts: String,
}

impl Use {
    /// Finds the last such line on a console.
    pub(crate) fn said(console: &str, kind: &str, slot: usize) -> Result<Self> {
        let start = format!("card {kind} {slot:02x}.0 ");
        let mut lines = console.lines().rev();
        let line = lines.find_map(|line| line.strip_prefix(&start));
        line.and_then(Self::parse).ok_or_else(|| {
            let said = line.unwrap_or("nothing");
            Error::Unexpected(format!("{start}says {said}"))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("ok driver=")?;
        let (driver, rest) = rest.split_once(" irq=")?;
        let (interrupts, rest) = rest.split_once(':')?;
        let (count, facts) = rest.split_once(' ')?;
        Some(Self {
            driver: driver.into(),
            interrupts: interrupts.into(),
            count: count.parse().ok()?,
            facts: facts.trim().into(),
        })
    }

    /// The value of `name=`.
    pub(super) fn fact(&self, name: &str) -> &str {
        let mut words = self.facts.split(' ');
        let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default()
    }
}

/// The card in this slot of the guest works: by its driver, with interrupts of its kind, reading from its disk what the lab put
/// there.
pub(super) fn expect_works(l1: &Host, console: &str, card: &Card, slot: usize) -> Result<Use> {
    let used = Use::said(console, card.used_as, slot)?;
    let who = format!("{} in slot {slot:#x}", card.driver);
    expect(
        used.driver == card.driver,
        &format!("{who} is the driver, not {}", used.driver),
    )?;
    expect(
        used.interrupts == card.interrupts.word(),
        &format!(
            "{who} has no {} but {}",
            card.interrupts.word(),
            used.interrupts
        ),
    )?;
    let silent = card.interrupts == Interrupts::None;
    let heard = if silent { "none" } else { "some" };
    expect(
        (used.count == 0) == silent,
        &format!("{who} counts interrupts: {heard}, not {}", used.count),
    )?;
    if let Some(name) = card.disk {
        let known = l1.disk(name).md5(0..RANDOM_BYTES)?;
        let read = used.fact("read");
        expect(read == known, &format!("{who} reads {known}, not {read}"))?;
    }
    Ok(used)
}

/// After the guest has ended: its disk keeps what it wrote.
fn expect_written(l1: &Host, card: &Card, used: &Use) -> Result<()> {
    let Some(name) = card.disk else { return Ok(()) };
    let (kept, wrote) = (l1.disk(name).md5(WRITTEN)?, used.fact("wrote"));
    expect(kept == wrote, &format!("{name} keeps {wrote}, not {kept}"))
}

/// L1 is the serial card's other end, and says back what it hears.
pub(crate) fn echo_serial(l1: &Host) -> Result<()> {
    l1.sh("stty -F /dev/ttyS1 raw -echo 115200; \
           setsid --fork flock -n /run/echo cat < /dev/ttyS1 > /dev/ttyS1 2>/dev/null")
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_card_says_last_is_read() {
        let console = "card disk 08.0 FAILED no\ncard disk 08.0 ok driver=nvme irq=msix:97 nvme0n1 read=ab wrote=cd\n";
        let used = Use::said(console, "disk", 8).unwrap();
        assert_eq!(
            (used.driver.as_str(), used.interrupts.as_str()),
            ("nvme", "msix")
        );
        assert_eq!((used.count, used.fact("wrote")), (97, "cd"));
    }

    #[test]
    fn a_card_that_fails_is_an_error_with_its_words() {
        let console = "card disk 0a.0 FAILED no block (driver= irq=intx:0)\n";
        let error = Use::said(console, "disk", 10).unwrap_err().to_string();
        assert!(error.contains("FAILED no block"), "{error}");
        assert!(Use::said(console, "disk", 8).is_err());
    }
}
