//! `viaduct doctor`: each thing that can be wrong has its line, and what the line says to type cures it. Typed it is, here.

use std::time::Duration;

use serde_json::Value;

use super::{Scenario, expect};
use crate::cards::{Iommu, Machine};
use crate::error::{Error, Result};
use crate::host::Host;

/// The word that turns the IOMMU on: `unused` sees that doctor says so, and another machine boots with it.
const WORD: &str = "intel_iommu=on";

pub(super) fn scenarios() -> Vec<Scenario> {
    let scenario = |name, machine, run| Scenario {
        name,
        machine,
        limit: Duration::from_secs(150),
        run,
    };
    vec![
        scenario(
            "doctor finds a healthy host ready, and a free device",
            Machine::example,
            ready,
        ),
        scenario(
            "what doctor says to type cures a device",
            Machine::example,
            device,
        ),
        scenario(
            "doctor says who has a device, and whom its card serves",
            Machine::example,
            held,
        ),
        scenario(
            "what doctor says to type raises a user's limits",
            Machine::example,
            limits,
        ),
        scenario(
            "what doctor says to type brings VFIO's modules back",
            Machine::example,
            modules,
        ),
        scenario(
            "without an IOMMU doctor says where to get one",
            || Machine::example().iommu(Iommu::Absent),
            absent,
        ),
        scenario(
            "doctor says which word turns the IOMMU on, and how to give it to the kernel",
            || Machine::example().iommu(Iommu::Unused),
            unused,
        ),
        scenario(
            "a host that was started with the word that doctor says is ready",
            || Machine::example().iommu(Iommu::Unused).kernel_words(WORD),
            ready,
        ),
        scenario(
            "without interrupt remapping doctor says why VFIO refuses, and what helps",
            || Machine::example().kernel_words("intremap=off"),
            unmapped,
        ),
    ]
}

/// What doctor says, as JSON, and its exit status.
struct Report {
    json: Value,
    code: i32,
}

impl Report {
    fn of(l1: &Host, arguments: &str) -> Result<Self> {
        Self::said_by(l1, &format!("viaduct doctor --json {arguments}"))
    }

    /// By a command that ends with a doctor's report.
    fn said_by(l1: &Host, command: &str) -> Result<Self> {
        let output = l1.output(command, Duration::from_secs(60))?;
        let json = serde_json::from_str(&output.stdout)
            .map_err(|error| Error::Unexpected(format!("`{command}` prints no JSON: {error}")))?;
        let code = output.code;
        let report = Self { json, code };
        expect(report.checks().count() > 0, "doctor checks something")?;
        Ok(report)
    }

    fn checks(&self) -> impl Iterator<Item = &Value> {
        let sections = self.json["sections"].as_array().into_iter().flatten();
        sections.flat_map(|section| section["checks"].as_array().into_iter().flatten())
    }

    /// The check of this name, the worst if there are several.
    fn check(&self, name: &str) -> Result<&Value> {
        let worst = ["failure", "warning", "unknown", "note", "good"];
        let rank = |check: &&Value| {
            worst
                .iter()
                .position(|verdict| check["verdict"] == *verdict)
        };
        let found = self
            .checks()
            .filter(|check| check["name"] == name)
            .min_by_key(rank);
        found.ok_or_else(|| Error::Unexpected(format!("doctor has no line for '{name}'")))
    }

    /// That a check has this verdict, and says this.
    fn expect(&self, name: &str, verdict: &str, what: &str) -> Result<()> {
        let check = self.check(name)?;
        let said = format!("{name} is {verdict} and says '{what}': {check}");
        let text = check["what"].as_str().unwrap_or_default();
        expect(check["verdict"] == verdict && text.contains(what), &said)
    }

    /// The command of a check's fix, counted from 0.
    fn command(&self, name: &str, fix: usize) -> Result<&str> {
        let check = self.check(name)?;
        let command = check["fixes"][fix]["command"].as_str();
        command.ok_or_else(|| Error::Unexpected(format!("no command in fix {fix} of {check}")))
    }

