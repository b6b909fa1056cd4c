//! `viaduct bind`, `unbind` and `restore`: the host's side, without a machine.

use std::{error::Error, process::ExitCode};

use devices::pci::Bdf;
use vfio::host::{BindOptions, Host, Outcome, Planned, ResolveError, Unbound};

use crate::{
    cli::binding::{BindArgs, RestoreArgs, UnbindArgs},
    output,
    signals::Signals,
};

/// How a command ends: with an exit status, or with an error whose text is for a person.
pub type Ended = Result<ExitCode, Box<dyn Error>>;

/// `viaduct bind DEV...`
pub fn bind(args: &BindArgs) -> Ended {
    let host = Host::new();
    let devices = named(&host, &args.devices, args.group)?;
    let options = BindOptions {
        force: args.force,
        driver: args.driver.clone(),
        ..BindOptions::default()
    };
    if args.dry_run {
        let steps = host.plan_bind(&devices, &options)?;
        steps.iter().for_each(output::line);
        return Ok(ExitCode::SUCCESS);
    }
    // A signal in the middle would leave a device between two drivers.
    let _held = Signals::block()?;
    let before: Vec<_> = devices
        .iter()
        .map(|&device| host.driver_of(device))
        .collect();
    host.bind(&devices, &options)?;
    for (&device, before) in devices.iter().zip(before) {
        let now = host.driver_of(device);
        output::line(format!(
            "{device}: {}",
            moved(before.as_deref(), now.as_deref())
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// `viaduct unbind DEV...`
pub fn unbind(args: &UnbindArgs) -> Ended {
    let host = Host::new();
    let devices = named(&host, &args.devices, args.group)?;
    let driver = args.driver.as_deref();
    if args.dry_run {
        return Ok(print_plans(&host.plan_unbind(&devices, driver)?));
    }
    let _held = Signals::block()?;
    let mut failed = false;
    for Unbound { device, moved: how } in host.unbind(&devices, driver)? {
        match how {
            Ok((before, now)) => {
                output::line(format!(
                    "{device}: {}",
                    moved(before.as_deref(), now.as_deref())
                ));
            }
            Err(error) => {
                eprintln!("viaduct: {error}");
                failed = true;
            }
        }
    }
    Ok(status(failed))
}

/// `viaduct restore`
pub fn restore(args: &RestoreArgs) -> Ended {
    let host = Host::new();
    if args.dry_run {
        return Ok(print_plans(&host.plan_restore()?));
    }
    let _held = Signals::block()?;
    let restored = host.restore()?;
    if restored.is_empty() {
        output::line("nothing to restore: every driver is where it was");
    }
    restored.iter().for_each(output::line);
    let failed = restored
        .iter()
        .any(|device| matches!(device.outcome, Outcome::Failed(_)));
    Ok(status(failed))
}

fn status(failed: bool) -> ExitCode {
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Commands on stdout, which can be given to a shell; on stderr, what keeps devices where they are.
fn print_plans(plans: &[Planned]) -> ExitCode {
    let mut failed = false;
    for Planned { commands, .. } in plans {
        match commands {
            Ok(commands) => commands.iter().for_each(output::line),
            Err(error) => {
                eprintln!("viaduct: {error}");
                failed = true;
            }
        }
    }
    status(failed)
}

fn moved(before: Option<&str>, now: Option<&str>) -> String {
    let name = |driver: Option<&str>| driver.unwrap_or("no driver").to_owned();
    if before == now {
        return format!("{}, as before", name(now));
    }
    format!("{} -> {}", name(before), name(now))
}

pub(crate) fn resolve(host: &Host, names: &[String]) -> Result<Vec<Bdf>, ResolveError> {
    names.iter().map(|name| host.resolve(name)).collect()
}

fn named(host: &Host, names: &[String], groups: bool) -> Result<Vec<Bdf>, Box<dyn Error>> {
    let devices = resolve(host, names)?;
    if groups {
        return Ok(host.whole_groups(&devices)?);
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_reported_with_where_it_was_and_where_it_is() {
        assert_eq!(moved(Some("igbvf"), Some("vfio-pci")), "igbvf -> vfio-pci");
        assert_eq!(moved(None, Some("vfio-pci")), "no driver -> vfio-pci");
        assert_eq!(
            moved(Some("vfio-pci"), Some("vfio-pci")),
            "vfio-pci, as before"
        );
    }
}
