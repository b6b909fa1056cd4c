//! SIGKILL at any step of what changes bindings, found by a tracer in the program as it is shipped: `viaduct restore` brings every
//! device back to its first driver and reservation.

use std::time::Duration;

use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::progress::note;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "killed at any step of bind, unbind, restore or run, viaduct restore brings every device back",
        machine: Machine::example,
        limit: Duration::from_secs(240),
        run: killed_anywhere,
    }]
}

/// Devices of two kinds.
const DEVICES: &str = "03:10.3 05:01.0";
/// One of them is reserved for its own driver, by somebody who knows why.
const RESERVE: &str = "echo e1000 > /sys/bus/pci/devices/0000:05:01.0/driver_override";
const UNRESERVE: &str = "echo > /sys/bus/pci/devices/0000:05:01.0/driver_override";

/// System calls by which something changes, or between which it has.
const CALLS: &str = "openat,write,fsync,rename,ioctl,mkdir,flock,sendto,recvfrom";

/// What is killed.
struct Victim {
    name: &'static str,
    /// What has to be so before.
    prepare: String,
    /// What is traced.
    command: String,
    /// Further words for the tracer.
    tracer: &'static str,
}

fn victims() -> Vec<Victim> {
    let bound = format!("viaduct bind {DEVICES} > /dev/null");
    let command = |words: &str| format!("viaduct {words}");
    vec![
        Victim {
            name: "bind",
            prepare: ":".into(),
            command: command(&format!("bind {DEVICES}")),
            tracer: "",
        },
        Victim {
            name: "unbind",
            prepare: bound.clone(),
            command: command(&format!("unbind {DEVICES}")),
            tracer: "",
        },
        Victim {
            name: "restore",
            prepare: bound,
            command: command("restore"),
            tracer: "",
        },
        // A signal that waits from the beginning: the machine is set up whole, and then ended in good order.
        Victim {
            name: "run",
            prepare: ":".into(),
            command: command("run --kernel /lab/l2/vmlinuz --memory 64M --vfio 03:10.3"),
            tracer: "-e inject=signalfd4:signal=SIGTERM:when=1",
        },
    ]
}

impl Victim {
    /// Traces it, with `-f` also the processes that it starts.
    fn traced(&self, tracer: &str) -> String {
        let Self {
            prepare,
            command,
            tracer: also,
            ..
        } = self;
        format!(
            "{prepare}; strace -qq -o /run/trace {tracer} {also} {command} > /run/said 2>&1 < /dev/null"
        )
    }

    /// How often it makes each of the calls itself, and how often those write that it starts.
    fn points(&self, l1: &Host) -> Result<[Calls; 2]> {
        let traced = self.traced(&format!("-f --seccomp-bpf -e trace={CALLS},signalfd4"));
        let count =
            r"sed -E 's/^([0-9]+) +([a-z0-9_]+)\(.*/\1 \2/;t;d' /run/trace | sort | uniq -c";
        let said = l1.sh(&format!("{traced}; head -n 1 /run/trace; {count}"))?;
        let first = said.split_whitespace().next().unwrap_or_default();
        let mut points = [Calls::new(), Calls::new()];
        for line in said.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let &[number, pid, call] = &words[..] else {
                continue;
            };
            let number = number.parse().unwrap_or(0);
            if pid == first && call != "signalfd4" {
                points[0].push((call.to_owned(), number));
            } else if pid != first && call == "write" {
                points[1].push((call.to_owned(), number));
            }
        }
        let traced = points.iter().all(|calls| !calls.is_empty());
        expect(traced, &format!("{} is traced: {said}", self.name))?;
        Ok(points)
    }

    /// Kills it at the `at`th of these calls.
    fn kill_at(&self, l1: &Host, follow: &str, call: &str, at: u32) -> Result<String> {
        let kill =
            format!("{follow} -e trace={call},signalfd4 -e inject={call}:signal=SIGKILL:when={at}");
        let script = format!(
            "{}; status=$?; viaduct restore > /run/restored 2>&1; restored=$?; echo $status $restored; \
             [ $restored = 0 ] || cat /run/said /run/restored; cat /run/said /run/restored >&2",
            self.traced(&kill)
        );
        l1.sh(&script)
    }
}

/// Which calls, and how many of each.
type Calls = Vec<(String, u32)>;

/// A generator that needs to be no better than this (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 % u64::from(limit.max(1))).unwrap_or(0)
    }
}

/// One of the calls, each kind as likely, for most files are opened to read them.
fn pick<'a>(calls: &'a Calls, random: &mut Random) -> Result<(&'a str, u32)> {
    let kind = random.below(u32::try_from(calls.len()).unwrap_or(1)) as usize;
    let (call, number) = calls
        .get(kind)
        .ok_or_else(|| Error::Unexpected("no call to pick".into()))?;
    Ok((call, random.below(*number) + 1))
}

fn killed_anywhere(l1: &Host) -> Result<()> {
    let seed = l1.seed();
    // Xorshift has no way out of 0.
    let mut random = Random(seed.max(1));
    l1.sh(RESERVE)?;
    let before = l1.bindings()?;
    let mut points = Vec::new();
    let victims = victims();
    for victim in &victims {
        let [own, of_others] = victim.points(l1)?;
        l1.sh("viaduct restore")?;
        points.extend([(victim, "", own), (victim, "-f", of_others)]);
    }
    let mut killed = 0;
    let rounds = l1.amount(8, 200);
    for round in 0..rounds {
        let (victim, follow, calls) = &points[round % points.len()];
        let (call, at) = pick(calls, &mut random)?;
        let what = format!(
            "seed {seed}, point {round}: {} {follow} at {call} number {at}",
            victim.name
        );
        let said = victim.kill_at(l1, follow, call, at)?;
        let mut words = said.split_whitespace();
        killed += u32::from(words.next() == Some("137"));
        expect(
            words.next() == Some("0"),
            &format!("{what}: restore succeeds: {said}"),
        )?;
        let now = l1.bindings()?;
        expect(
            now == before,
            &format!("{what}: all is as before:\n{now}\nand was\n{before}"),
        )?;
    }
    note(&format!(
        "at {killed} of {rounds} points the command itself was killed; at the others it outlived the process that writes for it"
    ));
    expect(killed > 0, "some were killed")?;
    l1.sh(UNRESERVE).map(drop)
}
