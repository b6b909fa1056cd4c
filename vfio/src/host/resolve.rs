//! The names by which people call a device: its address, its network interface, a virtual function by its physical one, a mediated
//! device by its UUID; or any of them by its path in sysfs.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

use devices::pci::Bdf;

use super::{Host, mediated::uuid, short, sysfs};
use crate::Assignable;

/// The name is not one of an assignable device on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolveError {
    /// It looks like an address but is not one.
    Malformed {
        /// What was typed.
        name: String,
        /// What on this host was probably meant.
        meant: Vec<Bdf>,
    },
    /// It is an address at which there is nothing.
    NoDevice {
        /// The address.
        bdf: Bdf,
        /// What there is near it.
        near: Vec<Bdf>,
    },
    /// It is neither an address nor an interface.
    NoInterface {
        /// What was typed.
        name: String,
        /// The interfaces that stand on PCI functions.
        interfaces: Vec<String>,
    },
    /// The interface stands on no PCI function.
    NotPci(String),
    /// The part after the slash is not `vf` and a number.
    NotAFunction(String),
    /// The physical function can have no virtual ones.
    NoSriov(Bdf),
    /// The physical function has fewer virtual ones.
    NoFunction {
        /// The physical function.
        physical: Bdf,
        /// Which one was asked for.
        index: u32,
        /// How many are enabled.
        enabled: u32,
        /// How many it can have.
        total: u32,
    },
    /// It is the UUID of nothing.
    NoMediated {
        /// The UUID.
        uuid: String,
        /// What mediated devices there are.
        there: Vec<String>,
        /// What makes one.
        maker: Option<PathBuf>,
    },
    /// It is a path, but not one of a device in sysfs.
    NotADevice(String),
}

impl std::error::Error for ResolveError {}

const SEE: &str = "\n  see what there is:  viaduct list";

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { name, meant } => {
                write!(
                    f,
                    "'{name}' is not a PCI address: two digits of bus, two of device, one of function, such as 03:10.3"
                )?;
                one_of(f, "did you mean", meant)
            }
            Self::NoDevice { bdf, near } => {
                write!(f, "{bdf}: no such device on this host")?;
                one_of(f, "on the same bus there is", near)
            }
            Self::NoInterface { name, interfaces } => {
                write!(
                    f,
                    "'{name}' is neither a PCI address, such as 03:10.3, nor a network interface of this host"
                )?;
                match &interfaces[..] {
                    [] => f.write_str(SEE),
                    some => write!(f, "\n  interfaces on PCI devices:  {}", some.join(" ")),
                }
            }
            Self::NoMediated { uuid, there, maker } => {
                write!(f, "{uuid}: no such mediated device on this host")?;
                if !there.is_empty() {
                    write!(f, "\n  there is:  {}", there.join(" "))?;
                }
                match maker {
                    Some(maker) => write!(f, "\n  make it, as root:  echo {uuid} > {}", maker.display()),
                    None => f.write_str(
                        "\n  no driver here makes any more of them; those that could:  ls /sys/class/mdev_bus",
                    ),
                }
            }
            Self::NotADevice(path) => write!(
                f,
                "'{path}' is not a device in sysfs: name /sys/bus/pci/devices/ADDRESS or /sys/bus/mdev/devices/UUID{SEE}"
            ),
            Self::NotPci(name) => write!(
                f,
                "'{name}' is an interface without a PCI device behind it{SEE}"
            ),
            Self::NotAFunction(name) => {
                write!(
                    f,
                    "'{name}' does not name a virtual function: write vf and its number, such as 03:00.1/vf1 or eth2/vf1"
                )
            }
            Self::NoSriov(bdf) => write!(
                f,
                "{bdf}: has no SR-IOV capability, so no virtual functions\n  assign the device itself:  --vfio {}",
                short(*bdf)
            ),
            Self::NoFunction {
                physical,
                index,
                enabled,
                total,
            } => {
                write!(f, "{physical}: has no virtual function {index}: ")?;
                if index >= total {
                    return write!(
                        f,
                        "it can have {total}, vf0 to vf{}\n  see which there are:  viaduct sriov {}",
                        total.saturating_sub(1),
                        short(*physical)
                    );
                }
                let (wanted, physical) = (index + 1, short(*physical));
                write!(
                    f,
                    "{enabled} of {total} are enabled\n  enable as many as you need:  viaduct sriov {physical} --vfs {wanted}"
                )
            }
        }
    }
}

fn one_of(f: &mut fmt::Formatter<'_>, what: &str, devices: &[Bdf]) -> fmt::Result {
    if devices.is_empty() {
        return f.write_str(SEE);
    }
    let names: Vec<String> = devices.iter().map(|&device| short(device)).collect();
    write!(f, "\n  {what}:  {}", names.join(" "))
}

/// No more suggestions than fit a line.
const SUGGESTIONS: usize = 10;

impl Host {
    /// What `name` stands for: a function as [`Host::resolve`] has them, a mediated device by its UUID, or the path in sysfs of
    /// either.
    pub fn resolve_assignable(&self, name: &str) -> Result<Assignable, ResolveError> {
        let last = match name.starts_with('/') {
            true => {
                device_of_path(name).ok_or_else(|| ResolveError::NotADevice(name.to_owned()))?
            }
            false => name,
        };
        match uuid(last) {
            Some(uuid) => self.present_mediated(uuid),
            None => Ok(self.resolve(last)?.into()),
        }
    }

