//! Segment descriptors for the boot CPU (Intel SDM vol. 3, "Segment Descriptors", "TSS Descriptor in 64-bit mode").
//!
//! Both boot protocols want flat segments; Linux's also wants them in memory, at selectors 0x10 and 0x18.

/// A segment as a descriptor table and a CPU's hidden registers hold it. Every field is what `kvm_segment` has under that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Index in the table times 8.
    pub selector: u16,
    /// First byte.
    pub base: u32,
    /// Last byte (after scaling by `g`).
    pub limit: u32,
    /// Type: 0xb is code (executable, readable, accessed), 3 is data (writable, accessed), 0xb with `s` clear a busy TSS.
    pub type_: u8,
    /// Present.
    pub present: bool,
    /// 32-bit operands (never together with `l`).
    pub db: bool,
    /// Code or data, not a system segment.
    pub s: bool,
    /// 64-bit code.
    pub l: bool,
    /// The limit counts pages.
    pub g: bool,
}

const FLAT: Segment = Segment {
    selector: 0,
    base: 0,
    limit: 0xffff_ffff,
    type_: 0,
    present: true,
    db: false,
    s: true,
    l: false,
    g: true,
};

/// 64-bit code, Linux's `__BOOT_CS`.
pub const CODE64: Segment = Segment {
    selector: 0x10,
    type_: 0xb,
    l: true,
    ..FLAT
};

/// 32-bit code, at the same selector.
pub const CODE32: Segment = Segment {
    l: false,
    db: true,
    ..CODE64
};

/// Data, Linux's `__BOOT_DS`.
pub const DATA: Segment = Segment {
    selector: 0x18,
    type_: 0x3,
    db: true,
    ..FLAT
};

/// A task state segment at 0; nothing uses it but VM entry wants one.
pub const TSS: Segment = Segment {
    selector: 0x20,
    limit: 0x67,
    type_: 0xb,
    s: false,
    g: false,
    ..FLAT
};

/// Bytes of the table.
pub const GDT_LEN: usize = GDT_LIMIT as usize + 1;
/// Its last byte, as GDTR has it.
pub const GDT_LIMIT: u16 = 7 * 8 - 1;

/// The table with `code` in it, to be written at [`crate::layout::GDT`].
pub fn table(code: Segment) -> [u8; GDT_LEN] {
    let mut table = [0; GDT_LEN];
    for segment in [code, DATA, TSS] {
        let at = usize::from(segment.selector);
        table[at..at + 8].copy_from_slice(&descriptor(segment).to_le_bytes());
    }
    table
}

fn descriptor(segment: Segment) -> u64 {
    let scale = if segment.g { 12 } else { 0 };
    let limit = u64::from(segment.limit >> scale);
    let base = u64::from(segment.base);
    let bit = |set: bool, position: u32| u64::from(set) << position;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | u64::from(segment.type_ & 0xf) << 40
        | bit(segment.s, 44)
        | bit(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | bit(segment.l, 53)
        | bit(segment.db, 54)
        | bit(segment.g, 55)
        | (base >> 24) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(table: &[u8], selector: usize) -> u64 {
        u64::from_le_bytes(table[selector..selector + 8].try_into().unwrap())
    }

    #[test]
    fn descriptors_have_the_well_known_values() {
        let table64 = table(CODE64);
        assert_eq!(entry(&table64, 0), 0);
        assert_eq!(entry(&table64, 0x10), 0x00af_9b00_0000_ffff);
        assert_eq!(entry(&table64, 0x18), 0x00cf_9300_0000_ffff);
        assert_eq!(entry(&table64, 0x20), 0x0000_8b00_0000_0067);
        assert_eq!(entry(&table(CODE32), 0x10), 0x00cf_9b00_0000_ffff);
    }

    #[test]
    fn base_and_limit_are_split_over_the_descriptor() {
        let segment = Segment {
            base: 0x8765_4321,
            limit: 0xf_edcb,
            type_: 0x2,
            present: true,
            ..Segment::default()
        };
        assert_eq!(descriptor(segment), 0x870f_8265_4321_edcb);
        let paged = Segment {
            limit: 0xabcd_efff,
            g: true,
            ..segment
        };
        assert_eq!(descriptor(paged), 0x878a_8265_4321_bcde);
    }

    #[test]
    fn the_table_leaves_room_for_a_64_bit_tss() {
        // In long mode a TSS descriptor takes 16 bytes.
        assert!(GDT_LEN >= usize::from(TSS.selector) + 16);
        assert!(GDT_LEN.is_multiple_of(8), "whole descriptors");
    }
}
