//! The IOMMU: whether the firmware describes one, the kernel uses it, and it keeps devices apart.

use super::{
    boot_words::{Change, Loader},
    files::Files,
    processor::{Processor, Vendor, in_setup},
    report::{Check, Fix},
    system::System,
};

/// What is known of the IOMMU.
#[derive(Debug, Clone, Default)]
pub(super) struct Iommu {
    /// The ACPI tables that describe one: DMAR is Intel's, IVRS is AMD's, VIOT is for one that a hypervisor makes.
    tables: Vec<&'static str>,
    /// Those that the kernel uses: `dmar0`, `ivhd0`.
    pub(super) units: Vec<String>,
    /// How many groups of devices they tell apart.
    groups: usize,
    /// Whether VFIO was told to do without.
    without: bool,
}

/// Tables by the name that sysfs gives them: that of their signature.
const TABLES: [&str; 3] = ["DMAR", "IVRS", "VIOT"];

impl Iommu {
    pub(super) fn read(files: &Files) -> Self {
        let there = |name: &&str| files.exists(&format!("sys/firmware/acpi/tables/{name}"));
        let without = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
        Self {
            tables: TABLES.into_iter().filter(|name| there(name)).collect(),
            units: files.names("sys/class/iommu"),
            groups: files.names("sys/kernel/iommu_groups").len(),
            without: files.flag(without) == Some(true),
        }
    }

    /// Whether the kernel uses one.
    pub(super) fn is_on(&self) -> bool {
        !self.units.is_empty()
    }

    pub(super) fn checks(
        &self,
        system: &System,
        processor: &Processor,
        loader: Loader,
    ) -> Vec<Check> {
        let mut checks = vec![self.in_firmware(system, processor)];
        // What firmware does not have, the kernel cannot use: one failure is enough.
        if self.is_on() || !self.tables.is_empty() {
            checks.push(self.in_kernel(system, loader));
        }
        if self.is_on() {
            checks.push(self.grouping());
        }
        if self.without {
            checks.push(
                Check::warning(
                    "no-IOMMU mode",
                    "VFIO is told to hand out devices without an IOMMU",
                )
                .why("such a device reaches all of the host's memory; Viaduct does not take it")
                .fix(Fix::root(
                    "switch that off",
                    "echo 0 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode",
                )),
            );
        }
        checks
    }

    fn in_firmware(&self, system: &System, processor: &Processor) -> Check {
        let name = "IOMMU in firmware";
        if !self.tables.is_empty() {
            let tables = self.tables.join(" and ");
            return Check::good(name, format!("described by the ACPI table {tables}"));
        }
        if self.is_on() {
            return Check::note(
                name,
                "not described in ACPI, though the kernel has found one",
            );
        }
        let what = "neither a DMAR nor an IVRS table in ACPI: there is none, or it is switched off";
        let check = Check::failure(name, what)
            .why("nothing keeps a guest's device within the guest's memory");
        if processor.is_virtual() {
            return check.fix(Fix::by_hand(
                "on the machine below, give this virtual machine one (QEMU: -machine q35,kernel-irqchip=split -device intel-iommu,intremap=on)",
            ));
        }
        let called = match processor.vendor {
            Vendor::Intel => "'VT-d'",
            Vendor::Amd => "'IOMMU' (AMD-Vi)",
            Vendor::Other => "the IOMMU",
        };
        check.fix(in_setup(system, &format!("turn on {called}")))
    }

    fn in_kernel(&self, system: &System, loader: Loader) -> Check {
        let name = "IOMMU in use";
        if self.is_on() {
            return Check::good(name, format!("by the kernel: {}", self.units.join(" ")));
        }
        let check = Check::failure(name, "the machine has one, and the kernel does not use it");
        let change = self.change(system);
        if change == Change::default() {
            return check.fix(Fix::root(
                "see why not",
                "dmesg | grep -e DMAR -e AMD-Vi -e iommu",
            ));
        }
        check.fix(loader.fix(&change))
    }

    /// The words that have the kernel use it. AMD's is used unless a word forbids it; Intel's needs one, unless the kernel was built
    /// otherwise (CONFIG_INTEL_IOMMU_DEFAULT_ON). Documentation/admin-guide/kernel-parameters.txt
    fn change(&self, system: &System) -> Change {
        let off = ["intel_iommu=off", "amd_iommu=off", "iommu=off"];
        let remove = off.into_iter().filter(|word| system.has_word(word));
        let wanted = self.tables.contains(&"DMAR") && !system.has_word("intel_iommu=on");
        Change {
            add: wanted.then_some("intel_iommu=on").into_iter().collect(),
            remove: remove.collect(),
        }
    }

    fn grouping(&self) -> Check {
        let name = "IOMMU groups";
        if self.groups == 0 {
            return Check::failure(name, "there are none: no device is behind the IOMMU").fix(
                Fix::root("see why not", "dmesg | grep -e DMAR -e AMD-Vi -e iommu"),
            );
        }
        Check::good(
            name,
            format!("{}: what the IOMMU can tell apart", self.groups),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::{recorded::Recorded, report::Verdict};
    use super::*;

    fn checks(machine: &Recorded) -> Vec<Check> {
        let files = machine.files();
        let processor = Processor::read(&files);
        Iommu::read(&files).checks(&System::read(&files), &processor, Loader::Grubby)
    }

    #[test]
    fn an_iommu_that_works_is_named_with_its_groups() {
        let machine = Recorded::new();
        machine.file("sys/firmware/acpi/tables/IVRS", "");
        machine.folder("sys/class/iommu/ivhd0");
        machine.folder("sys/kernel/iommu_groups/0");
        let checks = checks(&machine);
        assert!(
            checks.iter().all(|check| check.verdict == Verdict::Good),
            "{checks:?}"
        );
        assert_eq!(checks[1].what, "by the kernel: ivhd0");
    }

    #[test]
    fn intels_that_is_not_used_wants_its_word_and_amds_only_that_none_forbids_it() {
        let machine = Recorded::new();
        machine.file("sys/firmware/acpi/tables/DMAR", "");
        let fix = |machine: &Recorded| checks(machine)[1].fixes[0].command.clone().unwrap();
        let grubby = "grubby --update-kernel=ALL";
        assert_eq!(
            fix(&machine),
            format!("{grubby} --args=intel_iommu=on && reboot")
        );
        machine.file("proc/cmdline", "intel_iommu=off\n");
        let both =
            format!("{grubby} --args=intel_iommu=on --remove-args=intel_iommu=off && reboot");
        assert_eq!(fix(&machine), both);

        let machine = Recorded::new();
        machine.file("sys/firmware/acpi/tables/IVRS", "");
        assert!(fix(&machine).starts_with("dmesg"));
        machine.file("proc/cmdline", "iommu=off\n");
        assert_eq!(
            fix(&machine),
            format!("{grubby} --remove-args=iommu=off && reboot")
        );
    }

    #[test]
    fn what_the_firmware_does_not_have_is_one_failure_and_not_three() {
        let machine = Recorded::new();
        machine.file("proc/cpuinfo", "vendor_id : AuthenticAMD\nflags : svm\n");
        let checks = checks(&machine);
        assert_eq!(checks.len(), 1);
        assert!(checks[0].fixes[0].how.contains("'IOMMU' (AMD-Vi)"));
    }
}
