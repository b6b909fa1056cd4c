//! A guest on the display that its host booted on (`vga=on`): legacy addresses, ROM, and what firmware left on the screen.

use std::time::Duration;

use super::reading::{Statistics, md5};
use super::refusals::refused;
use super::vf::STATS;
use super::{Scenario, expect};
use crate::cards::{Cards, Machine};
use crate::error::Result;
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "a guest's console is on the text screen of the display that its host booted on",
            // The host's driver would leave the text mode.
            machine: || display().kernel_words("nomodeset"),
            limit: Duration::from_secs(120),
            run: text_screen,
        },
        Scenario {
            name: "a guest draws on the frame buffer that firmware set up on its display",
            // 1024 by 768, 32 bits a pixel, by the number that the card's BIOS has for it.
            machine: || display().kernel_words("nomodeset vga=0x344"),
            limit: Duration::from_secs(120),
            run: frame_buffer,
        },
    ]
}

/// The VGA card is 00:06.0; 00:07.0 is a display without legacy addresses.
fn display() -> Machine {
    Machine::with_cards(
        Cards::none().with("-device VGA,id=screen,addr=06.0 -device secondary-vga,addr=07.0"),
    )
}

const WRITE: &str = "cat /proc/fb; grep -c 'vga+' /proc/ioports; \
    cd /sys/bus/pci/devices/0000:00:06.0; echo boot_vga $(cat boot_vga); \
    echo 1 > rom; echo rom $(md5sum < rom); \
    printf '\\033[2J\\033[H%s' 'drawn by the guest' > /dev/tty0";

/// What is in the display's text memory, of characters without their colours.
const SCREEN: &str = "dd if=/dev/mem bs=4096 skip=184 count=1 status=none | tr -cd '[:print:]'";

fn text_screen(l1: &Host) -> Result<()> {
    let run = "viaduct run --kernel /lab/l2/vmlinuz";
    let twice = "--dry-run --vfio 00:06.0,vga=on --vfio 00:07.0,vga=on";
    let both = "vga=on for both 0000:00:06.0 and 0000:00:07.0";
    refused(l1, &format!("{run} {twice}"), 1, &[both])?;
    let without = "0000:00:07.0: vga=on, but VFIO has no VGA addresses of it";
    refused(l1, &format!("{run} --vfio 00:07.0,vga=on"), 1, &[without])?;
    let rom = l1.sh("cd /sys/bus/pci/devices/0000:00:06.0; echo 1 > rom; md5sum < rom")?;
    let console = l1
        .viaduct("run --force --memory 256M --vfio 00:06.0,addr=06,vga=on --stats /run/stats.json")
        .kernel_words("console=tty0 console=ttyS0 nomodeset")
        .script(WRITE)
        .start()?
        .succeeds()?;
    expect(console.contains("boot_vga 1"), "the guest booted on it")?;
    let sum = md5(&rom)?;
    expect(
        console.contains(&format!("rom {sum}")),
        "its ROM is where the guest's kernel looks",
    )?;
    let screen = l1.sh(SCREEN)?;
    // A character and its colours are two bytes, and 7, grey on black, is none that prints.
    expect(
        screen.contains("drawn by the guest"),
        "the guest's text is on the screen",
    )?;
    let statistics = Statistics::read(l1, STATS)?.device("0000:00:06.0")?;
    let accesses = statistics.number("/vga_accesses")?;
    expect(accesses > 0, "the accesses to it are counted")
}

/// All of the screen in green, through Linux's vesafb.
const DRAW: &str = "cat /proc/fb; cd /sys/class/graphics/fb0; echo size $(cat virtual_size) $(cat bits_per_pixel); \
    printf '\\x00\\xff\\x00\\x00%.0s' {1..1024} > /run/row; \
    for i in {1..768}; do cat /run/row; done > /dev/fb0; sync; echo == drawn; read -r";
const GREEN: [u8; 3] = [0, 255, 0];

fn frame_buffer(l1: &Host) -> Result<()> {
    let mut guest = l1
        .viaduct("run -v --force --memory 256M --vfio 00:06.0,vga=on")
        .kernel_words("nomodeset")
        .script(DRAW)
        .start()?;
    let said = guest.wait_for("== drawn")?;
    expect(
        said.contains("size 1024,768 32"),
        "the guest has the frame buffer that firmware set up",
    )?;
    let picture = l1.screendump("screen")?;
    expect(
        (picture.width(), picture.height()) == (1024, 768),
        "the screen has that size",
    )?;
    let corners = [(0, 700), (1023, 700), (500, 767)];
    let drawn = corners
        .iter()
        .all(|&(column, row)| picture.pixel(column, row) == Some(GREEN));
    expect(drawn, "what the guest drew is on the screen")?;
    guest.type_in("\n")?;
    guest.succeeds().map(drop)
}
