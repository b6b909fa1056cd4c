//! The engine that QEMU runs L1 on: the runner's KVM if it offers VMX or SVM to a guest, emulation otherwise.
//!
//! KVM itself is asked (KVM_GET_SUPPORTED_CPUID). That /dev/kvm opens is not enough: a software KVM opens as well, and a stock
//! kernel dies on it. Neither is vmx or svm in /proc/cpuinfo: with `nested=0` KVM keeps it from its guests.

use std::sync::OnceLock;
use std::{fs, io};

use kvm_ioctls::Kvm;
use vmm_sys_util::errno;

/// Intel SDM vol. 2, CPUID leaf 1: ECX bit 5 is VMX.
const VMX: (u32, u32) = (1, 1 << 5);
/// AMD APM vol. 3, CPUID leaf 8000_0001: ECX bit 2 is SVM.
const SVM: (u32, u32) = (0x8000_0001, 1 << 2);

/// What QEMU runs L1 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The runner's KVM.
    Kvm,
    /// QEMU's emulator, for this reason.
    Emulation(String),
}

impl Engine {
    /// The engine for this machine. It is determined once.
    pub(crate) fn of_runner() -> &'static Self {
        static ENGINE: OnceLock<Engine> = OnceLock::new();
        ENGINE.get_or_init(|| {
            let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
            Self::choose(guest_cpuid(), &read("/proc/cpuinfo"), |module| {
                read(&format!("/sys/module/{module}/parameters/nested"))
            })
        })
    }

    /// Decides from the CPUID leaves, with their ECX, that KVM offers to a guest. The text of /proc/cpuinfo and the `nested`
    /// parameter of a KVM module only serve the reason.
    fn choose(
        offered: io::Result<Vec<(u32, u32)>>,
        cpuinfo: &str,
        nested: impl Fn(&str) -> String,
    ) -> Self {
        let leaves = match offered {
            Ok(leaves) => leaves,
            Err(error) => return Self::Emulation(format!("/dev/kvm: {error}")),
        };
        let offers = |(leaf, bit)| {
            leaves
                .iter()
                .any(|(number, ecx)| *number == leaf && ecx & bit != 0)
        };
        if offers(VMX) || offers(SVM) {
            return Self::Kvm;
        }
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
        let has = |flag| {
            flags
                .unwrap_or_default()
                .split_whitespace()
                .any(|word| word == flag)
        };
        let (name, module) = match (has("vmx"), has("svm")) {
            (true, _) => ("VMX", "kvm_intel"),
            (_, true) => ("SVM", "kvm_amd"),
            _ => return Self::Emulation("this processor has neither vmx nor svm".into()),
        };
        let why = match nested(module).trim() {
            "N" | "0" => format!(
                "{module} has nested=0, so guests have no {name}; to change it: modprobe -r {module} && modprobe {module} nested=1"
            ),
            _ => format!("KVM does not offer {name} to guests"),
        };
        Self::Emulation(why)
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kvm => write!(f, "KVM"),
            Self::Emulation(why) => write!(f, "emulation ({why})"),
        }
    }
}

/// The CPUID leaves that KVM can give a guest, each with its ECX.
fn guest_cpuid() -> io::Result<Vec<(u32, u32)>> {
    let system = |error: errno::Error| io::Error::from_raw_os_error(error.errno());
    let cpuid = Kvm::new()
        .and_then(|kvm| kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES))
        .map_err(system)?;
    let leaves = cpuid.as_slice().iter();
    Ok(leaves.map(|leaf| (leaf.function, leaf.ecx)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMD: &str = "processor\t: 0\nmodel name\t: AMD EPYC 7313\nflags\t\t: fpu cx8 svm extapic\nbugs\t\t: spectre_v1\n";
    const INTEL: &str = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu vmx ssse3\nvmx flags\t: vnmi\n";
    const NEITHER: &str = "processor\t: 0\nflags\t\t: fpu hypervisor\nvmx flags\t: svm vmx\n";
    /// ECX of leaves 1 and 8000_0001, as KVM gave them with and without the extension.
    const SOFTWARE: [(u32, u32); 2] = [(1, 0x8120_2000), (0x8000_0001, 0x0040_0393)];
    const WITH_SVM: [(u32, u32); 2] = [(1, 0x8120_2000), (0x8000_0001, 0x0040_0397)];
    const WITH_VMX: [(u32, u32); 2] = [(1, 0x8120_2020), (0x8000_0001, 0x0000_0121)];

    fn choose(leaves: &[(u32, u32)], cpuinfo: &str, nested: &str) -> Engine {
        Engine::choose(Ok(leaves.to_vec()), cpuinfo, |_| nested.to_owned())
    }

    fn reason(engine: &Engine) -> &str {
        match engine {
            Engine::Kvm => panic!("KVM was taken"),
            Engine::Emulation(why) => why,
        }
    }

    #[test]
    fn kvm_is_taken_if_it_offers_vmx_or_svm_to_a_guest() {
        assert_eq!(choose(&WITH_SVM, AMD, "1\n"), Engine::Kvm);
        assert_eq!(choose(&WITH_VMX, INTEL, "Y\n"), Engine::Kvm);
    }

    #[test]
    fn with_nested_off_emulation_is_taken_and_the_reason_names_module_and_command() {
        for (cpuinfo, module, off) in [(AMD, "kvm_amd", "0\n"), (INTEL, "kvm_intel", "N\n")] {
            let engine = Engine::choose(Ok(SOFTWARE.to_vec()), cpuinfo, |asked| {
                if asked == module {
                    off.into()
                } else {
                    String::new()
                }
            });
            assert!(reason(&engine).contains(&format!("modprobe {module} nested=1")));
        }
    }

    #[test]
    fn a_processor_without_the_extension_is_the_reason_if_it_is() {
        let engine = choose(&SOFTWARE, NEITHER, "");
        assert_eq!(reason(&engine), "this processor has neither vmx nor svm");
    }

    #[test]
    fn a_kvm_that_keeps_the_extension_for_another_reason_is_not_blamed_on_nested() {
        let engine = choose(&SOFTWARE, AMD, "1\n");
        assert_eq!(reason(&engine), "KVM does not offer SVM to guests");
    }

    #[test]
    fn the_error_of_opening_kvm_is_the_reason() {
        let error = io::Error::from_raw_os_error(libc::ENOENT);
        let engine = Engine::choose(Err(error), AMD, |_| String::new());
        assert!(reason(&engine).starts_with("/dev/kvm: No such file"));
    }
}
