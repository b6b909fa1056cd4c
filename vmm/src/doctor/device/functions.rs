//! Virtual functions and the physical one that they are of: what a virtual one gets from there.

use vfio::host::{Holder, Mac, is_vfio, short};

use super::{
    super::report::{Check, Fix},
    Device,
    taking::list,
};

/// Base class of network controllers.
const NETWORK: u32 = 0x02;

impl Device {
    pub(super) fn functions(&self) -> Vec<Check> {
        match self.facts.device.virtual_function_of {
            Some((_, index)) => self.virtual_function(index),
            None => self.physical_function().into_iter().collect(),
        }
    }

    /// Who has virtual functions of the same card.
    pub(super) fn function_holders(&self) -> impl Iterator<Item = &Holder> {
        self.function_holders.iter()
    }

    fn physical_function(&self) -> Option<Check> {
        let sriov = self.facts.device.sriov.as_ref()?;
        let what = format!("{} of {} are enabled", sriov.functions.len(), sriov.total);
        Some(Check::note("virtual functions", what))
    }

    fn virtual_function(&self, index: u32) -> Vec<Check> {
        let name = "physical function";
        let Some(physical) = &self.physical else {
            return vec![Check::unknown(name, "it is gone")];
        };
        let of = short(physical.bdf);
        let mut said = format!("{of}, of which this is function {index}");
        let others: Vec<&Holder> = self.function_holders().collect();
        if !others.is_empty() {
            said += &format!("; it has to stay on its driver for {}", list(others));
        }
        let mut checks = Vec::new();
        match physical.driver.as_deref() {
            None => checks.push(
                Check::warning(name, said).why("it is on no driver, which would serve this one"),
            ),
            Some(driver) if is_vfio(driver) => checks.push(
                Check::warning(name, said)
                    .why(format!(
                        "it is on {driver}, and a guest's driver may not serve this one"
                    ))
                    .fix(Fix::root(
                        "give it its driver back",
                        format!("viaduct unbind {of}"),
                    )),
            ),
            Some(driver) => checks.push(Check::good(name, format!("{said}; on {driver}"))),
        }
        if self.facts.device.class >> 16 == NETWORK {
            checks.extend(self.uplink());
            checks.extend(self.mac(&of, index));
            checks.extend(self.rights());
        }
        checks
    }

    /// The interface through which the function is set up.
    fn uplink(&self) -> Option<Check> {
        let interface = self.physical.as_ref()?.interfaces.first()?;
        let name = &interface.name;
        if interface.is_up {
            return Some(Check::good("its interface", format!("{name} is up")));
        }
        let check = Check::warning("its interface", format!("{name} is down"))
            .why("its virtual functions get no link and their drivers no answer; run brings it up");
        Some(check.fix(Fix::root("bring it up", format!("ip link set {name} up"))))
    }

    fn mac(&self, of: &str, index: u32) -> Option<Check> {
        let name = "MAC address";
        let mac = self.settings.as_ref()?.mac?;
        if !mac.is_zero() {
            return Some(Check::good(name, mac.to_string()));
        }
        let check = Check::warning(name, "nobody gave it one");
        let interface = self.physical.as_ref()?.interfaces.first();
        let Some(physical) = interface.and_then(|one| one.mac) else {
            return Some(check);
        };
        // As run would do it.
        let mac = Mac::derived(physical, index);
        let fix = Fix::root(
            "give it that now",
            format!("viaduct sriov {of} --vf {index} --mac {mac}"),
        );
        Some(
            check
                .why(format!("run gives it {mac}, always the same"))
                .fix(fix),
        )
    }

    /// What the card lets a guest do with it.
    fn rights(&self) -> Option<Check> {
        let settings = self.settings.as_ref()?;
        let switch = |on| if on { "on" } else { "off" };
        let trust = settings.trust.map(|on| format!("trust {}", switch(on)));
        let spoof = settings
            .spoof_check
            .map(|on| format!("spoof check {}", switch(on)));
        let said: Vec<String> = [trust, spoof].into_iter().flatten().collect();
        let check = Check::note("rights", said.join(", "));
        let check = match (settings.trust, settings.spoof_check) {
            (Some(true), _) => check.why("a guest may change its address and listen to others"),
            (_, Some(true)) => check.why("a guest cannot send from addresses that are not its own"),
            _ => check,
        };
        (!said.is_empty()).then_some(check)
    }
}
