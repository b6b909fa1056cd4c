//! Lines of the kernel's log that tell of refused DMA.
//!
//! Intel (dmar_fault_do_one in drivers/iommu/intel/dmar.c) and AMD (amd_iommu_report_page_fault in drivers/iommu/amd/iommu.c), in the
//! wordings of Linux 4.x to 6.x. The words are no interface, so this looks for the few that have stayed, in any order, and what does
//! not fit is not a fault.

use super::Access;

/// What a line says. AMD's tells of the segment, Intel's does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) segment: Option<u32>,
    pub(super) bus: u8,
    pub(super) device: u8,
    pub(super) function: u8,
    pub(super) address: u64,
    pub(super) access: Option<Access>,
}

/// The fault that a record of the log tells of: `priority,sequence,time,flags;text`, further lines of it indented.
pub(super) fn parse(record: &[u8]) -> Option<Refused> {
    let text = std::str::from_utf8(record).ok()?;
    let text = text.split_once(';')?.1.lines().next()?;
    intel(text).or_else(|| amd(text))
}

/// `DMAR: [DMA Write NO_PASID] Request device [00:05.0] fault addr 0x1000 [fault reason 0x05] …`
fn intel(text: &str) -> Option<Refused> {
    let access = match after(text, "[DMA ")? {
        kind if kind.starts_with("Read") => Access::Read,
        kind if kind.starts_with("Write") => Access::Write,
        _ => return None,
    };
    let function = up_to(after(text, "Request device [")?, |c| c == ']');
    let address = number(after(text, "fault addr ")?)?;
    refused(function, address, Some(access))
}

/// `AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:03:10.3 domain=0x0007 address=0x1000 flags=0x0020]`, or without `device=` and
/// the driver and the name of the device before it all.
fn amd(text: &str) -> Option<Refused> {
    let (before, event) = text.split_once("[IO_PAGE_FAULT ")?;
    let function = match after(event, "device=") {
        Some(named) => up_to(named, char::is_whitespace),
        None => before
            .strip_suffix("AMD-Vi: Event logged ")?
            .trim_end()
            .strip_suffix(':')?
            .rsplit(' ')
            .next()?,
    };
    let address = number(after(event, "address=")?)?;
    // What it wanted is not told where nothing is mapped: the flag for writes means something only where something is.
    refused(function, address, None)
}

/// `0000:03:10.3`, `03:10.3` or, as Linux 5.16 wrote it, `0x03:0x10.3`.
fn refused(function: &str, address: u64, access: Option<Access>) -> Option<Refused> {
    let (rest, function) = function.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (segment, bus) = match rest.rsplit_once(':') {
        Some((segment, bus)) => (Some(segment), bus),
        None => (None, rest),
    };
    let small = |text: &str, limit: u64| {
        let value = number(text).filter(|&value| value < limit)?;
        u8::try_from(value).ok()
    };
    let segment = match segment {
        Some(segment) => Some(u32::try_from(number(segment)?).ok()?),
        None => None,
    };
    Some(Refused {
        segment,
        bus: small(bus, 256)?,
        device: small(device, 32)?,
        function: small(function, 8)?,
        address,
        access,
    })
}

/// The hexadecimal number at the start of `text`, with `0x` before it or without.
fn number(text: &str) -> Option<u64> {
    let text = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(up_to(text, |c| !c.is_ascii_hexdigit()), 16).ok()
}

fn after<'a>(text: &'a str, words: &str) -> Option<&'a str> {
    Some(text.split_once(words)?.1)
}

