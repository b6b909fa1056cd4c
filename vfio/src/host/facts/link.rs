//! A function's PCI Express link, which all functions of a card share.

use std::path::Path;

use super::super::sysfs;

/// Width that the kernel says where the link does not tell: `PCIE_LNK_WIDTH_UNKNOWN`.
const UNKNOWN_WIDTH: u32 = 0xff;

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// How fast it is: `8.0 GT/s`.
    pub speed: Option<String>,
    /// How many lanes it has.
    pub width: Option<u32>,
    /// How fast this end could be.
    pub max_speed: Option<String>,
    /// How many lanes this end could have.
    pub max_width: Option<u32>,
}

impl Link {
    /// The link of the function in `dir`; none of one that is not PCI Express, or of the root complex itself.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        // "8.0 GT/s PCIe"; kernels before 5.7 leave the last word out.
        let speed = |attribute| {
            let text = sysfs::text(&dir.join(attribute))?;
            let speed = text.strip_suffix(" PCIe").unwrap_or(&text).to_owned();
            speed.ends_with("/s").then_some(speed)
        };
        let width = |attribute| {
            let width = sysfs::number(&dir.join(attribute))?;
            Some(width).filter(|&width| width != 0 && width != UNKNOWN_WIDTH)
        };
        let link = Self {
            speed: speed("current_link_speed"),
            width: width("current_link_width"),
            max_speed: speed("max_link_speed"),
            max_width: width("max_link_width"),
        };
        let told = link.width.is_some() || link.max_width.is_some() || link.max_speed.is_some();
        told.then_some(link)
    }

    /// Whether it is slower or narrower now than this end could be: the slot's fault, or to save power.
    pub fn is_below_its_best(&self) -> bool {
        let below = |now: Option<String>, best: &Option<String>| now.is_some() && now != *best;
        below(self.speed.clone(), &self.max_speed) || self.width < self.max_width
    }
}
