//! The host's interrupt line that a function's INTx pin is on, and who else has it.

use devices::pci::Bdf;

use super::{Host, sysfs};

/// An interrupt line of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterruptLine {
    /// Its number, as in /proc/interrupts.
    pub number: u32,
    /// Who listens to it, as the drivers call themselves: often `driver` or `driver[0000:00:1f.2]`.
    pub users: Vec<String>,
}

impl InterruptLine {
    /// The functions among its users, as far as their drivers say.
    pub fn functions(&self) -> Vec<Bdf> {
        let named = |user: &String| {
            let parts = user.split(|c: char| !(c.is_ascii_hexdigit() || c == ':' || c == '.'));
            parts.into_iter().find_map(|part| part.parse().ok())
        };
        self.users.iter().filter_map(named).collect()
    }
}

impl Host {
    /// The interrupt line of `function`'s pin; `None` if it has none.
    pub fn interrupt_line(&self, function: Bdf) -> Option<InterruptLine> {
        let number = sysfs::number(&self.pci_dir(function).join("irq")).filter(|&irq| irq != 0)?;
        let actions = format!("kernel/irq/{number}/actions");
        let users = sysfs::text(&self.roots.sys.join(actions)).unwrap_or_default();
        let users = users.split(',').filter(|user| !user.is_empty());
        Some(InterruptLine {
            number,
            users: users.map(str::to_owned).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, bdf, function};

    #[test]
    fn a_line_names_its_users_and_which_functions_they_are() {
        let fixture = Fixture::new();
        let card = fixture.add(function("00:06.0"));
        fixture.file("sys/bus/pci/devices/0000:00:06.0/irq", "22\n");
        fixture.file(
            "sys/kernel/irq/22/actions",
            "ahci[0000:00:1f.2],ehci_hcd:usb1,vfio-intx(0001:03:10.3)\n",
        );
        let line = fixture.host().interrupt_line(card).unwrap();
        assert_eq!(line.number, 22);
        assert_eq!(line.users[1], "ehci_hcd:usb1");
        assert_eq!(line.functions(), [bdf("00:1f.2"), bdf("0001:03:10.3")]);
    }

    #[test]
    fn a_function_without_an_interrupt_has_no_line_and_an_unused_line_no_users() {
        let fixture = Fixture::new();
        let card = fixture.add(function("00:06.0"));
        assert_eq!(fixture.host().interrupt_line(card), None);
        fixture.file("sys/bus/pci/devices/0000:00:06.0/irq", "0\n");
        assert_eq!(fixture.host().interrupt_line(card), None);
        fixture.file("sys/bus/pci/devices/0000:00:06.0/irq", "23\n");
        fixture.file("sys/kernel/irq/23/actions", "\n");
        let line = fixture.host().interrupt_line(card).unwrap();
        assert_eq!((line.number, line.users.len()), (23, 0));
    }
}
