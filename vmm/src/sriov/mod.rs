//! `viaduct sriov`: virtual functions shown, made, removed and set.

mod report;

use std::process::ExitCode;

use devices::pci::Bdf;
use vfio::host::{
    Host,
    sriov::{NumberOptions, SriovError},
};

use crate::{binding::Ended, cli::sriov::SriovArgs, output, signals::Signals};

/// `viaduct sriov PF`
pub fn sriov(args: &SriovArgs) -> Ended {
    let host = Host::new();
    let physical = host.resolve(&args.physical)?;
    // What is no physical function is told so first.
    let before = host.physical(physical)?;
    if args.dry_run {
        print_plan(&host, physical, args)?;
        return Ok(ExitCode::SUCCESS);
    }
    let changes = args.vfs.is_some() || args.vf.is_some();
    if !changes {
        report::print(&before, args.json);
        return Ok(ExitCode::SUCCESS);
    }
    // A signal in the middle would leave half of it done.
    let _held = Signals::block()?;
    let done = change(&host, physical, args);
    // What was done before an error is told, too.
    let after = host.physical(physical)?;
    if done.is_ok() || after != before {
        report::print(&after, args.json);
    }
    done?;
    Ok(ExitCode::SUCCESS)
}

fn options(args: &SriovArgs) -> NumberOptions {
    NumberOptions {
        probe: args.probe.map(|switch| switch.0),
        force: args.force,
    }
}

fn change(host: &Host, physical: Bdf, args: &SriovArgs) -> Result<(), SriovError> {
    if let Some(number) = args.vfs {
        host.set_number(physical, number, options(args))?;
    }
    if let Some(index) = args.vf {
        for setting in args.settings.all() {
            host.set_function(physical, index, setting)?;
        }
    }
    Ok(())
}

fn print_plan(host: &Host, physical: Bdf, args: &SriovArgs) -> Result<(), SriovError> {
    if let Some(number) = args.vfs {
        let steps = host.number_plan(physical, number, options(args))?;
        steps.iter().for_each(output::line);
    }
    if let Some(index) = args.vf {
        for setting in args.settings.all() {
            let enabled = args.vfs;
            println!(
                "{}",
                host.set_function_plan(physical, index, enabled, setting)?
            );
        }
    }
    Ok(())
}
