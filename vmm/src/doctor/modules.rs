//! The kernel's modules: whether one is in the kernel, on disk, or nowhere; and how a distribution gets it back.

use super::{
    files::Files,
    kernel_options::KernelOptions,
    packages,
    report::{Check, Fix},
    system::System,
};

/// Where a module is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the kernel, loaded or built in.
    Kernel,
    /// On disk, where modprobe finds it.
    Disk,
    /// On disk, but not in the index that modprobe looks into.
    NotIndexed,
    /// Kept from being loaded by a line in modprobe's configuration.
    Blocked,
    /// Nowhere: the kernel was built without it.
    NotBuilt,
    /// Nowhere.
    Nowhere,
    /// Nowhere, and neither are the other modules of the running kernel.
    NoModules,
}

/// A module, and where it is.
#[derive(Debug, Clone)]
pub(super) struct Module {
    pub(super) name: &'static str,
    pub(super) place: Place,
    /// The configuration that blocks it.
    blocked_by: Option<String>,
}

/// The modules that matter, the options that they are built by, and where in a kernel's folder they are.
const KNOWN: [(&str, &str, &str); 4] = [
    ("kvm_intel", "KVM_INTEL", "kernel/arch/x86/kvm/kvm-intel.ko"),
    ("kvm_amd", "KVM_AMD", "kernel/arch/x86/kvm/kvm-amd.ko"),
    (
        "vfio_pci",
        "VFIO_PCI",
        "kernel/drivers/vfio/pci/vfio-pci.ko",
    ),
    (
        "vfio_iommu_type1",
        "VFIO_IOMMU_TYPE1",
        "kernel/drivers/vfio/vfio_iommu_type1.ko",
    ),
];
/// As it is, or compressed by any of what the kernel's build knows (CONFIG_MODULE_COMPRESS).
const ENDINGS: [&str; 4] = ["", ".xz", ".zst", ".gz"];
/// Where modprobe's configuration is (modprobe.d(5)).
const CONFIGURATION: [&str; 4] = [
    "etc/modprobe.d",
    "run/modprobe.d",
    "usr/local/lib/modprobe.d",
    "usr/lib/modprobe.d",
];

impl Module {
    /// Looks for one of [`KNOWN`].
    pub(super) fn find(
        files: &Files,
        system: &System,
        options: &KernelOptions,
        name: &'static str,
    ) -> Self {
        let mut module = Self {
            name,
            place: Place::Kernel,
            blocked_by: None,
        };
        // Also of a module that is built in, if it has parameters or a version.
        if !files.exists(&format!("sys/module/{name}")) {
            module.blocked_by = blocked_by(files, name);
            module.place = on_disk(files, system, options, name);
            if module.place == Place::Disk && module.blocked_by.is_some() {
                module.place = Place::Blocked;
            }
        }
        module
    }

    /// Whether it is in the kernel, or modprobe can put it there.
    pub(super) fn is_at_hand(&self) -> bool {
        matches!(self.place, Place::Kernel | Place::Disk)
    }

    /// For one that is not in the kernel: why, and what to do about it.
    pub(super) fn failure(&self, check: &'static str, system: &System) -> Check {
        let name = self.name;
        let release = &system.release;
        match self.place {
            Place::Kernel | Place::Disk => {
                Check::failure(check, format!("the module {name} is not loaded"))
                    .fix(Fix::root("load it", format!("modprobe {name}")))
            }
            Place::NotIndexed => Check::failure(
                check,
                format!("modprobe does not know the module {name}, which is on disk"),
            )
            .fix(Fix::root("have its index made anew", format!("depmod -a && modprobe {name}"))),
            Place::Blocked => {
                let file = self.blocked_by.as_deref().unwrap_or_default();
                Check::failure(check, format!("/{file} keeps the module {name} from being loaded"))
                    .fix(Fix::root(
                        "take the line out, and load it",
                        format!("sed -i -E 's/^ *install +{}( .*)?$/#&/' /{file} && modprobe {name}", either(name)),
                    ))
            }
            Place::NotBuilt => {
                Check::failure(check, format!("the kernel {release} was built without {name}"))
            }
            Place::Nowhere => Check::failure(
                check,
                format!("the kernel {release} has no module {name}"),
            )
            .fixes(packages::modules(system, name)),
            Place::NoModules => Check::failure(
                check,
                format!("the modules of the running kernel {release} are not installed"),
            )
            .why("the kernel has been upgraded since the last start, or its modules are in no package here")
            .fix(Fix::root("start the kernel that is installed", "reboot"))
            .fixes(packages::modules(system, name)),
        }
    }
}

/// modprobe takes hyphens and underscores for one another.
fn either(name: &str) -> String {
    name.replace('_', "[-_]")
}

