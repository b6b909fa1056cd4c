//! `viaduct doctor`: whether this host, and a device of it, is ready, and what to type where it is not.
//!
//! Each subject has a file: it reads its facts from the machine's files, and says in checks what they mean, which no longer looks at
//! anything. Nothing is changed and nothing is loaded: what is not known is said to be unknown.

mod boot_words;
mod delivery;
mod device;
mod files;
mod iommu;
mod kernel_options;
mod kvm;
mod limits;
mod modules;
mod packages;
mod processor;
#[cfg(test)]
mod recorded;
mod remapping;
mod report;
mod system;
mod text;
mod vfio_host;

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use vfio::host::Host;

use self::{
    boot_words::Loader,
    delivery::Delivery,
    files::Files,
    iommu::Iommu,
    kernel_options::KernelOptions,
    kvm::Kvm,
    limits::Limits,
    processor::Processor,
    remapping::Remapping,
    report::{Check, Report, Section},
    system::{System, User},
    vfio_host::VfioHost,
};
use crate::{
    binding::{Ended, resolve},
    cli::doctor::DoctorArgs,
};

/// `viaduct doctor`
pub fn doctor(args: &DoctorArgs) -> Ended {
    let files = Files::of_this_machine();
    let (system, user) = (System::read(&files), User::read(&files));
    let host = Host::new();
    let devices = resolve(&host, &args.devices)?;
    let mut sections = vec![Section {
        of: "this host".into(),
        checks: of_host(&files, &system, &user),
    }];
    if !devices.is_empty() {
        sections.extend(device::sections(&host, &files, &devices, &user)?);
    }
    let report = Report::of(sections, user.is_root);
    let printed = if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        let mut text = String::new();
        text::write(&report, colours(), &mut text)?;
        text
    };
    io::stdout().write_all(printed.as_bytes())?;
    Ok(if report.ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What there is to check of a host, in the order in which it has to be put right.
fn of_host(files: &Files, system: &System, user: &User) -> Vec<Check> {
    let processor = Processor::read(files);
    let loader = Loader::find(files, system);
    let iommu = Iommu::read(files);
    let remapping = Remapping::read(files, &iommu);
    let options = KernelOptions::read(files, system);
    let kvm = Kvm::read(files, system, &options, &processor);
    let delivery = Delivery::read(files, &iommu, &processor);
    let mut checks = processor.checks(system);
    checks.push(kvm.check(&processor, system, user));
    checks.extend(iommu.checks(system, &processor, loader));
    checks.push(remapping.check(system, &iommu, loader));
    checks.extend(VfioHost::read(files, system, &options).checks(system, user));
    checks.extend(options.checks(system));
    checks.extend(Limits::read(files).checks(user));
    checks.extend(delivery.checks(&processor, system, &remapping));
    checks
}

/// <https://no-color.org>: whatever its value, if it has one.
fn colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !unwanted
}
