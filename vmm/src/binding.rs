//! `viaduct bind`, `unbind` and `restore`: the host's side, without a machine.

use std::{error::Error, process::ExitCode};

use devices::pci::Bdf;
use vfio::host::{BindOptions, DeviceError, Host, Outcome, ResolveError};

use crate::{
    cli::binding::{BindArgs, RestoreArgs, UnbindArgs},
    signals::Signals,
};

/// How a command ends: with an exit status, or with an error whose text is for a person.
pub type Ended = Result<ExitCode, Box<dyn Error>>;

/// `viaduct bind DEV...`
pub fn bind(args: &BindArgs) -> Ended {
    let host = Host::new();
    let devices = resolve(&host, &args.devices)?;
    let options = BindOptions {
        force: args.force,
        guest: None,
    };
    if args.dry_run {
        host.check_take(&devices, &options)?;
        host.plan(&devices)
            .iter()
            .for_each(|step| println!("{step}"));
        return Ok(ExitCode::SUCCESS);
    }
    // A signal in the middle would leave a device between two drivers.
    let before = drivers(&host, &devices)?;
    let _held = Signals::block()?;
    host.bind(&devices, &options)?;
    for (device, before) in devices.iter().zip(before) {
        report(&host, *device, before)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `viaduct unbind DEV...`
pub fn unbind(args: &UnbindArgs) -> Ended {
    let host = Host::new();
    let devices = resolve(&host, &args.devices)?;
    let _held = Signals::block()?;
    // One by one, so that what was done before an error is told.
    for device in devices {
        let before = host.device(device)?.driver;
        host.unbind(&[device], args.driver.as_deref())?;
        report(&host, device, before)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `viaduct restore`
pub fn restore(_: &RestoreArgs) -> Ended {
    let _held = Signals::block()?;
    let restored = Host::new().restore()?;
    if restored.is_empty() {
        println!("nothing to restore: every driver is where it was");
    }
    restored.iter().for_each(|device| println!("{device}"));
    let failed = restored
        .iter()
        .any(|device| matches!(device.outcome, Outcome::Failed(_)));
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn drivers(host: &Host, devices: &[Bdf]) -> Result<Vec<Option<String>>, DeviceError> {
    let drivers = devices.iter().map(|device| host.device(*device));
    drivers.map(|facts| Ok(facts?.driver)).collect()
}

/// Prints where the device was and where it is.
fn report(host: &Host, device: Bdf, before: Option<String>) -> Result<(), DeviceError> {
    let now = host.device(device)?.driver;
    println!("{device}: {}", moved(before.as_deref(), now.as_deref()));
    Ok(())
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
