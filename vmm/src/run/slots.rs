//! Which device of the host's goes where in the guest.

use std::{error::Error, fs};

use devices::pci::{Slot, assign::AssignError};
use vfio::{
    Assignable,
    host::{Host, Mac},
};

use super::RunError;
use crate::{
    cli::{BalloonArg, NetArg, VfioArg, VsockArg, run::RunArgs},
    machine::{Assignment, BalloonConfig, ConsoleConfig, DiskConfig, NetConfig, VsockConfig},
    net::Source,
};

/// The slots that are asked for by name, whoever they are for: nobody else gets them.
pub(super) fn asked(args: &RunArgs) -> Result<Vec<Slot>, RunError> {
    let functions = args.vfio.iter().filter_map(|arg| arg.slot);
    let disks = args.disk.iter().filter_map(|arg| arg.slot);
    let networks = args.net.iter().filter_map(|arg| arg.slot);
    let mut asked: Vec<Slot> = Vec::new();
    for slot in functions {
        if asked.contains(&slot) {
            return Err(RunError::SlotTwice { slot });
        }
        asked.push(slot);
    }
    // A device of ours is alone in its slot.
    for slot in disks.chain(networks) {
        if asked.iter().any(|other| other.device == slot.device) {
            return Err(RunError::SlotTwice { slot });
        }
        asked.push(slot);
    }
    Ok(asked)
}

/// Which function goes where: as asked, and the others into the first free slots.
pub(super) fn assign(
    host: &Host,
    args: &[VfioArg],
    asked: &[Slot],
) -> Result<Vec<Assignment>, Box<dyn Error>> {
    let mut taken = asked.to_vec();
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
    pub(super) networks: Vec<NetConfig>,
    pub(super) rng: Option<Slot>,
    pub(super) console: Option<ConsoleConfig>,
    pub(super) vsock: Option<VsockConfig>,
    pub(super) balloon: Option<BalloonConfig>,
}

/// Which virtual device goes where: as asked; of the others disks in their order, then the rest.
pub(super) fn place(
    args: &RunArgs,
    asked: &[Slot],
    assigned: &[Assignment],
) -> Result<Places, RunError> {
    let mut taken = asked.to_vec();
    taken.extend(assigned.iter().map(|one| one.slot));
    let mut place = |asked: Option<Slot>| {
        let slot = asked.or_else(|| first_free(&taken));
        let slot = slot.ok_or(RunError::NoSlot)?;
        taken.push(slot);
        Ok(slot)
    };
    let disks = args.disk.iter().map(|disk| {
        Ok(DiskConfig {
            path: disk.path.clone(),
            is_readonly: disk.is_readonly,
            is_direct: disk.is_direct,
            slot: place(disk.slot)?,
        })
    });
    let disks = disks.collect::<Result<_, RunError>>()?;
    let mut networks: Vec<NetConfig> = Vec::new();
    for net in &args.net {
        if networks.iter().any(|other| other.source == net.source) {
            let tap = net.source.to_string();
            return Err(RunError::TapTwice { tap });
        }
        networks.push(network(args, net, place(net.slot)?));
    }
    let rng = args.rng.then(|| place(None)).transpose()?;
    let console = match args.console.clone() {
        None => None,
        Some(side) => Some(ConsoleConfig {
            side,
            slot: place(None)?,
        }),
    };
    let vsock = match args.vsock.clone() {
        None => None,
        Some(VsockArg { cid, socket }) => Some(VsockConfig {
            cid,
            socket,
            slot: place(None)?,
        }),
    };
    let balloon = match args.balloon {
        None => None,
        Some(BalloonArg {
            size_bytes,
            has_reports,
        }) => Some(BalloonConfig {
            // A number that is too large is refused for being more than the guest has.
            pages: u32::try_from(size_bytes >> 12).unwrap_or(u32::MAX),
            has_reports,
            slot: place(None)?,
        }),
    };
    Ok(Places {
        disks,
        networks,
        rng,
        console,
        vsock,
        balloon,
    })
}

fn network(args: &RunArgs, net: &NetArg, slot: Slot) -> NetConfig {
    let guest = args.name.clone();
    let guest = guest.unwrap_or_else(|| nameless(&net.source));
    let derived = Mac::of_guest(&guest, slot.device.into());
    NetConfig {
        source: net.source.clone(),
        mac: net.mac.unwrap_or(derived.0),
        model: net.model,
        queues: net.queues,
        vhost: net.vhost,
        slot,
    }
}

/// What tells a guest without a name from others, here and on other hosts (machine-id(5)).
fn nameless(tap: &Source) -> String {
    let host = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    // A descriptor's number says nothing of where it leads.
    format!("{host}{}", tap.name().unwrap_or_default())
}

/// A slot none of whose functions is taken. Slot 0 is the host bridge.
fn first_free(taken: &[Slot]) -> Option<Slot> {
    let free = |device: &u8| taken.iter().all(|slot| slot.device != *device);
    (1..32).find(free).map(|device| Slot {
        device,
        function: 0,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(words: &str) -> RunArgs {
        let words = format!("viaduct run --kernel k {words}");
        match Cli::parse_from(words.split_whitespace()).command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn places(words: &str) -> Result<Vec<String>, RunError> {
        let args = args(words);
        let places = place(&args, &asked(&args)?, &[])?;
        let disks = places.disks.iter().map(|disk| disk.slot);
        Ok(disks
            .chain(places.rng)
            .map(|slot| slot.to_string())
            .collect())
    }

    #[test]
    fn a_device_goes_where_it_is_asked_for_and_the_others_around_it() {
        let placed = places("--disk a --disk b,addr=01 --disk c --rng").unwrap();
        assert_eq!(placed, ["02.0", "01.0", "03.0", "04.0"]);
        let placed = places("--disk a,addr=0x1f --rng").unwrap();
        assert_eq!(placed, ["1f.0", "01.0"]);
    }

    #[test]
    fn an_address_that_nobody_gave_follows_from_the_name_of_the_guest_and_the_slot() {
        let macs = |words: &str| {
            let args = args(words);
            let places = place(&args, &asked(&args).unwrap(), &[]).unwrap();
            let macs = places.networks.into_iter().map(|net| net.mac);
            macs.collect::<Vec<_>>()
        };
        let two = macs("--name a --net tap=t0 --net tap=t1");
        assert_ne!(two[0], two[1]);
        assert_eq!(macs("--name a --net tap=t2,addr=02")[0], two[1]);
        assert_ne!(macs("--name b --net tap=t0")[0], two[0]);
        assert_ne!(macs("--net tap=t0")[0], macs("--net tap=t1")[0]);
        let given = macs("--net tap=t0,mac=02:00:00:00:00:01");
        assert_eq!(given, [[2, 0, 0, 0, 0, 1]]);
    }

    #[test]
    fn one_tap_is_one_interface_s() {
        let error = places("--net tap=t0 --net tap=t0").unwrap_err();
        assert!(error.to_string().starts_with("t0 is named twice"));
    }

    #[test]
    fn a_slot_is_one_device_s() {
        for words in [
            "--disk a,addr=06 --disk b,addr=06",
            "--vfio 03:10.3,addr=06.1 --disk a,addr=06",
            "--disk a,addr=06 --net tap=t0,addr=06",
        ] {
            let error = places(words).unwrap_err().to_string();
            assert!(error.starts_with("slot 06.0 is asked for twice"), "{error}");
        }
    }
}
