//! What the hardware is like: how it can be reset, which of its registers a guest reaches directly, how it interrupts, where it is.

use vfio::host::{
    Known,
    facts::{Bar, Link, Mapping, Trapped},
};

use super::{
    super::report::{Check, Fix},
    Device,
};

impl Device {
    pub(super) fn hardware(&self) -> Vec<Check> {
        let mut checks = vec![
            self.reset(),
            self.registers(),
            self.interrupts(),
            self.rom(),
            self.node(),
            self.power(),
        ];
        checks.extend(self.facts.link.as_ref().map(link));
        checks
    }

    fn reset(&self) -> Check {
        let methods = &self.facts.device.reset_methods;
        if methods.is_empty() {
            return Check::warning("reset", "there is no way to reset it")
                .why("a guest finds it as the last one left it");
        }
        Check::good("reset", methods.join(", "))
    }

    fn registers(&self) -> Check {
        let name = "registers";
        let bars = &self.facts.bars;
        if bars.is_empty() {
            return Check::note(name, "it has no BAR");
        }
        let said: Vec<String> = bars.iter().map(bar).collect();
        let said = said.join("; ");
        if bars.iter().any(|bar| bar.mapping == Known::Unknown) {
            return Check::unknown(name, said);
        }
        let trapped = |bar: &&Bar| {
            let why = [Trapped::NoAddress, Trapped::SharesPage];
            why.into_iter()
                .any(|why| bar.mapping == Known::Known(Mapping::Trapped(why)))
        };
        if bars.iter().any(|bar| trapped(&bar)) {
            return Check::note(name, said).why("each access to what is trapped costs an exit");
        }
        Check::good(name, said)
    }

    fn interrupts(&self) -> Check {
        let name = "interrupts";
        let interrupts = &self.facts.interrupts;
        let (pin, msi, msix) = match (interrupts.pin, interrupts.msi, interrupts.msix) {
            (Known::Known(pin), Known::Known(msi), Known::Known(msix)) => (pin, msi, msix),
            _ => {
                let check = Check::unknown(name, "the kernel shows the capabilities to root only");
                let command = format!("viaduct doctor {}", self.name());
                return check.fix(Fix::root("ask as root", command));
            }
        };
        let msix_said = msix.map(|msix| {
            let at = &msix.location;
            format!(
                "MSI-X {} (table in BAR {} at {:#x})",
                at.vectors, at.table_bar, at.table_offset
            )
        });
        let msi = msi.map(|msi| format!("MSI {}", msi.vectors));
        let pin = pin.map(|pin| format!("INT{}", pin.letter));
        let kinds: Vec<String> = [msix_said, msi, pin].into_iter().flatten().collect();
        if kinds.is_empty() {
            return Check::note(name, "none");
        }
        let said = kinds.join(", ");
        if msix.is_some_and(|msix| msix.shares_a_page()) {
            return Check::note(name, said)
                .why("the table's page may have registers as well, to which each access costs an exit")
                .fix(Fix::by_hand(format!("give the table pages of its own: --vfio {},msix=relocate", self.name())));
        }
        Check::good(name, said)
    }

    fn rom(&self) -> Check {
        match self.facts.rom {
            Some(rom) => Check::note(
                "ROM",
                format!(
                    "{}; a guest sees it unless told otherwise (rom=off)",
                    size(rom.size)
                ),
            ),
            None => Check::note("ROM", "none"),
        }
    }

    fn node(&self) -> Check {
        let name = "NUMA node";
        match self.facts.device.numa_node {
            None => Check::good(name, "this host has one, or does not say"),
            Some(node) => Check::note(name, format!("{node}")).why(format!(
                "a guest is fastest there: numactl -N {node} -m {node} viaduct run …"
            )),
        }
    }

    fn power(&self) -> Check {
        let name = "power";
        match self.facts.power.state.as_deref() {
            Some("D0") => Check::good(name, "on (D0)"),
            Some(state) => Check::note(
                name,
                format!("asleep ({state}), and wakes when it is taken"),
            ),
            None => Check::unknown(name, "this kernel does not say"),
        }
    }
}

fn bar(bar: &Bar) -> String {
    let size = size(bar.size);
    let how = match bar.mapping {
        Known::Unknown => "shown to root only".into(),
        Known::Known(Mapping::Whole) => "direct".into(),
        Known::Known(Mapping::AroundMsix { withheld }) => {
            format!(
                "direct but for {} around the MSI-X table",
                self::size(withheld)
            )
        }
        Known::Known(Mapping::Trapped(why)) => format!("trapped ({})", trapped(why)),
    };
    format!("BAR {} {size} {how}", bar.index)
}

fn trapped(why: Trapped) -> &'static str {
    match why {
        Trapped::Ports => "ports",
        Trapped::NoAddress => "it has no address on the host",
        Trapped::SharesPage => "others are in its page",
        Trapped::MsixOnly => "only the MSI-X table is there",
    }
}

fn link(link: &Link) -> Check {
    let said = |speed: &Option<String>, width: Option<u32>| {
        let width = width.map(|width| format!("x{width}"));
        let parts: Vec<String> = [speed.clone(), width].into_iter().flatten().collect();
        parts.join(" ")
    };
    let now = said(&link.speed, link.width);
    let now = if now.is_empty() { "down".into() } else { now };
    if link.is_below_its_best() {
        let best = said(&link.max_speed, link.max_width);
        return Check::note("link", format!("{now}, and could be {best}"))
            .why("the slot is slower or narrower, or the link saves power");
    }
    Check::good("link", now)
}

/// In the largest unit that leaves no rest.
fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = |(shift, _): &(u32, &str)| bytes >= 1 << shift && bytes.trailing_zeros() >= *shift;
    match units.into_iter().find(whole) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}
