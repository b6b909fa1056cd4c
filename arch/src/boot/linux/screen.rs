//! The display as firmware left it (`struct screen_info`, the first bytes of `boot_params`): in text mode, or showing a linear frame
//! buffer. `include/uapi/linux/screen_info.h` of Linux.
//!
//! No firmware runs here that could set a mode. What can be handed to a guest is what the host's firmware set, on a card that nobody
//! has reset since.

use std::ops::Range;

/// Bytes of `struct screen_info`.
pub const SCREEN_INFO_LEN: usize = 0x40;

/// Fields, by their offset.
mod field {
    use std::ops::Range;

    pub(super) const MODE: usize = 0x06;
    pub(super) const COLUMNS: usize = 0x07;
    pub(super) const LINES: usize = 0x0e;
    pub(super) const KIND: usize = 0x0f;
    pub(super) const LFB_BASE: usize = 0x18;
    pub(super) const LFB_SIZE: usize = 0x1c;
    pub(super) const CAPABILITIES: usize = 0x36;
    pub(super) const LFB_BASE_HIGH: usize = 0x3a;
    /// Not of the display, or of a BIOS that the guest does not have: size of memory, the old protocol's command line, the VESA BIOS's
    /// protected-mode interface.
    pub(super) const NOT_THE_CARDS: [Range<usize>; 3] = [0x02..0x04, 0x20..0x24, 0x2e..0x32];
}

/// `orig_video_isVGA`: a VGA in text mode, as the kernel's own real-mode code says it (arch/x86/boot/video-vga.c).
const VGA_TEXT: u8 = 1;
/// `VIDEO_TYPE_VLFB`: set by a VESA BIOS. The size is in units of 64 KiB.
const VESA: u8 = 0x23;
/// `VIDEO_TYPE_EFI`. The size is in bytes.
const EFI: u8 = 0x70;
/// `VIDEO_CAPABILITY_64BIT_BASE`: there is an upper half of the address.
const CAPABILITY_64_BIT_BASE: u32 = 1 << 1;

/// A display that shows something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Screen {
    info: [u8; SCREEN_INFO_LEN],
}

impl Screen {
    /// What `boot_params` says of the display, if that is of any use.
    pub fn parse(boot_params: &[u8]) -> Option<Self> {
        let mut info: [u8; SCREEN_INFO_LEN] = *boot_params.first_chunk()?;
        for range in field::NOT_THE_CARDS {
            info[range].fill(0);
        }
        let screen = Self { info };
        (screen.is_text() || screen.frame_buffer().is_some()).then_some(screen)
    }

    /// Whether it is in text mode, for which the legacy VGA addresses are enough.
    pub fn is_text(&self) -> bool {
        let [mode, columns, lines] =
            [field::MODE, field::COLUMNS, field::LINES].map(|at| self.info[at]);
        // 2 and 3 are 80 by 25 in colour, in which vgacon finds the text; other modes' numbers say graphics, or monochrome.
        self.info[field::KIND] == VGA_TEXT && matches!(mode, 2 | 3) && columns > 0 && lines > 0
    }

    /// Where its linear frame buffer is, if it shows one.
    pub fn frame_buffer(&self) -> Option<Range<u64>> {
        let size = u64::from(self.dword(field::LFB_SIZE));
        let len = match self.info[field::KIND] {
            VESA => size << 16,
            EFI => size,
            _ => 0,
        };
        let high = match self.dword(field::CAPABILITIES) & CAPABILITY_64_BIT_BASE {
            0 => 0,
            _ => self.dword(field::LFB_BASE_HIGH),
        };
        let start = u64::from(high) << 32 | u64::from(self.dword(field::LFB_BASE));
        let end = start.checked_add(len)?;
        (start > 0 && len > 0).then_some(start..end)
    }

    /// The same with its frame buffer at another address.
    pub fn moved(&self, base: u64) -> Self {
        let mut moved = self.clone();
        let [a, b, c, d, high @ ..] = base.to_le_bytes();
        let capabilities = self.dword(field::CAPABILITIES) | CAPABILITY_64_BIT_BASE;
        moved.put(field::LFB_BASE, [a, b, c, d]);
        moved.put(field::LFB_BASE_HIGH, high);
        moved.put(field::CAPABILITIES, capabilities.to_le_bytes());
        moved
    }

