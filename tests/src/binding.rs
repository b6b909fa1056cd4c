//! Host drivers in L1 by hand, the way the documentation of other VMMs has it: what the lab does for the reference VMM, and
//! what scenarios check Viaduct's own binding with.

use crate::error::Result;
use crate::host::Host;
use crate::progress::note;

impl Host {
    /// The driver that a PCI function (by its full address) is on. A function that is not there is an error.
    pub(crate) fn driver(&self, address: &str) -> Result<Option<String>> {
        let link = self.sh(&format!(
            "cd /sys/bus/pci/devices/{address} && {{ readlink driver || true; }}"
        ))?;
        Ok(link
            .trim()
            .rsplit('/')
            .next()
            .filter(|name| !name.is_empty())
            .map(str::to_owned))
    }

    /// Everything that taking devices changes on a host: each function's driver and reservation, and who is in Viaduct's journal.
    pub(crate) fn bindings(&self) -> Result<String> {
        self.sh(
            "cd /sys/bus/pci/devices && stat -c %N */driver && grep -H . */driver_override || exit; \
             grep -so '\"0000:[^\"]*\"' /run/viaduct/bindings.json; true",
        )
    }

    /// Whether a NIC's host driver gets a lease through it. The interface is down afterwards: left up, it may become the host's
    /// way out (by IPv6's own configuration), and then no guest may have it.
    ///
    /// Once more where it gets none, from the interface down: a VF that is probed and brought up while its PF still works off the
    /// VF's reset loses what it asked the PF for, and igbvf asks again only when it goes down and up.
    pub(crate) fn has_lease(&self, address: &str) -> Result<bool> {
        let nic = format!("$(ls /sys/bus/pci/devices/{address}/net)");
        let output = self.sh(&format!(
            "nic={nic} && for attempt in 1 2; do \
             ip link set $nic up && busybox udhcpc -i $nic -nqf -t 8 -T 1 -s /bin/true 2>&1 && break; \
             ip -s link show $nic; dmesg | tail -n 8; ip link set $nic down; done; ip link set $nic down"
        ))?;
        if output.matches("udhcpc: started").count() > 1 {
            note(&format!(
                "{address} got a lease on the host only when asked again"
            ));
        }
        Ok(output.contains("lease of"))
    }

    /// Takes a function from its driver and gives it to vfio-pci.
    pub(crate) fn bind_to_vfio(&self, address: &str) -> Result<()> {
        self.rebind(address, "vfio-pci")
    }

    /// Takes a function from vfio-pci and gives it to whichever driver wants it.
    pub(crate) fn give_back(&self, address: &str) -> Result<()> {
        self.rebind(address, "")
    }

    fn rebind(&self, address: &str, driver: &str) -> Result<()> {
        let device = format!("/sys/bus/pci/devices/{address}");
        self.sh(&format!(
            "echo '{driver}' > {device}/driver_override; \
             [ ! -e {device}/driver ] || echo {address} > {device}/driver/unbind; \
             echo {address} > /sys/bus/pci/drivers_probe; [ -e {device}/driver ]"
        ))?;
        Ok(())
    }
}