    fn expect_ready(&self) -> Result<()> {
        let bad = |check: &&Value| check["verdict"] == "failure" || check["verdict"] == "warning";
        let bad: Vec<String> = self.checks().filter(bad).map(Value::to_string).collect();
        let what = format!("ready, with status {}: {}", self.code, bad.join("\n"));
        expect(
            self.code == 0 && self.json["ready"] == true && bad.is_empty(),
            &what,
        )
    }
}

/// Sees the check fail or warn, types what it says, and sees that it is good.
fn cure(l1: &Host, arguments: &str, name: &str, what: &str) -> Result<()> {
    let report = Report::of(l1, arguments)?;
    let verdict = report.check(name)?["verdict"].as_str().unwrap_or_default();
    report.expect(name, verdict, what)?;
    expect(
        ["failure", "warning"].contains(&verdict),
        &format!("{name} is not in order"),
    )?;
    expect(
        (verdict == "failure") <= (report.code == 1),
        "a failure is exit status 1",
    )?;
    l1.sh(report.command(name, 0)?)?;
    Report::of(l1, arguments)?.expect(name, "good", "")
}

pub(super) fn ready(l1: &Host) -> Result<()> {
    let before = l1.state()?;
    let report = Report::of(l1, "03:10.3")?;
    report.expect_ready()?;
    let units = match l1.iommu() {
        Iommu::Amd => "ivhd0",
        _ => "dmar0",
    };
    report.expect("IOMMU in use", "good", units)?;
    report.expect("interrupt remapping", "good", "on")?;
    report.expect("IOMMU group", "good", "alone")?;
    report.expect("interrupts", "good", "MSI-X 3")?;
    report.expect("registers", "good", "direct")?;
    let text = l1.sh("viaduct doctor 03:10.3")?;
    expect(text.ends_with("\nready\n"), "the text ends with 'ready'")?;
    expect(!text.contains('\x1b'), "there are no colours in a pipe")?;
    let usage = l1.output("viaduct doctor --nonesuch", Duration::from_secs(20))?;
    expect(usage.code == 2, "bad usage is exit status 2")?;
    l1.expect_unchanged(&before)
}

fn device(l1: &Host) -> Result<()> {
    // Two cards behind one bridge.
    cure(l1, "05:01.0", "IOMMU group", "shared with 05:02.0 on e1000")?;
    l1.sh("viaduct unbind 05:02.0")?;
    let both = Report::of(l1, "05:01.0")?
        .command("IOMMU group", 1)?
        .to_owned();
    let both = Report::said_by(l1, &both.replace("doctor", "doctor --json"))?;
    both.expect("IOMMU group", "good", "none of them is in the way")?;
    l1.sh("ip link set $(ls /sys/bus/pci/devices/0000:03:00.1/net) down")?;
    cure(l1, "03:10.3", "its interface", "is down")?;
    l1.sh("ip link set $(ls /sys/bus/pci/devices/0000:03:00.1/net) vf 1 mac 00:00:00:00:00:00")?;
    cure(l1, "03:10.3", "MAC address", "nobody gave it one")?;
    l1.sh("viaduct sriov 03:00.1 --vf 1 --mac 52:54:00:03:10:03")?;
    // Enabled virtual functions go with their physical one.
    Report::of(l1, "03:00.1")?.expect("the host's", "failure", "0000:03:10.3")
}