    /// As it goes to the start of `boot_params`.
    pub(super) fn info(&self) -> &[u8; SCREEN_INFO_LEN] {
        &self.info
    }

    fn dword(&self, at: usize) -> u32 {
        let bytes = self.info[at..].first_chunk();
        u32::from_le_bytes(bytes.copied().unwrap_or_default())
    }

    fn put(&mut self, at: usize, bytes: [u8; 4]) {
        self.info[at..at + 4].copy_from_slice(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `boot_params` with these bytes in it.
    fn params(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut params = vec![0; 4096];
        for (at, bytes) in parts {
            params[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        params
    }

    fn text(mode: u8, kind: u8) -> Vec<u8> {
        params(&[
            (0x02, &[9, 9]),
            (0x06, &[mode, 80]),
            (0x0e, &[25, kind, 16]),
        ])
    }

    fn frame_buffer(kind: u8, base: u32, size: u32) -> Vec<u8> {
        params(&[
            (0x0f, &[kind]),
            (0x12, &[0, 4, 0, 3, 32, 0]),
            (0x18, &base.to_le_bytes()),
            (0x1c, &size.to_le_bytes()),
            (0x20, &[0xff; 4]),
        ])
    }

    #[test]
    fn a_vga_in_text_mode_is_passed_on_without_what_is_not_the_cards() {
        let screen = Screen::parse(&text(3, 1)).unwrap();
        assert!(screen.is_text());
        assert_eq!(screen.frame_buffer(), None);
        assert_eq!(screen.info()[..8], [0, 0, 0, 0, 0, 0, 3, 80]);
        assert_eq!(screen.info()[0x0e..0x11], [25, 1, 16]);
    }

    #[test]
    fn frame_buffers_of_either_kind_have_their_length_in_their_unit() {
        let screen = |kind, size| Screen::parse(&frame_buffer(kind, 0xfd00_0000, size));
        let range = |kind, size| screen(kind, size).and_then(|screen| screen.frame_buffer());
        assert_eq!(range(VESA, 48), Some(0xfd00_0000..0xfd30_0000));
        assert_eq!(range(EFI, 0x30_0000), Some(0xfd00_0000..0xfd30_0000));
        assert_eq!(screen(VESA, 48).unwrap().info()[0x20..0x24], [0; 4]);
    }

    #[test]
    fn a_frame_buffer_moves_to_anywhere_in_64_bits() {
        let screen = Screen::parse(&frame_buffer(EFI, 0xfd00_0000, 0x1000)).unwrap();
        let moved = screen.moved(0x12_3456_7000);
        assert_eq!(moved.frame_buffer(), Some(0x12_3456_7000..0x12_3456_8000));
        assert_eq!(moved.info()[0x12..0x18], screen.info()[0x12..0x18]);
        let back = moved.moved(0xc000_0000);
        assert_eq!(back.frame_buffer(), Some(0xc000_0000..0xc000_1000));
        let again = moved.moved(0x98_7654_3000);
        assert_eq!(again.frame_buffer(), Some(0x98_7654_3000..0x98_7654_4000));
    }

    #[test]
    fn the_upper_half_of_the_address_counts_only_where_the_capability_says_so() {
        let with = |capabilities: u32| {
            let mut params = frame_buffer(EFI, 0xfd00_0000, 0x1000);
            params[0x36..0x3a].copy_from_slice(&capabilities.to_le_bytes());
            params[0x3a..0x3e].copy_from_slice(&[0x12, 0, 0, 0]);
            Screen::parse(&params).and_then(|screen| screen.frame_buffer())
        };
        assert_eq!(with(!(1 << 1)), Some(0xfd00_0000..0xfd00_1000));
        assert_eq!(with(1 << 1), Some(0x12_fd00_0000..0x12_fd00_1000));
    }

    #[test]
    fn what_shows_nothing_is_nothing() {
        let [no_columns, no_lines] = [0x07, 0x0e].map(|at| {
            let mut params = text(3, 1);
            params[at] = 0;
            params
        });
        for params in [
            no_columns,
            no_lines,
            params(&[]),
            text(0x12, 1),
            text(3, 0),
            frame_buffer(VESA, 0, 48),
            frame_buffer(EFI, 0xfd00_0000, 0),
            vec![0xff; 16],
        ] {
            assert_eq!(Screen::parse(&params), None);
        }
    }
}
