//! The GSI routing table: which interrupt-controller pin or message stands behind each GSI.
//!
//! KVM replaces the table as a whole (KVM_SET_GSI_ROUTING), so this copy of it is the one that counts, and changes are batched by
//! whoever makes them.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use arch::layout;
use devices::interrupt::{IrqLine, MsiMessage};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

/// What KVM takes at most (KVM_MAX_IRQ_ROUTES).
const MAX_ROUTES: u32 = 4096;

/// The routing table of a VM.
pub struct Routes {
    pub(super) vm: Arc<VmFd>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Messages by GSI; GSIs below `layout::IOAPIC_PINS` are pins and not in here.
    messages: BTreeMap<u32, Option<MsiMessage>>,
    /// No GSI for messages is free below this one.
    free_from: u32,
    /// Whether KVM has not been told of the messages as they are.
    changed: bool,
    /// How often it was told.
    updates: u64,
}

impl Routes {
    /// The table that KVM_CREATE_IRQCHIP makes: the pins, no message.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            table: Mutex::default(),
        }
    }

    /// Takes a free GSI for a message.
    pub(super) fn allocate(&self) -> io::Result<u32> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        // A PIC pin is a route of its own, hence the 16.
        let gsi = (table.free_from.max(layout::IOAPIC_PINS)..MAX_ROUTES - 16)
            .find(|gsi| !table.messages.contains_key(gsi))
            .ok_or_else(|| io::Error::other("all of KVM's 4096 interrupt routes are in use"))?;
        table.messages.insert(gsi, None);
        table.free_from = gsi + 1;
        Ok(gsi)
    }

    /// Gives GSIs back and drops their routes.
    pub(super) fn release(&self, gsis: &[u32]) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        for gsi in gsis {
            let routed = table.messages.remove(gsi).flatten();
            table.changed |= routed.is_some();
            table.free_from = table.free_from.min(*gsi);
        }
        if let Err(error) = self.publish(&mut table) {
            log::error!("interrupt routes of a removed device stay behind: {error}");
        }
    }

    /// Routes GSIs to messages, all in one update; none when nothing changes.
    pub(super) fn set(&self, routes: impl Iterator<Item = (u32, MsiMessage)>) -> io::Result<()> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        for (gsi, message) in routes {
            let before = table.messages.insert(gsi, Some(message));
            table.changed |= before != Some(Some(message));
        }
        self.publish(&mut table)
    }

    /// How often KVM had to be told, each time to replace the whole table.
    pub fn updates(&self) -> u64 {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.updates
    }

    fn publish(&self, table: &mut Table) -> io::Result<()> {
        if !table.changed {
            return Ok(());
        }
        let messages = table
            .messages
            .iter()
            .filter_map(|(&gsi, message)| Some((gsi, (*message)?)));
        let entries: Vec<_> = pins()
            .chain(messages.map(|(gsi, m)| message_entry(gsi, m)))
            .collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|error| io::Error::other(format!("{} routes: {error:?}", entries.len())))?;
        self.vm
            .set_gsi_routing(&routing)
            .map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        table.changed = false;
        table.updates += 1;
        Ok(())
    }

    /// A wire to pin `gsi` whose edges the kernel delivers.
    pub fn line(&self, gsi: u32) -> io::Result<Line> {
        let trigger = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        self.vm
            .register_irqfd(&trigger, gsi)
            .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
        Ok(Line { trigger })
    }
}

/// The pins of both controllers, as KVM_CREATE_IRQCHIP routes them: GSI n is IOAPIC pin n, and below 16 PIC pin n as well.
fn pins() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let ioapic = (0..layout::IOAPIC_PINS).map(|pin| pin_entry(pin, KVM_IRQCHIP_IOAPIC, pin));
    let master = (0..8).map(|pin| pin_entry(pin, KVM_IRQCHIP_PIC_MASTER, pin));
    let slave = (0..8).map(|pin| pin_entry(pin + 8, KVM_IRQCHIP_PIC_SLAVE, pin));
    ioapic.chain(master).chain(slave)
}

fn pin_entry(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

fn message_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
    entry.u.msi.address_lo = u32::from_le_bytes([a, b, c, d]);
    entry.u.msi.address_hi = u32::from_le_bytes([e, f, g, h]);
    entry.u.msi.data = message.data;
    entry
}

/// An edge-triggered wire into the interrupt controller.
pub struct Line {
    trigger: EventFd,
}

impl IrqLine for Line {
    fn pulse(&self) -> io::Result<()> {
        self.trigger.write(1)
    }
}
