//! Functions that stay as they are, because nothing can reset them; and what a person can do about it.

use std::fmt;

use crate::{Assignable, host::short, kernel::Affected};

/// Why a function is not reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Left {
    /// There is no way.
    NoWay,
    /// These would be hit, and are not ours.
    InTheWay(Vec<Affected>),
}

impl Left {
    /// It, in words, with what to type.
    pub(super) fn told<'a>(&'a self, name: &'a Assignable) -> impl fmt::Display + 'a {
        fmt::from_fn(move |f| match self {
            Self::NoWay => write!(
                f,
                "{name}: nothing can reset it: what its last driver left in it is what the guest gets, and keeps when it reboots\n  \
                 it is off the bus until a driver of the guest's turns it on; what the kernel knows:  cat {}/reset_method",
                name.sysfs().display()
            ),
            Self::InTheWay(others) => in_the_way(f, name, others),
        })
    }
}

fn in_the_way(f: &mut fmt::Formatter<'_>, name: &Assignable, others: &[Affected]) -> fmt::Result {
    let who: Vec<_> = others.iter().map(shown).collect();
    write!(
        f,
        "{name}: it cannot be reset alone, nor with its bus, where there is also {}",
        who.join(", ")
    )?;
    let list = |option: &str, wanted: &dyn Fn(&&Affected) -> bool| -> String {
        let wanted = others.iter().filter(wanted);
        wanted
            .map(|one| format!(" {option}{}", short(one.function)))
            .collect()
    };
    // What is in a group of ours and stands there idle needs a driver that can take part; what is in no group of ours, an owner.
    let bind = list("", &|one| one.is_held && !one.is_bridge);
    let give = list("--vfio ", &|one| !one.is_held && !one.is_bridge);
    if !bind.is_empty() {
        write!(
            f,
            "\n  let that be reset with it:        viaduct bind{bind}"
        )?;
    }
    if !give.is_empty() {
        write!(
            f,
            "\n  give that to the guest as well:  viaduct run …{give}"
        )?;
    }
    Ok(())
}

fn shown(one: &Affected) -> String {
    match &one.driver {
        Some(driver) => format!("{} ({driver})", one.function),
        None => format!("{} (no driver)", one.function),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(function: &str, driver: Option<&str>, is_held: bool) -> Affected {
        Affected {
            function: function.parse().unwrap(),
            driver: driver.map(str::to_owned),
            is_bridge: driver == Some("pcieport"),
            is_held,
        }
    }

    fn told(others: Vec<Affected>) -> String {
        let name = Assignable::Function("05:01.0".parse().unwrap());
        Left::InTheWay(others).told(&name).to_string()
    }

    #[test]
    fn who_is_in_the_way_of_a_reset_is_named_with_what_to_type() {
        assert_eq!(
            told(vec![
                other("05:02.0", Some("e1000"), false),
                other("05:02.1", Some("vfio-pci"), false),
            ]),
            "0000:05:01.0: it cannot be reset alone, nor with its bus, where there is also \
             0000:05:02.0 (e1000), 0000:05:02.1 (vfio-pci)\n  \
             give that to the guest as well:  viaduct run … --vfio 05:02.0 --vfio 05:02.1"
        );
        assert!(told(vec![other("05:02.0", None, true)]).ends_with(
            "0000:05:02.0 (no driver)\n  let that be reset with it:        viaduct bind 05:02.0"
        ));
    }

    #[test]
    fn nobody_is_told_to_give_a_bridge_away() {
        let said = told(vec![other("05:03.0", Some("pcieport"), true)]);
        assert!(said.ends_with("0000:05:03.0 (pcieport)"), "{said}");
    }

    #[test]
    fn a_device_without_any_reset_is_named_with_where_to_look() {
        let name = Assignable::Function("00:07.0".parse().unwrap());
        let said = Left::NoWay.told(&name).to_string();
        assert!(said.starts_with("0000:00:07.0: nothing can reset it"));
        assert!(said.ends_with("cat /sys/bus/pci/devices/0000:00:07.0/reset_method"));
    }
}
