//! The processor: hardware virtualisation, and whether this host is a virtual machine itself.

use super::{
    files::Files,
    report::{Check, Fix},
    system::System,
};

/// Who made the processor, which decides what everything is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Vendor {
    Intel,
    Amd,
    #[default]
    Other,
}

/// What is known of the processor.
#[derive(Debug, Clone, Default)]
pub(super) struct Processor {
    pub(super) vendor: Vendor,
    model: String,
    flags: Vec<String>,
    /// Whether the CPUID instruction itself says that there is VMX or SVM. Where the firmware has switched it off it still does,
    /// while the kernel drops the flag (`init_ia32_feat_ctl`; for SVM, `init_amd` since Linux 6.7).
    announced: Option<bool>,
    /// What the firmware says the machine is: maker and product.
    machine: Option<String>,
}

impl Processor {
    pub(super) fn read(files: &Files) -> Self {
        let info = files.text("proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            let found = lines.find(|(key, _)| key.trim() == name);
            found.map_or("", |(_, value)| value.trim())
        };
        let dmi = |name| files.text(&format!("sys/class/dmi/id/{name}"));
        let machine = [dmi("sys_vendor"), dmi("product_name")];
        let machine: Vec<String> = machine.into_iter().flatten().collect();
        Self {
            vendor: match field("vendor_id") {
                "GenuineIntel" => Vendor::Intel,
                "AuthenticAMD" | "HygonGenuine" => Vendor::Amd,
                _ => Vendor::Other,
            },
            model: field("model name").to_owned(),
            flags: field("flags").split(' ').map(str::to_owned).collect(),
            announced: files.are_this_machines().then(announced),
            machine: (!machine.is_empty()).then(|| machine.join(" ")),
        }
    }

    pub(super) fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|one| one == flag)
    }

    /// Whether it can run guests.
    pub(super) fn virtualizes(&self) -> bool {
        self.has("vmx") || self.has("svm")
    }

    /// Whether a hypervisor runs it.
    pub(super) fn is_virtual(&self) -> bool {
        self.has("hypervisor")
    }

    /// The module that KVM needs for it.
    pub(super) fn kvm_module(&self) -> Option<&'static str> {
        match self.vendor {
            _ if self.has("vmx") => Some("kvm_intel"),
            _ if self.has("svm") => Some("kvm_amd"),
            Vendor::Intel => Some("kvm_intel"),
            Vendor::Amd => Some("kvm_amd"),
            Vendor::Other => None,
        }
    }

    pub(super) fn checks(&self, system: &System) -> Vec<Check> {
        vec![self.virtualization(system), self.nesting()]
    }

    fn virtualization(&self, system: &System) -> Check {
        let name = "processor";
        let model = if self.model.is_empty() {
            "it"
        } else {
            &self.model
        };
        if self.virtualizes() {
            let how = if self.has("vmx") { "VT-x" } else { "SVM" };
            return Check::good(name, format!("{model} has hardware virtualisation ({how})"));
        }
        if self.is_virtual() && self.announced != Some(true) {
            return Check::failure(name, format!("{model} has no hardware virtualisation here"))
                .why("this host is a virtual machine, and its hypervisor keeps VT-x or SVM from it")
                .fix(Fix::by_hand(
                    "give it nested virtualisation on the machine below (QEMU there: -cpu host, and nested=1 for kvm_intel or kvm_amd)",
                ));
        }
        let what = match self.announced {
            Some(false) => {
                return Check::failure(name, format!("{model} has no hardware virtualisation"));
            }
            Some(true) => format!("the firmware has switched {model}'s virtualisation off"),
            None => {
                format!("{model} shows neither VT-x nor SVM: the firmware may have switched it off")
            }
        };
        Check::failure(name, what).fix(in_setup(system, &format!("turn on {}", self.called())))
    }

    /// What firmware calls it.
    fn called(&self) -> &'static str {
        match self.vendor {
            Vendor::Intel => "'Intel Virtualization Technology' (VT-x)",
            Vendor::Amd => "'SVM Mode'",
            Vendor::Other => "virtualisation",
        }
    }

    fn nesting(&self) -> Check {
        let name = "this machine";
        let machine = self.machine.as_deref().unwrap_or("its maker is not told");
        if self.is_virtual() {
            return Check::note(name, format!("is virtual itself: {machine}"))
                .why("its IOMMU and its devices are what its hypervisor makes or passes on");
        }
        Check::good(name, format!("is a real one: {machine}"))
    }
}

/// Something to be done in the firmware's set-up.
pub(super) fn in_setup(system: &System, what: &str) -> Fix {
    let how = format!("{what} in the firmware's set-up");
    if system.boots_into_setup {
        return Fix::root(how, "systemctl reboot --firmware-setup");
    }
    Fix::by_hand(how)
}

/// Intel SDM vol. 2, CPUID leaf 1: ECX bit 5 is VMX. AMD APM vol. 3, leaf 8000_0001: ECX bit 2 is SVM.
fn announced() -> bool {
    use std::arch::x86_64::__cpuid;
    let vmx = __cpuid(1).ecx >> 5 & 1 == 1;
    let extended = __cpuid(0x8000_0000).eax;
    vmx || extended > 0x8000_0000 && __cpuid(0x8000_0001).ecx >> 2 & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::super::{recorded::Recorded, report::Verdict};
    use super::*;

    fn processor(vendor: &str, flags: &str) -> Processor {
        let machine = Recorded::new();
        let info = format!("vendor_id\t: {vendor}\nmodel name\t: A 7\nflags\t\t: fpu {flags}\n");
        machine.file("proc/cpuinfo", info);
        Processor::read(&machine.files())
    }

    fn first(processor: &Processor) -> Check {
        processor.checks(&System::default()).remove(0)
    }

    #[test]
    fn a_processor_that_can_is_told_from_one_that_is_switched_off_or_cannot() {
        let mut intel = processor("GenuineIntel", "vmx");
        assert_eq!(first(&intel).what, "A 7 has hardware virtualisation (VT-x)");
        intel.flags.clear();
        intel.announced = Some(true);
        let check = first(&intel);
        assert_eq!(
            check.what,
            "the firmware has switched A 7's virtualisation off"
        );
        assert!(
            check.fixes[0]
                .how
                .contains("'Intel Virtualization Technology'")
        );
        intel.announced = Some(false);
        assert!(first(&intel).fixes.is_empty());
    }

    #[test]
    fn a_virtual_host_without_nested_virtualisation_is_cured_on_the_machine_below() {
        let amd = processor("AuthenticAMD", "hypervisor");
        let check = first(&amd);
        assert_eq!(check.verdict, Verdict::Failure);
        assert!(check.fixes[0].how.contains("nested=1"), "{check:?}");
    }

    #[test]
    fn the_firmwares_setup_is_a_command_away_where_the_system_can_go_there() {
        let system = System {
            boots_into_setup: true,
            ..System::default()
        };
        let mut amd = processor("AuthenticAMD", "");
        amd.announced = Some(true);
        let fix = amd.checks(&system).remove(0).fixes.remove(0);
        assert_eq!(fix.how, "turn on 'SVM Mode' in the firmware's set-up");
        let command = "systemctl reboot --firmware-setup";
        assert_eq!(fix.command.as_deref(), Some(command));
    }
}
