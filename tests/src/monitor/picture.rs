//! What is on the screen of one of L1's display devices, whoever drives it.

use std::fs;

use serde_json::json;

use crate::error::{Doing, Error, Result};
use crate::host::Host;

/// A screen's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    width: usize,
    height: usize,
    /// Three bytes a pixel: red, green, blue; rows from the top.
    colours: Vec<u8>,
}

impl Picture {
    /// Reads a portable pixmap as QEMU writes it: "P6", width, height, the brightest value (255), then the pixels.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (mut fields, mut rest) = (Vec::new(), bytes);
        while fields.len() < 4 {
            let end = rest.iter().position(u8::is_ascii_whitespace)?;
            fields.push(std::str::from_utf8(&rest[..end]).ok()?);
            rest = &rest[end + 1..];
        }
        let (width, height) = (fields[1].parse().ok()?, fields[2].parse().ok()?);
        let size = usize::checked_mul(width, height)?.checked_mul(3)?;
        let known = fields[0] == "P6" && fields[3] == "255" && rest.len() == size;
        known.then(|| Self {
            width,
            height,
            colours: rest.to_vec(),
        })
    }

    /// Pixels in a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub(crate) fn height(&self) -> usize {
        self.height
    }

    /// Red, green and blue of the pixel in this column and row, counted from the upper left.
    pub(crate) fn pixel(&self, column: usize, row: usize) -> Option<[u8; 3]> {
        if column >= self.width {
            return None;
        }
        let (pixels, _) = self.colours.as_chunks();
        pixels.get(row * self.width + column).copied()
    }
}

impl Host {
    /// Looks at the screen of the display device with this `id=`.
    pub(crate) fn screendump(&self, device: &str) -> Result<Picture> {
        let path = self.new_file(&format!("picture-{device}"), "ppm");
        let file = path.display().to_string();
        let arguments = json!({ "filename": file, "device": device, "head": 0, "format": "ppm" });
        self.monitor("screendump", &arguments)?;
        let bytes = fs::read(&path).doing(|| format!("reading {file}"))?;
        Picture::parse(&bytes)
            .ok_or_else(|| Error::Unexpected(format!("{file} is not a pixmap as QEMU writes them")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pixel_is_found_by_column_and_row() {
        let picture = Picture::parse(b"P6\n2 2\n255\nabcdef \n\x09jkl").unwrap();
        assert_eq!((picture.width(), picture.height()), (2, 2));
        assert_eq!(picture.pixel(1, 0), Some(*b"def"));
        assert_eq!(picture.pixel(0, 1), Some(*b" \n\x09"));
        assert_eq!(picture.pixel(2, 0), None);
        assert_eq!(picture.pixel(0, 2), None);
    }

    #[test]
    fn what_is_cut_short_or_no_pixmap_is_no_picture() {
        assert_eq!(Picture::parse(b"P6\n2 2\n255\nabc"), None);
        assert_eq!(Picture::parse(b"P5\n1 1\n255\nabc"), None);
        assert_eq!(Picture::parse(b"P6\n2"), None);
    }
}
