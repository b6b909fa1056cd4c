//! `viaduct bind`, `unbind` and `restore`: the host's side, without a machine.

use std::{error::Error, process::ExitCode};

use devices::pci::Bdf;
use vfio::host::{BindOptions, Host, Outcome, ResolveError};

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
    let _held = Signals::block()?;
    host.bind(&devices, &options)?;
    Ok(ExitCode::SUCCESS)
}

/// `viaduct unbind DEV...`
pub fn unbind(args: &UnbindArgs) -> Ended {
    let host = Host::new();
    let devices = resolve(&host, &args.devices)?;
    let _held = Signals::block()?;
    host.unbind(&devices, args.driver.as_deref())?;
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

fn resolve(host: &Host, names: &[String]) -> Result<Vec<Bdf>, ResolveError> {
    names.iter().map(|name| host.resolve(name)).collect()
}