fn held(l1: &Host) -> Result<()> {
    let mut guest = l1
        .viaduct("run --memory 384M --vfio 03:10.1")
        .script("sleep 1000")
        .start()?;
    guest.wait_for("LAB-L2 init")?;
    let pid = l1.sh("pgrep -x viaduct")?;
    let who = format!("by process {} (viaduct)", pid.trim());
    let held = Report::of(l1, "03:10.1")?;
    held.expect("in use", "failure", &who)?;
    let physical = Report::of(l1, "03:00.1")?;
    physical.expect("the host's", "failure", "0000:03:10.1")?;
    let ends = physical.command("the host's", 0)?;
    expect(
        ends == held.command("in use", 0)?,
        "the card is the guest's as well",
    )?;
    let other = Report::of(l1, "03:10.3")?;
    other.expect("in use", "good", "by no guest")?;
    other.expect(
        "physical function",
        "good",
        &format!("process {}", pid.trim()),
    )?;
    l1.sh(held.command("in use", 0)?)?;
    expect(
        guest.wait_for_end()? == 0,
        "the guest is ended in good order",
    )?;
    Report::of(l1, "03:10.1")?.expect_ready()?;
    // Nobody has any now, so that they can go.
    let physical = Report::of(l1, "03:00.1")?;
    l1.sh(physical.command("the host's", 0)?)?;
    let gone = Report::of(l1, "03:00.1")?;
    let why = "its virtual functions go";
    let left = gone.checks().any(|check| check.to_string().contains(why));
    l1.sh(FUNCTIONS)?;
    expect(
        !left,
        "without virtual functions the card is not needed for them",
    )
}

/// Makes the card's virtual functions as the lab has them: with their addresses before their driver looks for those.
const FUNCTIONS: &str = "cd /sys/bus/pci/devices/0000:03:00.1 && net=$(ls net) && echo 0 > sriov_drivers_autoprobe && \
    echo 2 > sriov_numvfs && ip link set $net vf 0 mac 52:54:00:03:10:01 && ip link set $net vf 1 mac 52:54:00:03:10:03 && \
    echo 1 > sriov_drivers_autoprobe && for vf in virtfn*; do basename $(readlink $vf) > /sys/bus/pci/drivers_probe; done";

/// Runs a command as a user whose limits are low.
fn as_user(command: &str) -> String {
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all";
    let command = command.replace('\'', "'\\''");
    format!("ulimit -l 64; ulimit -n 256; {user} bash -c '{command}'")
}

/// What a user becomes root by: there is no sudo in the lab.
const SUDO: &str = "install -m 4755 /usr/bin/setpriv /usr/local/bin/as-root && \
    printf '#!/bin/sh\\nexec as-root --reuid=0 --regid=0 --clear-groups \"$@\"\\n' > /usr/local/bin/sudo && \
    chmod +x /usr/local/bin/sudo";

fn limits(l1: &Host) -> Result<()> {
    l1.sh(SUDO)?;
    l1.sh("chmod 600 /dev/kvm")?;
    let before = Report::said_by(l1, &as_user("viaduct doctor --json"))?;
    expect(before.code == 1, "the user is not ready")?;
    before.expect("KVM", "failure", "may not be opened")?;
    before.expect(
        "locked memory",
        "failure",
        "64 KiB, and a guest of 512 MiB wants 524288 KiB",
    )?;
    before.expect("open files", "failure", "256")?;
    let typed = ["locked memory", "open files"].map(|name| before.command(name, 0));
    let [memory, files] = typed;
    let typed = format!("{}; {}; viaduct doctor --json", memory?, files?);
    let after = Report::said_by(l1, &as_user(&typed))?;
    after.expect("locked memory", "good", "no limit")?;
    after.expect("open files", "good", "1024")
}

fn modules(l1: &Host) -> Result<()> {
    let gone = "modprobe -r vfio_pci vfio_iommu_type1 vfio_pci_core";
    l1.sh(gone)?;
    l1.sh("echo 'install vfio-pci /bin/false' > /etc/modprobe.d/local.conf")?;
    cure(
        l1,
        "",
        "vfio-pci",
        "/etc/modprobe.d/local.conf keeps the module",
    )?;
    l1.sh(gone)?;
    // The lab has no archive to install from: this one has a single package, and gives it to who asks for it as Debian's wants to be
    // asked.
    l1.sh("mv /lib/modules/$(uname -r)/kernel/drivers/vfio /run/package; cat > /usr/local/sbin/apt-get <<'END'\n\
        #!/bin/sh\n\
        [ \"$*\" = \"install -y --reinstall linux-image-$(uname -r)\" ] || exit 100\n\
        [ -e /run/package ] && mv /run/package /lib/modules/$(uname -r)/kernel/drivers/vfio\n\
        exit 0\n\
        END\n\
        chmod +x /usr/local/sbin/apt-get")?;
    let lost = Report::of(l1, "")?;
    lost.expect(
        "VFIO interfaces",
        "failure",
        "has no module vfio_iommu_type1",
    )?;
    cure(l1, "", "vfio-pci", "has no module vfio_pci")?;
    l1.sh(lost.command("VFIO interfaces", 0)?)?;
    l1.sh("rm /usr/local/sbin/apt-get")?;
    Report::of(l1, "")?.expect_ready()
}

