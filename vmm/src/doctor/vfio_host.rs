//! VFIO in the kernel: the driver that gives devices away, and the interfaces that map memory for them.

use super::{
    files::Files,
    kernel_options::KernelOptions,
    modules::{Module, Place},
    report::{Check, Fix},
    system::{System, User},
};

/// What is known of it.
#[derive(Debug)]
pub(super) struct VfioHost {
    /// Whether the driver is registered.
    driver: bool,
    pci: Module,
    type1: Module,
    container: bool,
    iommufd: bool,
}

impl VfioHost {
    pub(super) fn read(files: &Files, system: &System, options: &KernelOptions) -> Self {
        Self {
            driver: files.exists("sys/bus/pci/drivers/vfio-pci"),
            pci: Module::find(files, system, options, "vfio_pci"),
            type1: Module::find(files, system, options, "vfio_iommu_type1"),
            container: files.exists("dev/vfio/vfio"),
            iommufd: files.exists("dev/iommu"),
        }
    }

    pub(super) fn checks(&self, system: &System, user: &User) -> Vec<Check> {
        vec![self.driver(system, user), self.interface(system, user)]
    }

    fn driver(&self, system: &System, user: &User) -> Check {
        let name = "vfio-pci";
        if self.driver {
            return Check::good(name, "the driver is in the kernel");
        }
        match self.pci.place {
            Place::Disk if user.is_root => {
                Check::good(name, "not loaded: Viaduct has it loaded when it is needed")
            }
            Place::Kernel => Check::failure(name, "in the kernel, but not registered as a driver")
                .fix(Fix::root("see why not", "dmesg | grep -i vfio")),
            _ => self.pci.failure(name, system),
        }
    }

    fn interface(&self, system: &System, user: &User) -> Check {
        let name = "VFIO interfaces";
        let container = self.container && self.type1.place == Place::Kernel;
        let loads = user.is_root && self.type1.is_at_hand();
        match (container, self.iommufd) {
            (true, true) => Check::good(name, "the container (type 1) and iommufd"),
            (false, true) => Check::good(name, "iommufd"),
            (true, false) => Check::good(
                name,
                "the container (type 1); this kernel has no iommufd, which is not needed",
            ),
            (false, false) if loads => Check::good(
                name,
                "the container (type 1), once its module is loaded, which Viaduct does",
            ),
            (false, false) => self.type1.failure(name, system),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{recorded::Recorded, report::Verdict};
    use super::*;

    fn verdicts(machine: &Recorded, user: &User) -> Vec<Verdict> {
        let files = machine.files();
        let system = System::read(&files);
        let checks =
            VfioHost::read(&files, &system, &KernelOptions::default()).checks(&system, user);
        checks.iter().map(|check| check.verdict).collect()
    }

    #[test]
    fn modules_on_disk_are_enough_for_root_and_not_for_others() {
        let machine = Recorded::new();
        machine.file("proc/sys/kernel/osrelease", "6.1\n");
        let [pci, type1] = [
            "kernel/drivers/vfio/pci/vfio-pci.ko",
            "kernel/drivers/vfio/vfio_iommu_type1.ko",
        ];
        machine.file(&format!("lib/modules/6.1/{pci}"), "");
        machine.file(&format!("lib/modules/6.1/{type1}"), "");
        machine.file("lib/modules/6.1/modules.dep", format!("{pci}:\n{type1}:\n"));
        let root = User::root();
        assert_eq!(verdicts(&machine, &root), [Verdict::Good; 2]);
        assert_eq!(verdicts(&machine, &User::ada()), [Verdict::Failure; 2]);
        machine.folder("sys/bus/pci/drivers/vfio-pci");
        machine.folder("sys/module/vfio_iommu_type1");
        machine.file("dev/vfio/vfio", "");
        assert_eq!(verdicts(&machine, &User::ada()), [Verdict::Good; 2]);
    }

    #[test]
    fn either_interface_is_enough() {
        let machine = Recorded::new();
        machine.folder("sys/bus/pci/drivers/vfio-pci");
        assert_eq!(verdicts(&machine, &User::ada())[1], Verdict::Failure);
        machine.file("dev/iommu", "");
        assert_eq!(verdicts(&machine, &User::ada())[1], Verdict::Good);
    }
}
