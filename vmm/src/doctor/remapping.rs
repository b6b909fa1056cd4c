//! Interrupt remapping: what keeps a guest's device from raising the host's interrupts.

use super::{
    boot_words::{Change, Loader},
    files::Files,
    iommu::Iommu,
    processor::in_setup,
    report::{Check, Fix},
    system::System,
};

const NAME: &str = "interrupt remapping";
/// Where each of the two interfaces is told to do without.
const PARAMETERS: [&str; 2] = [
    "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    "sys/module/iommufd/parameters/allow_unsafe_interrupts",
];

/// What is known of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Remapping {
    /// Whether interrupts go through it.
    on: Option<bool>,
    /// Whether the hardware has it; known of Intel's.
    hardware: Option<bool>,
    /// Of the parameters, those that are there, and whether they are set.
    unsafe_allowed: Vec<(&'static str, bool)>,
}

impl Remapping {
    pub(super) fn read(files: &Files, iommu: &Iommu) -> Self {
        let interrupts = files.text("proc/interrupts").unwrap_or_default();
        let extended = |unit: &String| {
            let text = files.text(&format!("sys/class/iommu/{unit}/intel-iommu/ecap"))?;
            // The extended capability register: bit 3 is interrupt remapping (`ecap_ir_support` of drivers/iommu/intel/iommu.h).
            Some(u64::from_str_radix(&text, 16).ok()? >> 3 & 1 == 1)
        };
        let hardware: Vec<bool> = iommu.units.iter().filter_map(extended).collect();
        let parameter = |path| files.flag(path).map(|set| (path, set));
        Self {
            on: goes_through(&interrupts),
            hardware: (!hardware.is_empty()).then(|| hardware.iter().all(|&has| has)),
            unsafe_allowed: PARAMETERS.into_iter().filter_map(parameter).collect(),
        }
    }

    /// Whether it is known to be on.
    pub(super) fn is_on(&self) -> bool {
        self.on == Some(true)
    }

    pub(super) fn check(&self, system: &System, iommu: &Iommu, loader: Loader) -> Check {
        match self.on {
            Some(true) => Check::good(
                NAME,
                "on: a device raises only the interrupts that are its own",
            ),
            None => Check::unknown(
                NAME,
                "/proc/interrupts names no interrupt controller that is known here",
            ),
            Some(false) if !iommu.is_on() => Check::note(NAME, "off: it comes with the IOMMU"),
            Some(false) => self.off(system, loader),
        }
    }

    fn off(&self, system: &System, loader: Loader) -> Check {
        let means = "a guest could have its device raise any interrupt of the host's";
        if self.unsafe_allowed.iter().any(|(_, set)| *set) {
            let check = Check::warning(
                NAME,
                "off, and VFIO is told to do without (allow_unsafe_interrupts)",
            );
            return check
                .why(format!("{means}: for guests that you trust only"))
                .fixes(self.turn_on(system, loader));
        }
        Check::failure(NAME, "off")
            .why(format!("{means}, so VFIO refuses every device (EPERM)"))
            .fixes(self.turn_on(system, loader))
            .fix(self.go_without())
    }

    fn turn_on(&self, system: &System, loader: Loader) -> Option<Fix> {
        let off = ["intremap=off", "intremap=nosid", "nointremap"];
        let off: Vec<&str> = off
            .into_iter()
            .filter(|word| system.has_word(word))
            .collect();
        if !off.is_empty() {
            let change = Change {
                remove: off,
                ..Change::default()
            };
            return Some(loader.fix(&change));
        }
        // Hardware that lacks it cannot be helped.
        (self.hardware != Some(false)).then(|| {
            in_setup(
                system,
                "turn on interrupt remapping (with VT-d or AMD-Vi; often called x2APIC)",
            )
        })
    }

    fn go_without(&self) -> Fix {
        let how = "or, for guests that you trust, do without until the next start";
        match self.unsafe_allowed.first() {
            Some((path, _)) => Fix::root(how, format!("echo 1 > /{path}")),
            None => Fix::root(how, "modprobe vfio_iommu_type1 allow_unsafe_interrupts=1"),
        }
    }
}

/// Whether interrupts are remapped, by what their controllers are called: `IR-IO-APIC` and `IR-PCI-MSI` are the kernel's names for those
/// behind it (`ioapic_ir_chip` of arch/x86/kernel/apic/io_apic.c; `.prefix = "IR-"` of the IOMMU drivers' MSI domains). Anyone may
/// read them, and unlike the log they are not lost.
fn goes_through(interrupts: &str) -> Option<bool> {
    let words = || interrupts.lines().flat_map(str::split_whitespace);
    let controller = |word: &str| word.starts_with("PCI-MSI") || word.starts_with("IO-APIC");
    if words().any(|word| word.strip_prefix("IR-").is_some_and(controller)) {
        return Some(true);
    }
    words().any(controller).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::super::{recorded::Recorded, report::Verdict};
    use super::*;

    fn check(machine: &Recorded) -> Check {
        machine.folder("sys/class/iommu/dmar0");
        let files = machine.files();
        let iommu = Iommu::read(&files);
        Remapping::read(&files, &iommu).check(&System::read(&files), &iommu, Loader::Grubby)
    }

    fn host(chip: &str) -> Recorded {
        let machine = Recorded::new();
        let text =
            format!("     CPU0\n 0: 11 {chip} 2-edge timer\nNMI: 0 Non-maskable interrupts\n");
        machine.file("proc/interrupts", text);
        machine
    }

    #[test]
    fn it_is_told_by_the_names_of_the_interrupt_controllers() {
        for on in [
            "IR-IO-APIC",
            "IR-PCI-MSI-0000:00:1f.2",
            "IR-PCI-MSIX-0000:03:00.0",
            "IR-IO-APIC-edge",
        ] {
            assert_eq!(check(&host(on)).verdict, Verdict::Good, "{on}");
        }
        for off in ["IO-APIC", "PCI-MSIX-0000:03:00.0"] {
            assert_eq!(check(&host(off)).verdict, Verdict::Failure, "{off}");
        }
        assert_eq!(check(&host("XT-PIC")).verdict, Verdict::Unknown);
    }

    #[test]
    fn where_a_word_switched_it_off_the_fix_is_to_take_the_word_away_or_to_go_without() {
        let machine = host("IO-APIC");
        machine.file("proc/cmdline", "intremap=off quiet\n");
        machine.file(PARAMETERS[0], "N\n");
        let check = check(&machine);
        let commands: Vec<_> = check
            .fixes
            .iter()
            .filter_map(|fix| fix.command.as_deref())
            .collect();
        assert_eq!(
            commands,
            [
                "grubby --update-kernel=ALL --remove-args=intremap=off && reboot",
                "echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
            ]
        );
    }

    #[test]
    fn a_host_that_goes_without_is_warned_and_hardware_that_lacks_it_is_not_sent_to_the_firmware() {
        let machine = host("PCI-MSI");
        machine.file(PARAMETERS[0], "Y\n");
        machine.file("sys/class/iommu/dmar0/intel-iommu/ecap", "f000f7\n");
        let check = check(&machine);
        assert_eq!((check.verdict, check.fixes.len()), (Verdict::Warning, 0));
    }

    #[test]
    fn without_an_iommu_it_is_not_the_first_thing_to_put_right() {
        let machine = host("PCI-MSI");
        let files = machine.files();
        let iommu = Iommu::read(&files);
        let check =
            Remapping::read(&files, &iommu).check(&System::default(), &iommu, Loader::Unknown);
        assert_eq!(check.verdict, Verdict::Note);
    }
}
