//! The single steps by which a device changes its driver, and in which order they must come.

use std::{fmt, io};

use devices::pci::Bdf;

use super::{Holder, Host, attributes::Request, is_vfio, journal::Entry, sysfs};

/// The driver that devices for guests are bound to.
pub(super) const VFIO_PCI: &str = "vfio-pci";

/// One write to sysfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Reserve the device for a driver, or for none.
    Override(Bdf, Option<String>),
    /// Take it from the driver that has it.
    Unbind(Bdf, String),
    /// Give it to this driver.
    Bind(Bdf, String),
    /// Give it to whichever driver wants it.
    Probe(Bdf),
}

/// A step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The kernel refused.
    #[error(
        "{device}: {what}: {cause}\n  the step was:  {command}\n  see what the driver said:  dmesg | tail"
    )]
    Refused {
        /// Which device.
        device: Bdf,
        /// What was to be done.
        what: &'static str,
        /// The same as a command.
        command: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel does not come back from it.
    #[error(
        "{device}: {what} has not ended after {seconds} s{}: {}\n  it ends by itself once the device is let go; then:  viaduct restore\n  see where it is in the kernel:  cat /proc/{pid}/stack",
        within(inside.as_deref()),
        waits_for(holders)
    )]
    Sleeps {
        /// Which device.
        device: Bdf,
        /// What was to be done.
        what: &'static str,
        /// How long we waited.
        seconds: u64,
        /// The process that does it, which is left behind.
        pid: u32,
        /// The kernel's function that it sleeps in.
        inside: Option<String>,
        /// Who has the device open.
        holders: Vec<Holder>,
    },
    /// There is no process to do it in.
    #[error(
        "{device}: {what}: no process to do it in: {cause}\n  end other processes, or allow more:  ulimit -u"
    )]
    NoProcess {
        /// Which device.
        device: Bdf,
        /// What was to be done.
        what: &'static str,
        /// Why not.
        cause: io::Error,
    },
    /// No step failed, but the device is not where it should be.
    #[error("{device}: {wanted} did not take it, {}\n  see what the driver said:  dmesg | tail", now(found.as_deref()))]
    NotBound {
        /// Which device.
        device: Bdf,
        /// Which driver should have it.
        wanted: String,
        /// Which one has.
        found: Option<String>,
    },
    /// The driver that should have it is not in this kernel.
    #[error(
        "{device}: there is no driver '{driver}' in this kernel: {said}\n  load the module it is in:  modprobe {driver}"
    )]
    NoDriver {
        /// Which device.
        device: Bdf,
        /// Which driver.
        driver: String,
        /// What the module loader said.
        said: String,
    },
}

fn within(function: Option<&str>) -> String {
    function.map_or(String::new(), |name| format!(", in the kernel's {name}"))
}

fn waits_for(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "the driver waits for whoever uses the device, and nobody is to be seen".into();
    }
    let names: Vec<String> = holders.iter().map(Holder::to_string).collect();
    format!("the driver waits for {}", names.join(" and "))
}

fn now(driver: Option<&str>) -> String {
    driver.map_or("it has no driver now".into(), |name| {
        format!("it is bound to {name}")
    })
}

impl Step {
    fn device(&self) -> Bdf {
        match self {
            Self::Override(device, _)
            | Self::Unbind(device, _)
            | Self::Bind(device, _)
            | Self::Probe(device) => *device,
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Self::Override(_, Some(_)) => "reserving it for a driver",
            Self::Override(_, None) => "ending its reservation",
            Self::Unbind(..) => "taking it from its driver",
            Self::Bind(..) | Self::Probe(_) => "giving it to a driver",
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Override(_, Some(driver)) => format!("{driver}\n"),
            // An empty write would never reach the attribute: a newline is what clears it.
            Self::Override(_, None) => "\n".into(),
            Self::Unbind(device, _) | Self::Bind(device, _) | Self::Probe(device) => {
                device.to_string()
            }
        }
    }

    fn attribute(&self) -> String {
        match self {
            Self::Override(device, _) => format!("devices/{device}/driver_override"),
            Self::Unbind(_, driver) => format!("drivers/{driver}/unbind"),
            Self::Bind(_, driver) => format!("drivers/{driver}/bind"),
            Self::Probe(_) => "drivers_probe".into(),
        }
    }
}

/// As someone would type it.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        let text = text.trim_end();
        let space = if text.is_empty() { "" } else { " " };
        write!(f, "echo{space}{text} > /sys/bus/pci/{}", self.attribute())
    }
}

impl Host {
    /// From where the device is now to a driver of VFIO's.
    pub(super) fn steps_to(&self, device: Bdf, driver: &str) -> Vec<Step> {
        let now = self.driver_of(device);
        // Reserved first: between unbind and probe no other driver may catch it.
        let mut steps = vec![Step::Override(device, Some(driver.to_owned()))];
        steps.extend(now.map(|driver| Step::Unbind(device, driver)));
        steps.push(Step::Probe(device));
        steps
    }