    fn present_mediated(&self, uuid: String) -> Result<Assignable, ResolveError> {
        let there = self.mediated();
        if there.contains(&uuid) {
            return Ok(Assignable::Mediated(uuid));
        }
        Err(ResolveError::NoMediated {
            maker: self.mediated_maker(),
            uuid,
            there,
        })
    }

    /// The function that `name` stands for: `03:10.3`, `0000:03:10.3`, `eth2`, `03:00.1/vf1` or `eth2/vf1`.
    pub fn resolve(&self, name: &str) -> Result<Bdf, ResolveError> {
        match name.split_once('/') {
            Some((physical, function)) => {
                let index = function
                    .strip_prefix("vf")
                    .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
                    .and_then(|digits| digits.parse().ok())
                    .ok_or_else(|| ResolveError::NotAFunction(name.to_owned()))?;
                self.virtual_function(self.resolve_plain(physical)?, index)
            }
            None => self.resolve_plain(name),
        }
    }

    fn resolve_plain(&self, name: &str) -> Result<Bdf, ResolveError> {
        if let Ok(bdf) = name.parse::<Bdf>() {
            return self.present(bdf);
        }
        // An interface may be called anything but a path; "." and ".." would leave the directory.
        let class = self.roots.sys.join("class/net");
        if sysfs::names(&class)
            .iter()
            .any(|interface| interface == name)
        {
            return self.function_of_interface(name);
        }
        // Colons are for addresses: only addresses have them, but for the aliases of old.
        if name.contains(':') {
            return Err(ResolveError::Malformed {
                name: name.to_owned(),
                meant: self.meant(name),
            });
        }
        let names = sysfs::names(&class).into_iter();
        Err(ResolveError::NoInterface {
            name: name.to_owned(),
            interfaces: names
                .filter(|name| self.function_of_interface(name).is_ok())
                .collect(),
        })
    }

    fn present(&self, bdf: Bdf) -> Result<Bdf, ResolveError> {
        if self.pci_dir(bdf).exists() {
            return Ok(bdf);
        }
        let mut near = self.assignable();
        near.retain(|other| (other.segment, other.bus) == (bdf.segment, bdf.bus));
        near.truncate(SUGGESTIONS);
        Err(ResolveError::NoDevice { bdf, near })
    }

    /// The innermost function in the path that `/sys/class/net/<name>` links to: of a virtio or USB interface it is its
    /// controller.
    fn function_of_interface(&self, name: &str) -> Result<Bdf, ResolveError> {
        let link = self.roots.sys.join("class/net").join(name);
        let path = std::fs::read_link(link).unwrap_or_default();
        let mut parts: Vec<_> = path.iter().filter_map(|part| part.to_str()).collect();
        parts.reverse();
        parts
            .iter()
            .find_map(|part| part.parse().ok())
            .ok_or_else(|| ResolveError::NotPci(name.to_owned()))
    }

    /// Virtual function `index` of `physical`.
    pub(super) fn virtual_function(&self, physical: Bdf, index: u32) -> Result<Bdf, ResolveError> {
        let sriov = self.device(physical).ok().and_then(|device| device.sriov);
        let sriov = sriov.ok_or(ResolveError::NoSriov(physical))?;
        let at = usize::try_from(index).ok();
        let function = at.and_then(|at| sriov.functions.get(at)).copied();
        function.ok_or(ResolveError::NoFunction {
            physical,
            index,
            enabled: u32::try_from(sriov.functions.len()).unwrap_or(u32::MAX),
            total: sriov.total,
        })
    }

    fn assignable(&self) -> Vec<Bdf> {
        let mut all = self.functions();
        all.retain(|&bdf| self.device(bdf).is_ok_and(|device| !device.is_bridge()));
        all
    }

    /// The devices of this host that a sloppy address may mean: its numbers, as far as they go, without leading zeros.
    fn meant(&self, name: &str) -> Vec<Bdf> {
        let numbers = |text: &str| -> Vec<Option<u32>> {
            let parts = text.split([':', '.']);
            parts
                .map(|part| u32::from_str_radix(part, 16).ok())
                .collect()
        };
        let typed = numbers(name);
        let fits = |bdf: &Bdf| {
            let long = numbers(&bdf.to_string());
            // With two colons the first number is the segment.
            let from = if name.matches(':').count() == 2 { 0 } else { 1 };
            long.get(from..).is_some_and(|own| own.starts_with(&typed))
        };
        let mut meant = self.assignable();
        meant.retain(fits);
        meant.truncate(SUGGESTIONS);
        meant
    }
}

/// The name at the end of a device's path in sysfs.
fn device_of_path(path: &str) -> Option<&str> {
    let parts: Option<Vec<&str>> = Path::new(path)
        .components()
        .map(|part| match part {
            Component::RootDir => Some("/"),
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let parts = parts?;
    let last = *parts.last()?;
    let named = uuid(last).is_some() || last.parse::<Bdf>().is_ok();
    (parts.starts_with(&["/", "sys"]) && named).then_some(last)
}
