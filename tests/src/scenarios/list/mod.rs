//! `viaduct list`: what it says of every function is what lspci finds there, and the kernel.

mod lspci;

use std::time::Duration;

use serde_json::Value;

use self::lspci::Function;
use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::{Error, Result};
use crate::host::Host;

pub(super) fn scenarios() -> Vec<Scenario> {
    let scenario = |name, run| Scenario {
        name,
        machine: Machine::example,
        limit: Duration::from_secs(60),
        run,
    };
    vec![
        scenario("list says of every device what lspci says of it", as_lspci),
        scenario(
            "list shows at a glance which devices belong together",
            at_a_glance,
        ),
        scenario("list shows a user what a user may know", unprivileged),
    ]
}

const AS_NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all";

/// The functions in what a `list --json` prints.
fn functions(l1: &Host, command: &str) -> Result<Vec<Value>> {
    let text = l1.sh(command)?;
    let document: Value = serde_json::from_str(&text)
        .map_err(|error| Error::Unexpected(format!("`{command}` prints no JSON: {error}")))?;
    let functions = document["functions"].as_array();
    Ok(functions.cloned().unwrap_or_default())
}

fn as_lspci(l1: &Host) -> Result<()> {
    let ours = functions(l1, "viaduct list --all --json")?;
    let theirs = Function::all(&l1.sh("lspci -Dvv")?);
    let ours: Vec<Function> = ours.iter().map(Function::of_json).collect();
    expect(ours.len() == theirs.len(), "there are as many functions")?;
    expect(ours.len() > 10, "there are functions")?;
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let what = format!("list's facts are lspci's:\n{ours:#?}\n{theirs:#?}");
        expect(ours == theirs, &what)?;
    }
    let vf = theirs.iter().find(|f| f.address == "0000:03:10.3");
    let table = vf.and_then(|vf| vf.msix);
    expect(
        table.is_some_and(|(vectors, ..)| vectors == 3),
        "lspci sees the VF's three vectors",
    )
}

fn at_a_glance(l1: &Host) -> Result<()> {
    let before = l1.state()?;
    let table = l1.sh("viaduct list")?;
    for words in [
        &[
            "03:00.1",
            "Ethernet",
            "igb",
            "INTx",
            "MSI-X:10",
            "2/7 VFs",
            "52:54:00:03:00:01",
            "82576",
        ][..],
        &[
            "03:10.3",
            "igbvf",
            "MSI-X:3",
            "03:00.1/vf1",
            "52:54:00:03:10:03",
            "Virtual Function",
        ],
        &["05:01.0", "e1000", "+05:02.0"],
    ] {
        let is_row =
            |line: &str| line.starts_with(words[0]) && words.iter().all(|w| line.contains(w));
        expect(
            table.lines().any(is_row),
            &format!("a row has {words:?}:\n{table}"),
        )?;
    }
    let bridge = |text: &str| text.lines().any(|line| line.starts_with("04:00.0"));
    expect(
        !bridge(&table),
        "the bridge, which no guest can have, is not listed",
    )?;
    expect(bridge(&l1.sh("viaduct list --all")?), "with --all it is")?;
    let groups = l1.sh("viaduct list --groups")?;
    let shared = "its 2 devices go to one guest, or none\n05:01.0";
    expect(
        groups.contains(shared),
        &format!("the shared group says so:\n{groups}"),
    )?;
    let one = functions(l1, "viaduct list --json 03:00.1/vf1")?;
    let found: Vec<&Value> = one.iter().map(|function| &function["address"]).collect();
    expect(found == ["0000:03:10.3"], "a device can be named by its PF")?;
    let narrow = l1.sh("script -qec 'stty rows 24 cols 80; viaduct list' /dev/null")?;
    let fits = narrow
        .lines()
        .all(|line| line.trim_end().chars().count() <= 80);
    let cut = narrow.contains("no room here for") && narrow.contains("03:10.3");
    expect(
        fits && cut,
        &format!("it fits a terminal of 80 columns:\n{narrow}"),
    )?;
    l1.expect_unchanged(&before)
}

fn unprivileged(l1: &Host) -> Result<()> {
    let output = l1.output(
        &format!("{AS_NOBODY} viaduct list"),
        Duration::from_secs(30),
    )?;
    let row = output
        .stdout
        .lines()
        .find(|line| line.starts_with("03:10.3"));
    let unknown = row.is_some_and(|row| row.contains("igbvf") && row.contains('?'));
    expect(
        output.code == 0 && unknown,
        &format!("it says what it can:\n{}", output.stdout),
    )?;
    expect(
        output.stderr.contains("sudo viaduct list"),
        "and who sees the rest",
    )?;
    let mine = functions(l1, "viaduct list --all --json")?;
    let theirs = functions(l1, &format!("{AS_NOBODY} viaduct list --all --json"))?;
    let as_many = !mine.is_empty() && mine.len() == theirs.len();
    expect(as_many, "a user sees as many functions")?;
    for (mine, theirs) in mine.iter().zip(&theirs) {
        for fact in [
            "address",
            "driver",
            "iommu_group",
            "reset_methods",
            "interfaces",
            "sriov",
            "rom",
        ] {
            let same = mine[fact] == theirs[fact];
            expect(
                same,
                &format!("a user sees the same {fact} of {}", mine["address"]),
            )?;
        }
        // Wrong would be `null`: that there is none.
        let msix = &theirs["interrupts"]["msix"];
        expect(
            *msix == "unknown" || mine["interrupts"]["msix"] == *msix,
            "MSI-X is unknown, not absent",
        )?;
    }
    Ok(())
}