    /// From where the device is now, which may be after any of our steps, to where it was before them.
    pub(super) fn steps_back(&self, device: Bdf, before: &Entry) -> Result<Vec<Step>, StepError> {
        let now = self.driver_of(device);
        let reserved = self.driver_override(device)?;
        if now.is_some() && now == before.to {
            // It was on its way to another driver, and got there: only the reservation for the way may be left.
            let left = reserved.filter(|name| Some(name) == now.as_ref());
            return Ok(Vec::from_iter(left.map(|_| Step::Override(device, None))));
        }
        let ours =
            reserved.as_deref().is_some_and(is_vfio) || reserved.is_some() && reserved == before.to;
        let moves = now != before.driver && now.as_deref().is_none_or(is_vfio);
        if now != before.driver && !moves && !ours {
            // Somebody gave it to a third driver: it is theirs now.
            return Ok(Vec::new());
        }
        let mut steps = Vec::new();
        if moves {
            // While it is reserved for another, its driver could not take it; so the old reservation comes last.
            let fits = before.driver_override == before.driver;
            steps.push(Step::Override(
                device,
                before.driver_override.clone().filter(|_| fits),
            ));
            steps.extend(now.map(|driver| Step::Unbind(device, driver)));
            steps.extend(
                before
                    .driver
                    .clone()
                    .map(|driver| Step::Bind(device, driver)),
            );
            if !fits && before.driver_override.is_some() {
                steps.push(Step::Override(device, before.driver_override.clone()));
            }
        } else if reserved != before.driver_override {
            steps.push(Step::Override(device, before.driver_override.clone()));
        }
        Ok(steps)
    }

    pub(super) fn perform(&self, steps: &[Step]) -> Result<(), StepError> {
        steps.iter().try_for_each(|step| {
            log::debug!("{step}");
            self.perform_one(step)
        })
    }

    fn perform_one(&self, step: &Step) -> Result<(), StepError> {
        let device = step.device();
        if let Step::Bind(_, driver) = step {
            self.ensure_driver(device, driver)?;
        }
        let request = Request {
            attribute: self.roots.sys.join("bus/pci").join(step.attribute()),
            text: Some(step.text()),
        };
        match self.access(device, step.what(), request)? {
            Err(cause) if !self.is_done(step) => Err(StepError::Refused {
                device,
                what: step.what(),
                command: step.to_string(),
                cause,
            }),
            _ => Ok(()),
        }
    }

    /// A step is refused too when it is done already: by an attempt of ours that we no longer waited for, or by someone else.
    fn is_done(&self, step: &Step) -> bool {
        match step {
            Step::Unbind(device, driver) => self.driver_of(*device).as_ref() != Some(driver),
            Step::Bind(device, driver) => self.driver_of(*device).as_ref() == Some(driver),
            Step::Override(..) | Step::Probe(_) => false,
        }
    }

    /// The driver that the device is reserved for.
    pub(super) fn driver_override(&self, device: Bdf) -> Result<Option<String>, StepError> {
        let request = Request {
            attribute: self.pci_dir(device).join("driver_override"),
            text: None,
        };
        let text = self.access(device, "reading its reservation", request)?;
        let name = text.unwrap_or_default().trim().to_owned();
        // Empty it reads "(null)".
        Ok(Some(name).filter(|name| !name.is_empty() && name != "(null)"))
    }

    /// The module that a driver is in, which need not have its name; none for one that is built in.
    pub(super) fn module_of(&self, driver: &str) -> Option<String> {
        sysfs::link_name(&self.driver_dir(driver).join("module"))
    }

    /// The driver that the device had may have been unloaded while it was away: then its module is loaded before the steps that
    /// want it.
    pub(super) fn ensure_past_driver(&self, before: &Entry, steps: &[Step]) {
        let Some(module) = &before.module else { return };
        let unloaded = |step: &Step| matches!(step, Step::Bind(_, driver) if !self.driver_dir(driver).exists());
        if steps.iter().any(unloaded)
            && let Err(error) = self.changes.load_module(module)
        {
            log::warn!("{module}: {error}");
        }
    }

    /// A driver may have been unloaded while its device was away.
    fn ensure_driver(&self, device: Bdf, driver: &str) -> Result<(), StepError> {
        if self.driver_dir(driver).exists() {
            return Ok(());
        }
        // Most drivers are in a module of their name.
        let said = match self.changes.load_module(driver) {
            Ok(()) if self.driver_dir(driver).exists() => return Ok(()),
            Ok(()) => "the module of that name has another one".into(),
            Err(error) => error.to_string(),
        };
        let driver = driver.to_owned();
        Err(StepError::NoDriver {
            device,
            driver,
            said,
        })
    }

    /// That the device is on `driver` now.
    pub(super) fn expect_driver(&self, device: Bdf, driver: &str) -> Result<(), StepError> {
        let found = self.driver_of(device);
        if found.as_deref() == Some(driver) {
            return Ok(());
        }
        Err(StepError::NotBound {
            device,
            wanted: driver.to_owned(),
            found,
        })
    }
}
