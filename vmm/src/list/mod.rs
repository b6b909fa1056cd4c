//! `viaduct list`: the host's devices at a glance, or all that is known of them.

mod cells;
mod json;
mod table;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use devices::pci::Bdf;
use vfio::host::{Facts, Host, Inventory, Known};

use self::table::Table;
use crate::{binding::Ended, cli::list::ListArgs, names::Names, output};

/// `viaduct list [DEV...]`
pub fn list(args: &ListArgs) -> Ended {
    let host = Host::new();
    let named = args.devices.iter().map(|name| host.resolve(name));
    let named: Vec<Bdf> = named.collect::<Result<_, _>>()?;
    let inventory = host.inventory();
    let shown = chosen(&inventory, &named, args.all);
    let ids = shown
        .iter()
        .map(|facts| (facts.device.vendor, facts.device.device));
    let names = Names::of_system(ids);
    if args.json {
        let text = serde_json::to_string_pretty(&json::document(&shown, &inventory, &names))?;
        return print(&[text]);
    }
    let (lines, left_out) = lines(&shown, &inventory, &names, args.groups, width());
    let ended = print(&lines)?;
    for hint in hints(&shown, &inventory, &left_out) {
        eprintln!("{hint}");
    }
    Ok(ended)
}

/// Those that were named; without names, those that a guest can have, or all.
fn chosen<'a>(inventory: &'a Inventory, named: &[Bdf], all: bool) -> Vec<&'a Facts> {
    let is_shown = |facts: &&Facts| match named.is_empty() {
        true => all || !facts.device.is_bridge(),
        false => named.contains(&facts.device.bdf),
    };
    inventory.functions.iter().filter(is_shown).collect()
}

/// The table, and which of its columns had no room.
fn lines(
    shown: &[&Facts],
    inventory: &Inventory,
    names: &Names,
    groups: bool,
    width: Option<usize>,
) -> (Vec<String>, Vec<&'static str>) {
    let row = |facts: &&Facts| cells::row(facts, inventory, names);
    let sections: Vec<_> = match groups {
        false => vec![(String::new(), shown.iter().map(row).collect())],
        true => numbers(shown)
            .into_iter()
            .map(|number| {
                let members = shown.iter().filter(|f| f.device.iommu_group == number);
                (heading(number, inventory), members.map(row).collect())
            })
            .collect(),
    };
    let columns = cells::columns();
    let sections = &sections;
    Table { columns, sections }.lines(width)
}

/// The groups of what is shown, in order; what has none comes last.
fn numbers(shown: &[&Facts]) -> Vec<Option<u32>> {
    let mut numbers: Vec<Option<u32>> = shown.iter().map(|f| f.device.iommu_group).collect();
    numbers.sort_unstable_by_key(|number| (number.is_none(), *number));
    numbers.dedup();
    numbers
}

fn heading(number: Option<u32>, inventory: &Inventory) -> String {
    let Some(number) = number else {
        return "no group: no IOMMU keeps these in a guest's memory".to_owned();
    };
    let group = inventory.groups.get(&number);
    let members = group.map_or(&[][..], |group| &group.members);
    let bridges = members.iter().filter(|member| member.is_bridge).count();
    match members.len() - bridges {
        0 | 1 => format!("group {number}"),
        devices => format!("group {number}: its {devices} devices go to one guest, or none"),
    }
}

/// What a person should know who sees the table.
fn hints(shown: &[&Facts], inventory: &Inventory, left_out: &[&str]) -> Vec<String> {
    let mut hints = Vec::new();
    if !left_out.is_empty() {
        let columns = left_out.join(", ");
        hints.push(format!(
            "no room here for {columns}\n  see them:  viaduct list | cat"
        ));
    }
    if let Some(cause) = inventory.no_iommu {
        let why = cause.why();
        hints.push(format!(
            "no device can be given to a guest: there is no IOMMU: {why}\n  see what to do:  viaduct doctor"
        ));
    }
    if shown
        .iter()
        .any(|facts| facts.interrupts.msix == Known::Unknown)
    {
        hints.push("'?' is what only root may read:  sudo viaduct list".to_owned());
    }
    hints
}

/// How wide the terminal is; without one there is no limit.
fn width() -> Option<usize> {
    let stdout = io::stdout();
    let size = terminal_size::terminal_size_of(&stdout).filter(|_| stdout.is_terminal());
    size.map(|(terminal_size::Width(columns), _)| columns.into())
}

/// Prints lines.
fn print(lines: &[String]) -> Ended {
    let mut text = lines.join("\n");
    text.push('\n');
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
