//! Which device of the host's goes where in the guest.

use std::error::Error;

use devices::pci::{Slot, assign::AssignError};
use vfio::{Assignable, host::Host};

use super::RunError;
use crate::{
    cli::{VfioArg, run::RunArgs},
    machine::{Assignment, DiskConfig},
};

/// Which function goes where: as asked, and the others into the first free slots.
pub(super) fn assign(host: &Host, args: &[VfioArg]) -> Result<Vec<Assignment>, Box<dyn Error>> {
    let mut taken: Vec<Slot> = Vec::new();
    for slot in args.iter().filter_map(|arg| arg.slot) {
        if taken.contains(&slot) {
            return Err(RunError::SlotTwice { slot }.into());
        }
        taken.push(slot);
    }
    let mut assigned: Vec<Assignment> = Vec::new();
    for arg in args {
        let device = host.resolve_assignable(&arg.device)?;
        if let (Assignable::Mediated(_), Some(_)) = (&device, arg.mac) {
            return Err(RunError::NoMac { device }.into());
        }
        if assigned.iter().any(|other| other.device == device) {
            return Err(RunError::DeviceTwice { device }.into());
        }
        let slot = match arg.slot {
            Some(slot) => slot,
            None => first_free(&taken).ok_or(RunError::NoSlot)?,
        };
        taken.push(slot);
        assigned.push(Assignment {
            device,
            slot,
            id: arg.id.clone(),
            options: arg.options.clone(),
        });
    }
    let mut displays = assigned.iter().filter(|one| one.options.vga);
    if let (Some(first), Some(second)) = (displays.next(), displays.next()) {
        let (first, second) = (first.device.clone(), second.device.clone());
        return Err(RunError::VgaTwice { first, second }.into());
    }
    let lone = |slot: &&Slot| {
        taken
            .iter()
            .all(|other| (other.device, other.function) != (slot.device, 0))
    };
    match taken.iter().find(lone) {
        Some(&slot) => Err(AssignError::NoFunctionZero(slot).into()),
        None => Ok(assigned),
    }
}

/// What of the guest's bus the devices of ours get: the first slots that the assigned ones leave.
pub(super) struct Places {
    pub(super) disks: Vec<DiskConfig>,
    pub(super) rng: Option<Slot>,
}

/// Which virtual device goes where: disks in their order, then the others.
pub(super) fn place(args: &RunArgs, assigned: &[Assignment]) -> Result<Places, RunError> {
    let mut taken: Vec<Slot> = assigned.iter().map(|one| one.slot).collect();
    let mut next = || {
        let slot = first_free(&taken).ok_or(RunError::NoSlot)?;
        taken.push(slot);
        Ok(slot)
    };
    let disks = args.disk.iter().map(|disk| {
        Ok(DiskConfig {
            path: disk.path.clone(),
            is_readonly: disk.is_readonly,
            slot: next()?,
        })
    });
    let disks = disks.collect::<Result<_, RunError>>()?;
    let rng = args.rng.then(next).transpose()?;
    Ok(Places { disks, rng })
}

/// A slot none of whose functions is taken. Slot 0 is the host bridge.
fn first_free(taken: &[Slot]) -> Option<Slot> {
    let free = |device: &u8| taken.iter().all(|slot| slot.device != *device);
    (1..32).find(free).map(|device| Slot {
        device,
        function: 0,
    })
}
