//! The bytes of a recorded function: its configuration space and the lines of its `resource`.

use devices::pci::registers::*;

use super::function::Function;

/// The 256 bytes that conventional configuration space has.
pub(super) fn config(function: &Function, class: u32) -> Vec<u8> {
    let mut bytes = vec![0; EXTENDED];
    let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    set(VENDOR_ID, &function.vendor.to_le_bytes());
    set(DEVICE_ID, &function.device.to_le_bytes());
    set(COMMAND, &(COMMAND_MEMORY | COMMAND_MASTER).to_le_bytes());
    set(CLASS, &class.to_le_bytes()[..3]);
    set(HEADER_TYPE, &[function.header_type]);
    set(INTERRUPT_PIN, &[function.pin]);
    if !function.capabilities.is_empty() {
        set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
    }
    let (mut link, mut at) = (CAPABILITIES, HEADER_END);
    for capability in &function.capabilities {
        set(link, &[u8::try_from(at).unwrap()]);
        set(at, capability);
        (link, at) = (at + 1, at + capability.len().next_multiple_of(4));
    }
    bytes
}

/// `power`, `express`, `msi VECTORS`, `msix VECTORS BAR:OFFSET BAR:OFFSET`
pub(super) fn capability(text: &str) -> Vec<u8> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        ["power"] => vec![CAP_POWER, 0, 3, 0, 8, 0, 0, 0],
        ["express"] => {
            let mut bytes = vec![0; 0x3c];
            (bytes[0], bytes[2]) = (CAP_EXPRESS, 2);
            bytes
        }
        ["msi", vectors] => {
            let vectors: u32 = vectors.parse().unwrap();
            let mut bytes = vec![0; 0x18];
            bytes[0] = CAP_MSI;
            // 64-bit addresses, and how many vectors as a power of two.
            bytes[2] = 0x80 | u8::try_from(vectors.ilog2()).unwrap() << 1;
            bytes
        }
        ["msix", vectors, table, pba] => {
            let control = vectors.parse::<u16>().unwrap() - 1;
            let mut bytes = vec![CAP_MSIX, 0];
            bytes.extend(control.to_le_bytes());
            bytes.extend(place(table).to_le_bytes());
            bytes.extend(place(pba).to_le_bytes());
            bytes
        }
        _ => panic!("no such capability: {text}"),
    }
}

/// `3:0x2000`, as a register has it.
fn place(text: &str) -> u32 {
    let (bar, offset) = text.split_once(':').unwrap();
    u32::try_from(number(offset)).unwrap() | bar.parse::<u32>().unwrap()
}

/// `memory64 prefetchable 0x4000000000 16K`, as a line of `resource`. At 0 is what the kernel found no room for.
pub(super) fn resource(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [ref kind @ .., at, size] = words[..] else {
        panic!("no resource: {text}");
    };
    let flag = |word: &&str| match *word {
        "ports" => 0x101,
        "memory32" => 0x4_0200,
        "memory64" => 0x14_0204,
        "prefetchable" => 0x2008,
        "readonly" => 0x4000,
        _ => panic!("no such kind: {word}"),
    };
    let flags = kind.iter().map(flag).fold(0, |all, flag: u64| all | flag);
    let (first, size) = (number(at), number(size));
    let flags = if first == 0 {
        flags | 0x2000_0000
    } else {
        flags
    };
    format!("{first:#018x} {:#018x} {flags:#018x}", first + size - 1)
}

/// `0x2000`, `32`, `512K`, `16M`, `8G`
fn number(text: &str) -> u64 {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).unwrap();
    }
    let units = [('K', 10), ('M', 20), ('G', 30)];
    let unit = units.iter().find(|(letter, _)| text.ends_with(*letter));
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    digits.parse::<u64>().unwrap() << unit.map_or(0, |(_, shift)| *shift)
}
