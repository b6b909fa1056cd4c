//! `cargo lab bench cards`: for each card of the scenarios, whether it works, how it interrupts, and what one operation costs in
//! exits to the VMM's process; and how much longer a guest takes to start for each card it has.

use super::{ratio, start};
use crate::error::Result;
use crate::guest::Plan;
use crate::host::Host;
use crate::progress::step;
use crate::scenarios::cards::{CARDS, Card, Interrupts, Use, echo_serial};

/// Interleaved starts of each kind.
const RUNS: usize = 5;
/// The cards that a guest starts with: those that the reference can drive, in the order of the table.
const STARTED: std::ops::Range<usize> = 1..9;
/// Where the first card is: as the one says, and as the other chooses.
const OUR_SLOT: usize = 8;
const THEIR_SLOT: usize = 1;

/// Runs it in this L1 and prints the tables.
pub(crate) fn run(host: &Host) -> Result<i32> {
    echo_serial(host)?;
    for card in &CARDS {
        // Beforehand and for both: QEMU does not take devices from their drivers.
        host.sh(&format!("viaduct bind --force {}", card.at))?;
    }
    println!("\n{:16}{:>26}{:>26}", "", "viaduct", "microvm");
    for card in &CARDS {
        let ours = host.viaduct(&format!(
            "run --cpus 2 --memory 256M --vfio {},addr=08",
            card.at
        ));
        let theirs = host.reference(2, "256M", &[card.at]);
        let ours = step(&format!("{}: viaduct", card.name), || {
            cost(host, card, ours, OUR_SLOT)
        })?;
        let theirs = step(&format!("{}: QEMU", card.name), || {
            cost(host, card, theirs, THEIR_SLOT)
        })?;
        println!("{:16}{ours:>26}{theirs:>26}", card.name);
    }
    println!("(works, with interrupts of this kind, and exits by I/O and MMIO for each operation)");
    added_start_time(host)
}

/// What a person would use the card for, how often, so that what the guest's console costs does not show.
fn operations(card: &Card) -> u32 {
    match card.used_as {
        "nic" | "disk" => 200,
        "edu" => 50,
        "serial" => 20,
        _ => 2,
    }
}

/// One field of the table.
fn cost(host: &Host, card: &Card, plan: Plan<'_>, slot: usize) -> Result<String> {
    let times = operations(card);
    let script = format!("lab-card {} {slot:x} work {times}", card.used_as);
    let mut guest = plan.script(&script).deadline_s(90).start()?;
    let Ok(said) = guest.wait_for("== ready") else {
        return Ok("does not work".into());
    };
    let used = Use::said(&said, card.used_as, slot)?;
    let mut counts = vec![exits(host)?];
    for end in ["== ready", "== done"] {
        guest.type_in("\n")?;
        if guest.wait_for(end).is_err() {
            return Ok("breaks at work".into());
        }
        counts.push(exits(host)?);
    }
    guest.type_in("\n")?;
    guest.succeeds()?;
    let [before, idle, busy] = counts[..] else {
        return Ok("not counted".into());
    };
    // What it costs to type a line and say one is in both.
    let more = busy
        .saturating_sub(idle)
        .saturating_sub(idle.saturating_sub(before));
    let kind = match card.interrupts {
        Interrupts::None if used.count == 0 => "no interrupts".into(),
        _ => used.interrupts.to_uppercase(),
    };
    Ok(format!("{kind}, {:.1}", ratio(more, u64::from(times))))
}

/// As KVM has counted them for the one guest there is.
fn exits(host: &Host) -> Result<u64> {
    let debugfs = "mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug";
    let counters = "/sys/kernel/debug/kvm/*-*/io_exits /sys/kernel/debug/kvm/*-*/mmio_exits";
    let said = host.sh(&format!("{debugfs}; cat {counters}"))?;
    let counts = said.split_whitespace();
    Ok(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
}

/// Starts of Viaduct and of QEMU, each without cards and with eight.
type Starts = [[Vec<start::Start>; 2]; 2];

fn starts(host: &Host, cards: &[&str]) -> Result<Starts> {
    let mut starts = Starts::default();
    for number in 1..=RUNS {
        for (with, cards) in [&[][..], cards].into_iter().enumerate() {
            let assigned: String = cards.iter().map(|card| format!(" --vfio {card}")).collect();
            let ours = host.viaduct(&format!("run --cpus 2 --memory 256M{assigned}"));
            let theirs = host.reference(2, "256M", cards);
            for (vmm, plan) in [ours, theirs].into_iter().enumerate() {
                let name = ["viaduct", "QEMU"][vmm];
                let what = format!("Start {number} of {RUNS}: {name}, {} cards", cards.len());
                starts[vmm][with].push(step(&what, || start::once(host, plan))?);
            }
        }
    }
    Ok(starts)
}

/// Milliseconds from exec to the guest's init, and how many more there are for each card.
fn added_start_time(host: &Host) -> Result<i32> {
    let cards: Vec<&str> = CARDS[STARTED].iter().map(|card| card.at).collect();
    let starts = starts(host, &cards)?;
    let [ours, theirs] =
        starts.map(|starts| starts.map(|starts| start::median(&starts, |start| start.ms)));
    let added = |[without, with]: [u64; 2]| with.saturating_sub(without) / cards.len() as u64;
    let title = "exec to the guest's init, ms";
    println!(
        "\n{title:38}{:>10}{:>10}{:>8}",
        "viaduct", "microvm", "ratio"
    );
    for (name, ours, theirs) in [
        ("without a card", ours[0], theirs[0]),
        ("with eight", ours[1], theirs[1]),
        ("added by each card", added(ours), added(theirs)),
    ] {
        println!(
            "{name:38}{ours:>10}{theirs:>10}{:>8.2}",
            ratio(ours, theirs)
        );
    }
    Ok(0)
}