fn on_disk(files: &Files, system: &System, options: &KernelOptions, name: &str) -> Place {
    let Some((_, option, path)) = KNOWN.iter().find(|(known, ..)| *known == name) else {
        return Place::Nowhere;
    };
    if options.lack(option) {
        return Place::NotBuilt;
    }
    let dir = format!("lib/modules/{}", system.release);
    if system.release.is_empty() || !files.exists(&dir) {
        return Place::NoModules;
    }
    let builtin = files.text(&format!("{dir}/modules.builtin"));
    if builtin.is_some_and(|list| list.lines().any(|line| line == *path)) {
        return Place::Kernel;
    }
    let mut there = ENDINGS
        .iter()
        .filter(|ending| files.exists(&format!("{dir}/{path}{ending}")));
    let Some(ending) = there.next() else {
        return Place::Nowhere;
    };
    let line = format!("{path}{ending}:");
    let index = files.text(&format!("{dir}/modules.dep"));
    if index.is_some_and(|index| index.lines().any(|one| one.starts_with(&line))) {
        Place::Disk
    } else {
        Place::NotIndexed
    }
}

/// The file with a line `install NAME /bin/false` or the like. A `blacklist` line is about aliases only: modprobe still loads the
/// module by its name, which is how we ask for it (modprobe.d(5)).
fn blocked_by(files: &Files, name: &str) -> Option<String> {
    let blocks = |line: &str| {
        let mut words = line.split_whitespace();
        let install = words.next() == Some("install");
        let same = words
            .next()
            .is_some_and(|word| word.replace('-', "_") == name);
        install && same && words.any(|word| word.ends_with("/false") || word.ends_with("/true"))
    };
    for dir in CONFIGURATION {
        for file in files
            .names(dir)
            .into_iter()
            .filter(|name| name.ends_with(".conf"))
        {
            let path = format!("{dir}/{file}");
            let text = files.text(&path).unwrap_or_default();
            if text.lines().any(blocks) {
                return Some(path);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::recorded::Recorded;
    use super::*;

    const DIR: &str = "lib/modules/6.12.9-amd64";

    fn system(machine: &Recorded) -> System {
        machine.file("proc/sys/kernel/osrelease", "6.12.9-amd64\n");
        machine.file("etc/os-release", "ID=debian\n");
        System::read(&machine.files())
    }

    fn find(machine: &Recorded) -> Module {
        let options = KernelOptions::default();
        Module::find(&machine.files(), &system(machine), &options, "vfio_pci")
    }

    fn fix(machine: &Recorded) -> Option<String> {
        let check = find(machine).failure("VFIO", &system(machine));
        check.fixes.into_iter().next()?.command
    }

    #[test]
    fn a_module_is_in_the_kernel_on_disk_or_nowhere() {
        let machine = Recorded::new();
        assert_eq!(find(&machine).place, Place::NoModules);
        assert_eq!(fix(&machine).as_deref(), Some("reboot"));
        machine.folder(DIR);
        assert_eq!(find(&machine).place, Place::Nowhere);
        let command =
            "apt-get install -y --reinstall linux-image-6.12.9-amd64 && modprobe vfio_pci";
        assert_eq!(fix(&machine).as_deref(), Some(command));
        let path = "kernel/drivers/vfio/pci/vfio-pci.ko";
        machine.file(&format!("{DIR}/{path}.zst"), "");
        assert_eq!(find(&machine).place, Place::NotIndexed);
        assert_eq!(
            fix(&machine).as_deref(),
            Some("depmod -a && modprobe vfio_pci")
        );
        machine.file(
            &format!("{DIR}/modules.dep"),
            format!("a.ko:\n{path}.zst: b.ko.zst\n"),
        );
        assert_eq!(find(&machine).place, Place::Disk);
        assert_eq!(fix(&machine).as_deref(), Some("modprobe vfio_pci"));
        machine.file(&format!("{DIR}/modules.builtin"), format!("{path}\n"));
        assert_eq!(find(&machine).place, Place::Kernel);
    }

    #[test]
    fn a_module_that_the_configuration_blocks_is_freed_by_what_is_printed() {
        let machine = Recorded::new();
        let path = "kernel/drivers/vfio/pci/vfio-pci.ko";
        machine.file(&format!("{DIR}/{path}"), "");
        machine.file(&format!("{DIR}/modules.dep"), format!("{path}:\n"));
        machine.file("etc/modprobe.d/a.conf", "blacklist vfio-pci\n");
        assert_eq!(find(&machine).place, Place::Disk);
        machine.file(
            "etc/modprobe.d/b.conf",
            "# x\n install vfio-pci /bin/false\n",
        );
        assert_eq!(find(&machine).place, Place::Blocked);
        let command = fix(&machine).unwrap();
        let sed = command.split(" && ").next().unwrap();
        let here = format!(" {}/etc/", machine.path("").display());
        let typed = sed.replace(" /etc/", &here.replace("//", "/"));
        let status = std::process::Command::new("sh")
            .arg("-c")
            .arg(&typed)
            .status();
        assert!(status.unwrap().success(), "{typed}");
        assert_eq!(find(&machine).place, Place::Disk);
    }
}
