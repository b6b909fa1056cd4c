//! A picture whose every pixel follows from its place, drawn on a framebuffer of 32 bits a pixel.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Draws it on this framebuffer ("fb0") and says how large it is.
pub(crate) fn draw(name: &str) -> io::Result<String> {
    let folder = Path::new("/sys/class/graphics").join(name);
    let number = |file: &str| number(&folder, file);
    let [width, height] = numbers(&fs::read_to_string(folder.join("virtual_size"))?)?;
    let (stride, bits) = (number("stride")?, number("bits_per_pixel")?);
    if bits != 32 {
        let what = format!("{name} has {bits} bits a pixel, not 32");
        return Err(io::Error::other(what));
    }
    let mut picture = Vec::new();
    for row in 0..height {
        picture.extend((0..width).flat_map(|column| pixel(column, row)));
        picture.resize((row + 1) * stride, 0);
    }
    // In one write: of one that is exactly a row the kernel's emulated framebuffer shows nothing.
    let path = Path::new("/dev").join(name);
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(&picture)?;
    Ok(format!("{width}x{height}"))
}

/// Blue, green, red, and what is not shown.
fn pixel(column: usize, row: usize) -> [u8; 4] {
    let byte = |value: usize| value.to_le_bytes()[0];
    [byte(column ^ row), byte(row), byte(column), 0]
}

fn number(folder: &Path, file: &str) -> io::Result<usize> {
    let text = fs::read_to_string(folder.join(file))?;
    text.trim().parse().map_err(io::Error::other)
}

/// `1280,800`
fn numbers(text: &str) -> io::Result<[usize; 2]> {
    let (width, height) = text.trim().split_once(',').unwrap_or_default();
    let parse = |word: &str| word.parse().map_err(io::Error::other);
    Ok([parse(width)?, parse(height)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pixel_has_its_column_in_red_and_its_row_in_green() {
        assert_eq!(pixel(0x103, 0x205), [6, 5, 3, 0]);
    }

    #[test]
    fn a_size_is_two_numbers() {
        assert_eq!(numbers("1280,800\n").unwrap(), [1280, 800]);
        assert!(numbers("1280").is_err());
    }
}
