//! The options that the kernel was built with, as far as they matter, by name.

use super::{
    files::Files,
    packages,
    report::{Check, Fix},
    system::System,
};

/// No kernel's configuration is longer; Debian's is 300 KB.
const LONGEST: usize = 4 << 20;

const NAME: &str = "kernel options";

/// Without one of each line nothing is assigned: alternatives, and what they are for.
const NEEDED: [(&[&str], &str); 6] = [
    (&["KVM"], "guests"),
    (&["KVM_INTEL", "KVM_AMD"], "guests on this processor"),
    (&["INTEL_IOMMU", "AMD_IOMMU", "VIRTIO_IOMMU"], "the IOMMU"),
    (&["IRQ_REMAP"], "interrupt remapping"),
    (&["VFIO_PCI"], "giving PCI devices away"),
    (
        &["VFIO_IOMMU_TYPE1", "IOMMUFD"],
        "mapping guest memory for devices",
    ),
];
/// What some want besides.
const WANTED: [(&str, &str); 5] = [
    ("PCI_IOV", "virtual functions (SR-IOV)"),
    ("X86_X2APIC", "x2APIC"),
    ("TRANSPARENT_HUGEPAGE", "transparent huge pages"),
    ("HUGETLBFS", "hugepages=2M and 1G"),
    ("VFIO_PCI_VGA", "vga=on"),
];

/// A kernel's configuration.
#[derive(Debug, Clone, Default)]
pub(super) struct KernelOptions {
    text: Option<String>,
}

impl KernelOptions {
    /// From where distributions put it, or the kernel itself (CONFIG_IKCONFIG_PROC).
    pub(super) fn read(files: &Files, system: &System) -> Self {
        let release = &system.release;
        let on_disk = [
            format!("boot/config-{release}"),
            format!("lib/modules/{release}/config"),
            format!("usr/lib/ostree-boot/config-{release}"),
        ];
        // The kernel's own is the truth even where the files are of another build; it costs a decompression.
        let text = files
            .bytes("proc/config.gz")
            .and_then(|bytes| unpacked(&bytes))
            .or_else(|| on_disk.iter().find_map(|path| files.text(path)));
        Self { text }
    }

    /// Whether it is known to be built without the option.
    pub(super) fn lack(&self, option: &str) -> bool {
        self.text.is_some() && !self.has(option)
    }

    fn has(&self, option: &str) -> bool {
        let text = self.text.as_deref().unwrap_or_default();
        let values = ["y", "m"].map(|value| format!("CONFIG_{option}={value}"));
        text.lines()
            .any(|line| values.iter().any(|value| value == line))
    }

    pub(super) fn checks(&self, system: &System) -> Vec<Check> {
        if self.text.is_none() {
            let what =
                "neither /proc/config.gz nor /boot/config-… tells what the kernel was built with";
            return vec![Check::unknown(NAME, what)];
        }
        let lacks = |options: &[&str]| !options.iter().any(|option| self.has(option));
        let missing: Vec<&(&[&str], &str)> = NEEDED
            .iter()
            .filter(|(options, _)| lacks(options))
            .collect();
        let mut checks = vec![if missing.is_empty() {
            let names = NEEDED.iter().flat_map(|(options, _)| *options);
            let names: Vec<&str> = names.copied().filter(|option| self.has(option)).collect();
            Check::good(NAME, format!("all that are needed: {}", names.join(" ")))
        } else {
            failure(&missing, system)
        }];
        let without: Vec<String> = WANTED
            .iter()
            .filter(|(option, _)| !self.has(option))
            .map(|(option, what)| format!("{what} (CONFIG_{option})"))
            .collect();
        if !without.is_empty() {
            checks.push(Check::note(
                NAME,
                format!("built without {}", without.join(", ")),
            ));
        }
        checks
    }
}

