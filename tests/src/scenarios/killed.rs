//! SIGKILL at any step of what changes bindings, found by a tracer in the program as it is shipped: `viaduct restore` brings every
//! device back to its first driver and reservation.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{collections::BTreeMap, env};

use super::{Scenario, expect};
use crate::cards::Machine;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::progress::note;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "killed at any step of bind, unbind, restore or run, viaduct restore brings every device back",
        machine: Machine::example,
        limit: Duration::from_secs(180),
        run: killed_anywhere,
    }]
}

/// Devices of two kinds, two of them in one group.
const DEVICES: &str = "03:10.1 03:10.3 05:01.0 05:02.0";
/// One of them is reserved for its own driver, by somebody who knows why.
const RESERVE: &str = "echo e1000 > /sys/bus/pci/devices/0000:05:01.0/driver_override";
const UNRESERVE: &str = "echo > /sys/bus/pci/devices/0000:05:01.0/driver_override";

/// System calls by which something changes, or between which it has.
const CALLS: &str = "openat,write,fsync,rename,ioctl,mkdir,flock,sendto,recvfrom,read,close,unlink";

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
            command: command(
                "run --kernel /lab/l2/vmlinuz --memory 64M --vfio 03:10.1 --vfio 03:10.3",
            ),
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

    /// How often it makes each of the calls: itself, or, with `-f`, the process of its that makes most of them.
    fn calls(&self, l1: &Host, follow: &str) -> Result<Vec<(String, u32)>> {
        let traced = self.traced(&format!("{follow} -e trace={CALLS},signalfd4"));
        let count =
            r"sed -E 's/^([0-9]+ +)?([a-z0-9_]+)\(.*/\1 \2/;t;d' /run/trace | sort | uniq -c";
        let said = l1.sh(&format!("{traced}; {count}"))?;
        let mut calls: BTreeMap<&str, u32> = BTreeMap::new();
        for line in said.lines() {
            let mut words = line.split_whitespace();
            let (number, call) = (words.next(), words.next_back());
            if let (Some(Ok(number)), Some(call)) = (number.map(str::parse::<u32>), call) {
                let most = calls.entry(call).or_default();
                *most = number.max(*most);
            }
        }
        calls.remove("signalfd4");
        let all: Vec<_> = calls
            .into_iter()
            .map(|(call, number)| (call.to_owned(), number))
            .collect();
        expect(!all.is_empty(), &format!("{} is traced: {said}", self.name))?;
        Ok(all)
    }

    /// Kills it at the `at`th of these calls.
    fn kill_at(&self, l1: &Host, follow: &str, call: &str, at: u32) -> Result<String> {
        let kill =
            format!("{follow} -e trace={call},signalfd4 -e inject={call}:signal=SIGKILL:when={at}");
        let script = format!(
            "{}; status=$?; viaduct restore > /run/restored 2>&1; restored=$?; echo $status $restored; \
             [ $restored = 0 ] || cat /run/said /run/restored",
            self.traced(&kill)
        );
        l1.sh(&script)
    }
}

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

/// Of the clock, or what an earlier run has said.
fn seed() -> u64 {
    let given = env::var("VIADUCT_LAB_SEED").ok();
    let clock = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |now| now.as_secs())
    };
    given
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(clock)
        .max(1)
}

/// One of all calls, each as likely.
fn pick<'a>(calls: &'a [(String, u32)], random: &mut Random) -> Result<(&'a str, u32)> {
    let mut at = random.below(calls.iter().map(|(_, number)| number).sum());
    for (call, number) in calls {
        if at < *number {
            return Ok((call, at + 1));
        }
        at -= number;
    }
    Err(Error::Unexpected("no call to pick".into()))
}

fn killed_anywhere(l1: &Host) -> Result<()> {
    let seed = seed();
    note(&format!(
        "kill points of seed {seed}: VIADUCT_LAB_SEED={seed} takes the same"
    ));
    let mut random = Random(seed);
    l1.sh(RESERVE)?;
    let before = l1.bindings()?;
    let mut points = Vec::new();
    let victims = victims();
    for victim in &victims {
        for follow in ["", "-f"] {
            let calls = victim.calls(l1, follow)?;
            l1.sh("viaduct restore")?;
            points.push((victim, follow, calls));
        }
    }
    let mut killed = 0;
    let rounds = l1.amount(12, 200);
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
        "{killed} of {rounds} were killed themselves, of the others a process that writes for them"
    ));
    expect(killed > 0, "some were killed")?;
    l1.sh(UNRESERVE).map(drop)
}