fn absent(l1: &Host) -> Result<()> {
    let report = Report::of(l1, "03:10.3")?;
    expect(report.code == 1, "it is not ready")?;
    report.expect(
        "IOMMU in firmware",
        "failure",
        "neither a DMAR nor an IVRS table",
    )?;
    report.expect("IOMMU group", "failure", "no IOMMU")?;
    // An emulated processor is AMD's here. On the runner's KVM it is the runner's.
    let flags = l1.sh("grep -m1 ^flags /proc/cpuinfo")?;
    let has_vmx = flags.split_whitespace().any(|flag| flag == "vmx");
    let extension = if has_vmx { "VT-x" } else { "SVM" };
    report.expect("processor", "good", extension)
}

/// Debian's boot loader, which the lab's host does not have: what is done with its files is to say which words they hold.
const GRUB: &str = "mkdir -p /etc/default && printf 'GRUB_CMDLINE_LINUX=\"quiet intel_iommu=off\"\\n' > /etc/default/grub && \
    cat > /usr/sbin/update-grub <<'END'\n\
    #!/bin/sh\n\
    . /etc/default/grub; for file in /etc/default/grub.d/*.cfg; do . $file; done; echo $GRUB_CMDLINE_LINUX > /run/words\n\
    END\n\
    printf '#!/bin/sh\\n' > /usr/local/sbin/reboot && chmod +x /usr/sbin/update-grub /usr/local/sbin/reboot";

fn unused(l1: &Host) -> Result<()> {
    let report = Report::of(l1, "")?;
    expect(report.code == 1, "it is not ready")?;
    report.expect("IOMMU in firmware", "good", "DMAR")?;
    report.expect("IOMMU in use", "failure", "does not use it")?;
    let by_hand = report.check("IOMMU in use")?["fixes"][0]["how"].to_string();
    let change = format!("boot with {WORD}, without intel_iommu=off");
    expect(by_hand.contains(&change), &by_hand)?;
    l1.sh(GRUB)?;
    l1.sh(Report::of(l1, "")?.command("IOMMU in use", 0)?)?;
    let words = l1.sh("cat /run/words")?;
    expect(
        words.trim() == format!("quiet {WORD}"),
        &format!("GRUB has the words: {words}"),
    )
}

fn unmapped(l1: &Host) -> Result<()> {
    let report = Report::of(l1, "03:10.3")?;
    expect(report.code == 1, "it is not ready")?;
    report.expect("interrupt remapping", "failure", "off")?;
    let check = report.check("interrupt remapping")?.to_string();
    for said in [
        "EPERM",
        "boot without intremap=off",
        "for guests that you trust",
    ] {
        expect(check.contains(said), &format!("it says '{said}': {check}"))?;
    }
    l1.sh(report.command("interrupt remapping", 1)?)?;
    let without = Report::of(l1, "03:10.3")?;
    expect(without.code == 0, "it is ready")?;
    without.expect("interrupt remapping", "warning", "allow_unsafe_interrupts")?;
    let guest = l1
        .viaduct("run --memory 384M --vfio 03:10.3")
        .script("lspci -nn")
        .start()?;
    expect(
        guest.succeeds()?.contains("[8086:10ca]"),
        "a guest has the device",
    )
}