fn failure(missing: &[&(&[&str], &str)], system: &System) -> Check {
    let said = missing.iter().map(|(options, what)| {
        let names: Vec<String> = options
            .iter()
            .map(|option| format!("CONFIG_{option}"))
            .collect();
        format!("{} ({what})", names.join(" or "))
    });
    let said: Vec<String> = said.collect();
    let check = Check::failure(
        NAME,
        format!("this kernel was built without {}", said.join(", ")),
    );
    match packages::usual_kernel(system) {
        Some(command) => check.fix(Fix::root(
            "start the distribution's usual kernel",
            format!("{command} && reboot"),
        )),
        None => check.fix(Fix::by_hand("boot a kernel that has them")),
    }
}

/// What a gzip file (RFC 1952) has in it, up to [`LONGEST`].
fn unpacked(bytes: &[u8]) -> Option<String> {
    const EXTRA: u8 = 1 << 2;
    const NAME: u8 = 1 << 3;
    const COMMENT: u8 = 1 << 4;
    const HEADER_CRC: u8 = 1 << 1;
    let (header, mut rest) = bytes.split_at_checked(10)?;
    let [0x1f, 0x8b, 8, flags, ..] = header else {
        return None;
    };
    if flags & EXTRA != 0 {
        let length = u16::from_le_bytes(*rest.first_chunk()?);
        rest = rest.get(2 + usize::from(length)..)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|&byte| byte == 0)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & HEADER_CRC != 0 {
        rest = rest.get(2..)?;
    }
    let text = miniz_oxide::inflate::decompress_to_vec_with_limit(rest, LONGEST).ok()?;
    String::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::super::{recorded::Recorded, report::Verdict};
    use super::*;

    const ENOUGH: &str = "CONFIG_KVM=y\nCONFIG_KVM_AMD=m\nCONFIG_AMD_IOMMU=y\nCONFIG_IRQ_REMAP=y\n\
        CONFIG_VFIO_PCI=m\nCONFIG_IOMMUFD=m\n# CONFIG_PCI_IOV is not set\n";

    fn options(text: &str) -> Vec<Check> {
        let text = Some(text.to_owned());
        KernelOptions { text }.checks(&System::default())
    }

    #[test]
    fn a_kernel_with_one_of_each_is_good_and_what_some_want_is_a_note() {
        let checks = options(ENOUGH);
        assert_eq!(checks[0].verdict, Verdict::Good, "{checks:?}");
        assert_eq!(checks[1].verdict, Verdict::Note);
        assert!(checks[1].what.contains("(CONFIG_PCI_IOV)"));
    }

    #[test]
    fn an_option_that_is_missing_is_named() {
        let checks = options(&ENOUGH.replace("CONFIG_VFIO_PCI=m", "# CONFIG_VFIO_PCI is not set"));
        assert_eq!(checks[0].verdict, Verdict::Failure);
        assert!(
            checks[0].what.contains("without CONFIG_VFIO_PCI (giving"),
            "{checks:?}"
        );
    }

    #[test]
    fn the_configuration_is_read_from_the_kernel_then_from_the_disk() {
        let machine = Recorded::new();
        machine.file("proc/sys/kernel/osrelease", "6.1\n");
        let read = || {
            let files = machine.files();
            KernelOptions::read(&files, &System::read(&files))
        };
        assert_eq!(
            read().checks(&System::default())[0].verdict,
            Verdict::Unknown
        );
        machine.file("boot/config-6.1", "CONFIG_KVM=y\n");
        assert!(read().has("KVM"));
        // `printf 'CONFIG_VFIO_PCI=m\n' | gzip -n`, stored: one block of RFC 1951 that is not compressed.
        let text = b"CONFIG_VFIO_PCI=m\n";
        let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 18, 0, !18, 0xff];
        gzip.extend_from_slice(text);
        machine.file("proc/config.gz", &gzip);
        assert!(read().has("VFIO_PCI") && !read().has("KVM"));
    }

    #[test]
    fn no_end_of_a_file_is_a_panic() {
        let mut gzip = vec![0x1f, 0x8b, 8, 0x1e, 0, 0, 0, 0, 0, 3, 2, 0, 9, 9];
        gzip.extend_from_slice(b"name\0comment\0\x01\x02\x03\x00");
        for end in 0..=gzip.len() {
            assert_eq!(unpacked(&gzip[..end]).is_some(), end == gzip.len());
        }
    }
}
