//! How interrupts reach a guest's processors: x2APIC, virtual interrupt controllers in hardware, and interrupts posted to them
//! without the host. None of it is needed; all of it is speed.

use super::{
    files::Files,
    iommu::Iommu,
    processor::Processor,
    remapping::Remapping,
    report::{Check, Fix},
    system::System,
};

/// What is known of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Delivery {
    /// KVM's word on APICv or AVIC, once its module is loaded.
    virtual_apic: Option<bool>,
    /// Whether every IOMMU can post interrupts.
    posting: Option<bool>,
}

impl Delivery {
    pub(super) fn read(files: &Files, iommu: &Iommu, processor: &Processor) -> Self {
        let parameter = match processor.kvm_module() {
            Some("kvm_intel") => "sys/module/kvm_intel/parameters/enable_apicv",
            _ => "sys/module/kvm_amd/parameters/avic",
        };
        let units: Vec<bool> = iommu
            .units
            .iter()
            .filter_map(|unit| posts(files, unit))
            .collect();
        Self {
            virtual_apic: files.flag(parameter),
            posting: (!units.is_empty()).then(|| units.iter().all(|&posts| posts)),
        }
    }

    pub(super) fn checks(
        &self,
        processor: &Processor,
        system: &System,
        remapping: &Remapping,
    ) -> Vec<Check> {
        vec![
            x2apic(processor, system),
            self.interrupts(processor, system, remapping),
        ]
    }

    fn interrupts(&self, processor: &Processor, system: &System, remapping: &Remapping) -> Check {
        let name = "posted interrupts";
        let module = processor.kvm_module().unwrap_or("kvm");
        let (called, parameter) = match module {
            "kvm_intel" => ("APICv", "enable_apicv=1"),
            _ => ("AVIC", "avic=1"),
        };
        let slower =
            "interrupts of devices take a detour through the host's kernel; it works, only slower";
        match (self.virtual_apic, self.posting) {
            (None, _) => Check::unknown(
                name,
                format!("{called}: {module} is not loaded, or does not say"),
            ),
            (Some(false), _) if processor.is_virtual() => Check::note(
                name,
                format!("{called} is off, as usual in a virtual machine"),
            )
            .why(slower),
            (Some(false), _) => Check::note(name, format!("{called} is off"))
                .why(slower)
                .fix(Fix::root(
                    "try to have it on, with no guest running",
                    format!("modprobe -r {module} && modprobe {module} {parameter}"),
                )),
            (Some(true), Some(true))
                if remapping.is_on() && !system.has_word("intremap=nopost") =>
            {
                Check::good(
                    name,
                    format!("{called} is on, and the IOMMU posts interrupts to it"),
                )
            }
            (Some(true), None) => Check::unknown(
                name,
                format!("{called} is on; the IOMMU does not say whether it posts to it"),
            ),
            (Some(true), _) => Check::note(
                name,
                format!("{called} is on, but the IOMMU does not post to it"),
            )
            .why(slower),
        }
    }
}

/// Whether an IOMMU can post interrupts. Intel: capability register, bit 59 (`cap_pi_support` of drivers/iommu/intel/iommu.h). AMD:
/// extended features, bit 7 for guest APICs and bit 21 for their second mode, which KVM uses (`FEATURE_GA`, `FEATURE_GAM_VAPIC` of
/// drivers/iommu/amd/amd_iommu_types.h); with the second register before a colon since Linux 6.7.
fn posts(files: &Files, unit: &str) -> Option<bool> {
    let register = |path: &str| {
        let text = files.text(&format!("sys/class/iommu/{unit}/{path}"))?;
        let low = text.rsplit(':').next().unwrap_or_default();
        u64::from_str_radix(low, 16).ok()
    };
    let intel = register("intel-iommu/cap").map(|cap| cap >> 59 & 1 == 1);
    intel.or_else(|| register("amd-iommu/features").map(|efr| efr >> 7 & efr >> 21 & 1 == 1))
}

fn x2apic(processor: &Processor, system: &System) -> Check {
    let name = "x2APIC";
    if system.has_word("nox2apic") {
        return Check::note(
            name,
            "switched off by the word nox2apic at the kernel's start",
        );
    }
    if processor.has("x2apic") {
        // Whether the kernel uses it is in its log and in an MSR, neither of them for everyone to read.
        return Check::note(
            name,
            "the processor has it; the kernel uses it if the firmware lets it",
        )
        .fix(Fix::root("see whether it does", "dmesg | grep -i x2apic"));
    }
    Check::note(name, "the processor has none")
        .why("guests' processors interrupt each other more slowly")
}

#[cfg(test)]
mod tests {
    use super::super::{recorded::Recorded, report::Verdict};
    use super::*;

    fn posted(machine: &Recorded) -> Check {
        let files = machine.files();
        let (system, processor) = (System::read(&files), Processor::read(&files));
        let iommu = Iommu::read(&files);
        let remapping = Remapping::read(&files, &iommu);
        let delivery = Delivery::read(&files, &iommu, &processor);
        delivery.checks(&processor, &system, &remapping).remove(1)
    }

    fn host(flags: &str) -> Recorded {
        let machine = Recorded::new();
        machine.file("proc/cpuinfo", format!("flags : {flags}\n"));
        machine.file("proc/interrupts", "9: 1 IR-IO-APIC 9-fasteoi acpi\n");
        machine
    }

    #[test]
    fn interrupts_are_posted_where_kvm_and_the_iommu_both_say_so() {
        let intel = host("vmx");
        intel.file("sys/module/kvm_intel/parameters/enable_apicv", "Y\n");
        assert_eq!(posted(&intel).verdict, Verdict::Unknown);
        intel.file("sys/class/iommu/dmar0/intel-iommu/cap", "8d2078c106f0466\n");
        assert_eq!(posted(&intel).verdict, Verdict::Good);
        intel.file("sys/class/iommu/dmar1/intel-iommu/cap", "d2078c106f0466\n");
        assert_eq!(posted(&intel).verdict, Verdict::Note);
    }

    #[test]
    fn amds_features_are_read_with_and_without_the_second_register() {
        let amd = host("svm");
        amd.file("sys/module/kvm_amd/parameters/avic", "1\n");
        for features in ["2000a0", "a5:2000a0"] {
            amd.file("sys/class/iommu/ivhd0/amd-iommu/features", features);
            assert_eq!(posted(&amd).verdict, Verdict::Good, "{features}");
        }
        amd.file("sys/module/kvm_amd/parameters/avic", "N\n");
        let command = posted(&amd).fixes[0].command.clone().unwrap();
        assert_eq!(command, "modprobe -r kvm_amd && modprobe kvm_amd avic=1");
        assert_eq!(posted(&host("svm")).verdict, Verdict::Unknown);
    }
}
