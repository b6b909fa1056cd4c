//! The lab's hands and eyes: what it does to L1 from outside, and what it sees there. L1's own drivers have the cards here, so
//! that a scenario in which a guest has them fails for the guest's sake.

use std::time::{Duration, Instant};

use super::{Scenario, expect};
use crate::agent::Event;
use crate::cards::{Cards, Machine};
use crate::disks::RANDOM_BYTES;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::monitor::Picture;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "the lab sees what is drawn on a screen",
            machine,
            limit: Duration::from_secs(60),
            run: screen,
        },
        Scenario {
            name: "the lab types on a keyboard and moves a mouse",
            machine,
            limit: Duration::from_secs(60),
            run: keyboard_and_mouse,
        },
        Scenario {
            name: "the lab knows what is on a disk, before and after it was written to",
            machine,
            limit: Duration::from_secs(60),
            run: disk,
        },
    ]
}

/// The last three disks have a write cache, so that L1 sends them flush commands. They are told apart by their serial numbers.
pub(super) fn machine() -> Machine {
    let cards = "-device secondary-vga,id=screen -device qemu-xhci -device usb-kbd -device usb-mouse \
        -device nvme,serial=lab,drive=d0 -device virtio-blk-pci,serial=d1,drive=d1,write-cache=on \
        -device virtio-blk-pci,serial=d2,drive=d2,write-cache=on -device virtio-blk-pci,serial=d3,drive=d3,write-cache=on";
    let disks = ["d0", "d1", "d2", "d3"];
    let cards = disks
        .into_iter()
        .fold(Cards::none(), Cards::with_disk)
        .with(cards);
    Machine::with_cards(cards)
}

/// Two rows of red in the middle of the frame buffer, where no cursor blinks. Two in one write: of exactly one the kernel's
/// emulated frame buffer copies nothing to the screen, for it takes the end of the row for its start.
const DRAW: &str = "cd /sys/class/graphics/fb0; stride=$(cat stride); \
    for ((i = 0; i < stride / 2; i++)); do printf '\\x00\\x00\\xff\\x00'; done | \
    dd of=/dev/fb0 bs=$((stride * 2)) seek=150 iflag=fullblock status=none; echo $((stride / 4))";
const RED: [u8; 3] = [255, 0, 0];

fn screen(l1: &Host) -> Result<()> {
    let drawn = |picture: &Picture| {
        let last = picture.width() - 1;
        [100, last].map(|column| picture.pixel(column, 300)) == [Some(RED); 2]
    };
    let width = l1.sh(DRAW)?;
    let mut picture = l1.screendump("screen")?;
    // The driver copies the frame buffer when it next gets to it.
    for _ in 0..20 {
        if drawn(&picture) {
            break;
        }
        l1.sh("sleep 0.2")?;
        picture = l1.screendump("screen")?;
    }
    expect(drawn(&picture), "the rows are red, to their end")?;
    expect(
        width.trim() == picture.width().to_string(),
        "the picture is as wide as the frame buffer",
    )?;
    let below = picture.pixel(100, picture.height() - 1);
    expect(below.is_some_and(|pixel| pixel != RED), "others are not")
}

/// Does something at the machine and gives the `number`th event that the input device of this name has of it: its type, its
/// code and its value, as in input-event-codes.h.
fn event(l1: &Host, name: &str, number: u32, act: impl FnOnce() -> Result<()>) -> Result<String> {
    let record_bytes = 24;
    let end = number * record_bytes;
    let job = l1.job(
        &format!(
            "cd /sys/class/input; until device=$(grep -l '{name}' event*/device/name); do sleep 0.1; done; \
             exec < /dev/input/${{device%%/*}}; echo ready; head -c {end} | tail -c 8 | od -An -td2"
        ),
        Duration::from_secs(30),
    )?;
    let limit = Instant::now() + Duration::from_secs(30);
    match job.next(limit)? {
        Some(Event::Stdout(said)) if said == b"ready\n" => act()?,
        other => {
            let what = format!("{name} is not there: {other:?}");
            return Err(Error::Unexpected(what));
        }
    }
    let said = job.wait()?.stdout;
    Ok(said.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn keyboard_and_mouse(l1: &Host) -> Result<()> {
    l1.sh("modprobe -a usbhid hid-generic evdev")?;
    let keyboard = "QEMU USB Keyboard";
    // Its scan code comes first.
    let key = event(l1, keyboard, 2, || l1.press(&["a"]))?;
    expect(key == "1 30 1 0", "KEY_A goes down")?;
    let mouse = "QEMU USB Mouse";
    let moved = event(l1, mouse, 1, || l1.move_mouse(7, 0))?;
    expect(moved == "2 0 7 0", "REL_X is 7")?;
    let button = event(l1, mouse, 2, || l1.click("left"))?;
    expect(button == "1 272 1 0", "BTN_LEFT goes down")
}

fn disk(l1: &Host) -> Result<()> {
    let disk = l1.disk("d0");
    let known = disk.md5(0..RANDOM_BYTES)?;
    let seen = l1.sh("head -c 4M /dev/nvme0n1 | md5sum")?;
    expect(seen.starts_with(&known), "L1 reads what the lab wrote")?;
    l1.sh("printf written | dd of=/dev/nvme0n1 bs=1M seek=5 conv=fsync status=none")?;
    let there = 5 << 20;
    expect(
        disk.bytes(there..there + 7)? == b"written",
        "the lab reads what L1 wrote",
    )
}
