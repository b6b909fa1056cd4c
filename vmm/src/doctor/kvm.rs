//! KVM: whether /dev/kvm is there, may be opened, and answers.

use std::io;

use super::{
    files::Files,
    kernel_options::KernelOptions,
    modules::Module,
    processor::Processor,
    report::{Check, Fix},
    system::{System, User, name_of},
};

/// What is known of KVM.
#[derive(Debug)]
pub(super) struct Kvm {
    module: Option<Module>,
    there: bool,
    /// What opening it said.
    opens: io::Result<()>,
    /// Which group it belongs to, if that one may use it.
    group: Option<String>,
    /// What it lacks, where it could be asked.
    lacks: Option<String>,
}

const NAME: &str = "KVM";

impl Kvm {
    pub(super) fn read(
        files: &Files,
        system: &System,
        options: &KernelOptions,
        processor: &Processor,
    ) -> Self {
        let groups = files.text("etc/group").unwrap_or_default();
        let owner = files.owner("dev/kvm");
        let group = owner.filter(|(_, gid, mode)| *gid != 0 && mode & 0o060 == 0o060);
        let opens = files.opens("dev/kvm");
        let asked = opens.is_ok() && files.are_this_machines();
        Self {
            module: processor
                .kvm_module()
                .map(|name| Module::find(files, system, options, name)),
            there: files.exists("dev/kvm"),
            group: group.and_then(|(_, gid, _)| name_of(&groups, &gid.to_string())),
            lacks: asked.then(lacks).flatten(),
            opens,
        }
    }

    pub(super) fn check(&self, processor: &Processor, system: &System, user: &User) -> Check {
        if !self.there {
            return self.absent(processor, system);
        }
        match (&self.opens, &self.lacks) {
            (Ok(()), None) => Check::good(NAME, "/dev/kvm opens, and has all that is needed"),
            (Ok(()), Some(lacks)) => {
                Check::failure(NAME, lacks.clone()).fix(Fix::by_hand("boot a later kernel"))
            }
            (Err(error), _) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.forbidden(user)
            }
            (Err(error), _) => Check::failure(NAME, format!("/dev/kvm does not open: {error}"))
                .fix(Fix::root("see whether it says why", "dmesg | grep -i kvm")),
        }
    }

    fn absent(&self, processor: &Processor, system: &System) -> Check {
        if !processor.virtualizes() {
            let check = Check::failure(NAME, "there is no /dev/kvm");
            return check.why("it comes with the processor's virtualisation");
        }
        match &self.module {
            Some(module) => module.failure(NAME, system),
            None => {
                Check::failure(NAME, "there is no /dev/kvm").why("this processor is unknown to KVM")
            }
        }
    }

    fn forbidden(&self, user: &User) -> Check {
        let name = &user.name;
        let check = Check::failure(NAME, format!("/dev/kvm may not be opened by {name}"));
        match &self.group {
            Some(group) => check.why(format!("it is for the group {group}")).fix(Fix::root(
                format!("join that group, then log in again (or, in this shell: newgrp {group})"),
                format!("usermod -aG {group} {name}"),
            )),
            None => check.why("it is for root alone").fix(Fix::root(
                "give it to the group kvm, and join that, then log in again",
                format!("groupadd -f -r kvm && chown root:kvm /dev/kvm && chmod 660 /dev/kvm && usermod -aG kvm {name}"),
            )),
        }
    }
}

/// What a machine would miss of this KVM.
fn lacks() -> Option<String> {
    let error = crate::kvm::check().err()?.to_string();
    error.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::{recorded::Recorded, report::Verdict};
    use super::*;

    fn check(machine: &Recorded, opens: io::Result<()>) -> Check {
        let files = machine.files();
        let system = System::read(&files);
        let processor = Processor::read(&files);
        let mut kvm = Kvm::read(&files, &system, &KernelOptions::default(), &processor);
        kvm.opens = opens;
        let user = User::ada();
        kvm.check(&processor, &system, &user)
    }

    #[test]
    fn without_the_processors_help_there_is_nothing_to_load() {
        let machine = Recorded::new();
        machine.file("proc/cpuinfo", "vendor_id : GenuineIntel\nflags : fpu\n");
        let check = check(&machine, Ok(()));
        assert_eq!(check.verdict, Verdict::Failure);
        assert!(check.fixes.is_empty(), "{check:?}");
    }

    #[test]
    fn a_module_that_is_not_loaded_is_named_by_the_processors_maker() {
        let machine = Recorded::new();
        machine.file(
            "proc/cpuinfo",
            "vendor_id : AuthenticAMD\nflags : fpu svm\n",
        );
        machine.file("proc/sys/kernel/osrelease", "6.1\n");
        machine.file("lib/modules/6.1/kernel/arch/x86/kvm/kvm-amd.ko.xz", "");
        machine.file(
            "lib/modules/6.1/modules.dep",
            "kernel/arch/x86/kvm/kvm-amd.ko.xz:\n",
        );
        let check = check(&machine, Ok(()));
        assert_eq!(check.fixes[0].command.as_deref(), Some("modprobe kvm_amd"));
    }

    #[test]
    fn whoever_may_not_open_it_is_told_of_the_group_that_may() {
        let machine = Recorded::new();
        machine.file(
            "proc/cpuinfo",
            "vendor_id : AuthenticAMD\nflags : fpu svm\n",
        );
        machine.file("dev/kvm", "");
        let denied = || Err(io::ErrorKind::PermissionDenied.into());
        let alone = check(&machine, denied());
        assert_eq!(alone.why.as_deref(), Some("it is for root alone"));
        let mut kvm = Kvm::read(
            &machine.files(),
            &System::default(),
            &KernelOptions::default(),
            &Processor::default(),
        );
        kvm.opens = denied();
        kvm.group = Some("kvm".into());
        let user = User::ada();
        let check = kvm.check(&Processor::default(), &System::default(), &user);
        let command = check.fixes[0].command.as_deref();
        assert_eq!(command, Some("usermod -aG kvm ada"));
    }
}