fn up_to(text: &str, end: impl Fn(char) -> bool) -> &str {
    text.split(end).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<(Option<u32>, String, u64, Option<Access>)> {
        let refused = parse(format!("3,1234,56789,-;{text}\n SUBSYSTEM=pci\n").as_bytes())?;
        let name = format!(
            "{:02x}:{:02x}.{}",
            refused.bus, refused.device, refused.function
        );
        Some((refused.segment, name, refused.address, refused.access))
    }

    #[test]
    fn intels_lines_of_several_ages_are_understood() {
        for (text, address, access) in [
            (
                "DMAR: [DMA Write NO_PASID] Request device [03:10.3] fault addr 0x4000001000 [fault reason 0x05] PTE Write access is not set",
                0x40_0000_1000,
                Access::Write,
            ),
            (
                "DMAR: [DMA Read NO_PASID] Request device [0x03:0x10.3] fault addr 0xffee0000 [fault reason 0x06] PTE Read access is not set",
                0xffee_0000,
                Access::Read,
            ),
            (
                "DMAR: [DMA Write PASID 0x1] Request device [03:10.3] fault addr 0xfee00000 [fault reason 0x05] PTE Write access is not set",
                0xfee0_0000,
                Access::Write,
            ),
            (
                "DMAR: [DMA Read] Request device [03:10.3] PASID ffffffff fault addr 1a45aa9000 [fault reason 12] non-zero reserved fields in PTE",
                0x1a_45aa_9000,
                Access::Read,
            ),
            (
                "DMAR:[DMA Read] Request device [03:10.3] fault addr 0 ",
                0,
                Access::Read,
            ),
        ] {
            let wanted = (None, "03:10.3".to_owned(), address, Some(access));
            assert_eq!(of(text), Some(wanted), "{text}");
        }
    }

    #[test]
    fn amds_lines_name_the_device_inside_or_before() {
        for (text, segment) in [
            (
                "AMD-Vi: Event logged [IO_PAGE_FAULT device=0001:03:10.3 domain=0x0007 address=0xffffc02000 flags=0x0030]",
                Some(1),
            ),
            (
                "AMD-Vi: Event logged [IO_PAGE_FAULT device=03:10.3 domain=0x0007 address=0x000000ffffc02000 flags=0x0070]",
                None,
            ),
            (
                "vfio-pci 0001:03:10.3: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0000 address=0xffffc02000 flags=0x0030]",
                Some(1),
            ),
        ] {
            let wanted = (segment, "03:10.3".to_owned(), 0xff_ffc0_2000, None);
            assert_eq!(of(text), Some(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_no_fault_or_makes_no_sense_is_passed_over() {
        for text in [
            "",
            "DMAR: DRHD: handling fault status reg 2",
            "DMAR: [INTR-REMAP] Request device [03:10.3] fault index 0x0 [fault reason 0x22] Present field in the IRTE entry is clear",
            "DMAR: [DMA Write NO_PASID] Request device [03:20.3] fault addr 0x1000",
            "DMAR: [DMA Write NO_PASID] Request device [03:10.8] fault addr 0x1000",
            "DMAR: [DMA Write NO_PASID] Request device [103:10.3] fault addr 0x1000",
            "DMAR: [DMA Write NO_PASID] Request device [03:10.3] fault addr 0x",
            "DMAR: [DMA Write NO_PASID] Request device [03:10.3] fault addr 0x11111111111111111",
            "DMAR: [DMA Flight NO_PASID] Request device [03:10.3] fault addr 0x1000",
            "DMAR: [DMA Write NO_PASID] Request device [",
            "AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0000 address=0x1000 flags=0x0020]",
            "AMD-Vi: Event logged [IO_PAGE_FAULT device=03:10.3 domain=0x0000 address= flags=0x0020]",
            "AMD-Vi: Event logged [IO_PAGE_FAULT ",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
        assert_eq!(parse(b"no record"), None);
        assert_eq!(parse(&[0xff; 40]), None);
    }

    #[test]
    fn a_line_cut_off_or_garbled_anywhere_is_survived() {
        let text = "3,1,2,-;vfio-pci 0001:03:10.3: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0000 address=0xffffc02000 flags=0x0030]";
        for at in 0..text.len() {
            let _ = parse(&text.as_bytes()[..at]);
            let mut garbled = text.as_bytes().to_vec();
            garbled[at] = b']';
            let _ = parse(&garbled);
            garbled[at] = 0xc3;
            assert_eq!(parse(&garbled), None);
        }
    }
}
