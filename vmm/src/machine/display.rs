//! The display that the guest boots on: the assigned device that has `vga=on`.
//!
//! What firmware does for one, as far as that goes without running its ROM: the device decodes from the start, its ROM is where Linux
//! looks for the boot display's, and the kernel is told what the screen shows. That is what the host's own firmware left there, a
//! text or a frame buffer, and it is still there only if nothing has reset the device since.

use std::sync::Arc;

use arch::{
    boot::linux::Screen,
    layout::{self, VGA_ROM},
};
use devices::pci::{
    Function,
    registers::{COMMAND, COMMAND_IO, COMMAND_MEMORY},
};
use vfio::{
    assigned::AssignedFunction,
    host::{Host, HostDisplay},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// The display that the guest boots on.
pub(super) struct Display {
    function: Arc<AssignedFunction>,
    picture: Option<Picture>,
}

/// What the screen shows.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Picture {
    Text(Screen),
    /// What is in memory of the card, `offset` bytes into a BAR.
    FrameBuffer {
        screen: Screen,
        bar: usize,
        offset: u64,
    },
}

impl Display {
    /// The display that `function` is.
    pub(super) fn new(function: Arc<AssignedFunction>) -> Self {
        let address = function.name().function();
        let picture = address.and_then(|address| Picture::find(&Host::new().display(address)));
        Self { function, picture }
    }

    /// Switches it on, with its BARs assigned and the vCPUs stopped. What the kernel is told of it.
    pub(super) fn light(
        &self,
        memory: &GuestMemoryMmap,
    ) -> Result<Option<Screen>, GuestMemoryError> {
        let command = COMMAND_IO | COMMAND_MEMORY;
        // It neither masters the bus nor interrupts: what decodes does no harm.
        let _ = self
            .function
            .config_write(COMMAND_OFFSET, &command.to_le_bytes());
        if let Some(mut rom) = self.function.rom() {
            rom.truncate(usize::try_from(VGA_ROM.end - VGA_ROM.start).unwrap_or(0));
            memory.write_slice(&rom, GuestAddress(VGA_ROM.start))?;
        }
        let address = |bar| self.function.bar_address(bar);
        let picture = self.picture.as_ref();
        let screen = picture
            .filter(|_| !self.function.was_reset())
            .and_then(|picture| picture.screen(address));
        log::info!("{}: {}", self.function.name(), told(screen.as_ref()));
        Ok(screen)
    }
}

fn told(screen: Option<&Screen>) -> &'static str {
    match screen {
        Some(screen) if screen.is_text() => "the guest boots on its text screen",
        Some(_) => "the guest boots on its frame buffer",
        None => "its screen shows nothing until the guest has loaded a driver",
    }
}

/// Copies the OpRegion of Intel's graphics, if one of `functions` has one, to where its register says: what firmware tells the
/// driver of the board's outputs. There is one such device in a machine.
pub(super) fn describe_outputs<'a>(
    mut functions: impl Iterator<Item = &'a AssignedFunction>,
    memory: &GuestMemoryMmap,
) -> Result<(), GuestMemoryError> {
    let place = layout::IGD_OPREGION;
    match functions.find_map(|function| function.opregion(place.clone())) {
        Some(opregion) => memory.write_slice(&opregion, GuestAddress(place.start.into())),
        None => Ok(()),
    }
}

/// `COMMAND` as configuration accesses count.
const COMMAND_OFFSET: u16 = 4;
const _: () = assert!(COMMAND_OFFSET as usize == COMMAND);

impl Picture {
    /// What the host's firmware left on a display.
    fn find(display: &HostDisplay) -> Option<Self> {
        let screen = Screen::parse(&display.boot_params)?;
        let Some(frame_buffer) = screen.frame_buffer() else {
            return display.is_boot_display.then_some(Self::Text(screen));
        };
        let holds = |bar: &std::ops::Range<u64>| {
            bar.start <= frame_buffer.start && frame_buffer.end <= bar.end
        };
        let bar = display.bars.iter().position(holds)?;
        let offset = frame_buffer.start - display.bars[bar].start;
        Some(Self::FrameBuffer {
            screen,
            bar,
            offset,
        })
    }

    /// What that is in the guest, where the BARs are at `address`.
    fn screen(&self, address: impl Fn(usize) -> Option<u64>) -> Option<Screen> {
        match self {
            Self::Text(screen) => Some(screen.clone()),
            Self::FrameBuffer {
                screen,
                bar,
                offset,
            } => Some(screen.moved(address(*bar)?.checked_add(*offset)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(kind: u8, base: u32) -> HostDisplay {
        let mut boot_params = vec![0; 4096];
        boot_params[6..16].copy_from_slice(&[3, 80, 0, 0, 0, 0, 0, 0, 25, kind]);
        boot_params[0x18..0x1c].copy_from_slice(&base.to_le_bytes());
        boot_params[0x1c] = 0x10;
        let mut bars = [const { 0..0 }; 6];
        bars[0] = 0xfd00_0000..0xfe00_0000;
        HostDisplay {
            is_boot_display: true,
            boot_params,
            bars,
        }
    }

    #[test]
    fn a_frame_buffer_goes_where_its_bar_went() {
        let picture = Picture::find(&host(0x23, 0xfd10_0000)).unwrap();
        let screen = picture.screen(|bar| (bar == 0).then_some(0x1_c000_0000));
        let frame_buffer = screen.unwrap().frame_buffer();
        assert_eq!(frame_buffer, Some(0x1_c010_0000..0x1_c020_0000));
        assert_eq!(picture.screen(|_| None), None);
    }

    #[test]
    fn a_frame_buffer_of_another_card_is_not_this_ones() {
        assert_eq!(Picture::find(&host(0x23, 0xfdf8_0000)), None);
        assert_eq!(Picture::find(&host(0x70, 0xe000_0000)), None);
    }

    #[test]
    fn text_is_on_the_display_that_the_host_booted_on() {
        let mut text = host(1, 0);
        assert!(matches!(Picture::find(&text), Some(Picture::Text(_))));
        text.is_boot_display = false;
        assert_eq!(Picture::find(&text), None);
        text.boot_params.clear();
        assert_eq!(Picture::find(&text), None);
    }
}
