//! `cargo lab bench net`: a virtio interface of Viaduct's and one of QEMU's microvm over taps of the same L1, which is the other end: by
//! the kernel's vhost-net, and by a thread of the VMM's own. Both VMMs have their defaults; offloads are what driver and tap agree on.

use serde_json::Value;

use super::beside::{Both, Side, Sides, in_turn, median, print_head, print_row, start};
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::host::Host;

/// How long iperf3 sends, in seconds.
const RUNTIME: u32 = 2;
const PINGS: u32 = 300;
/// A tap for each VMM; L1 has the first address of the tap's network and the guest the second.
const TAPS: &str = "modprobe -a tun vhost_net && for n in 0 1; do ip tuntap add tap$n mode tap && \
    ip addr add 10.9.$n.1/24 dev tap$n && ip link set tap$n up || exit; done";

/// Who carries the packets.
struct Carrier {
    name: &'static str,
    viaduct: &'static str,
    // No ROM to boot from, which Debian has in another package: nobody boots from it.
    qemu: &'static str,
}

const CARRIERS: [Carrier; 2] = [
    Carrier {
        name: "virtio-net by vhost",
        viaduct: "tap=tap0,vhost=on",
        qemu: "-netdev tap,id=n,ifname=tap1,script=no,downscript=no,vhost=on -device virtio-net-pci,netdev=n,romfile=",
    },
    Carrier {
        name: "virtio-net by a thread of the VMM's",
        viaduct: "tap=tap0,vhost=off",
        qemu: "-netdev tap,id=n,ifname=tap1,script=no,downscript=no,vhost=off -device virtio-net-pci,netdev=n,romfile=",
    },
];

/// Which way iperf3 sends, as seen from L1.
const DIRECTIONS: [(&str, &str); 2] =
    [("to the guest, MiB/s", ""), ("from the guest, MiB/s", "-R")];

/// What one run came to.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// MiB in a second, or microseconds.
    value: f64,
    /// For each MiB, or each round trip.
    exits: f64,
}

/// Runs it in this L1 and prints the tables.
pub(crate) fn run(host: &Host) -> Result<i32> {
    host.sh(TAPS)?;
    for carrier in &CARRIERS {
        let mut sides = started(host, carrier)?;
        let mut rows = Vec::new();
        for (name, direction) in DIRECTIONS {
            let bandwidth = |number, side: &mut Side<'_>| send(host, side, number, direction);
            rows.push((
                name,
                "  exits for each",
                in_turn(name, &mut sides, bandwidth)?,
            ));
        }
        let name = "a round trip, µs (fewer are better)";
        let round_trips = in_turn(name, &mut sides, |number, side| ping(host, side, number))?;
        rows.push((name, "  exits for each", round_trips));
        print(carrier, &rows);
        // The next two have the same taps.
        for side in sides {
            side.guest.type_in("\n")?;
            side.guest.succeeds()?;
        }
    }
    Ok(0)
}

/// Guests with an address each and a server for iperf3.
fn started<'a>(host: &'a Host, carrier: &Carrier) -> Result<Sides<'a>> {
    let serve = |number| {
        format!(
            "ip addr add {}/24 dev eth0 && ip link set eth0 up && iperf3 -s -D && echo == serves && read -r end",
            address(number)
        )
    };
    let viaduct = host
        .viaduct(&format!(
            "run --cpus 1 --memory 256M --net {}",
            carrier.viaduct
        ))
        .script(&serve(0))
        .deadline_s(1800);
    let qemu = host
        .reference(1, "256M", &[])
        .reference_words(carrier.qemu)
        .script(&serve(1))
        .deadline_s(1800);
    let sides = start(viaduct, qemu, |guest: &mut Guest<'_>| {
        guest.wait_for("== serves").map(drop)
    })?;
    for number in 0..sides.len() {
        // Its server says nobody when it listens; and whoever is first would pay for finding each other.
        let to = address(number);
        host.sh(&format!(
            "until iperf3 -c {to} -n 1M > /dev/null; do sleep 0.2; done"
        ))?;
    }
    Ok(sides)
}

fn address(number: usize) -> String {
    format!("10.9.{number}.2")
}

fn send(host: &Host, side: &Side<'_>, number: usize, direction: &str) -> Result<Measured> {
    let before = side.exits(host)?;
    let to = address(number);
    let said = host.sh(&format!("iperf3 -c {to} -t {RUNTIME} --json {direction}"))?;
    let exits = side.exits(host)?.saturating_sub(before);
    let (mib, mib_per_s) = carried(&said).ok_or(Error::Unexpected(said))?;
    Ok(Measured {
        value: mib_per_s,
        exits: as_float(exits) / mib,
    })
}

fn ping(host: &Host, side: &Side<'_>, number: usize) -> Result<Measured> {
    let before = side.exits(host)?;
    let to = address(number);
    let said = host.sh(&format!("ping -i 0.002 -c {PINGS} {to}"))?;
    let exits = side.exits(host)?.saturating_sub(before);
    let times = round_trips_us(&said);
    if times.is_empty() {
        return Err(Error::Unexpected(said));
    }
    let exits = as_float(exits) / as_float(times.len() as u64);
    Ok(Measured {
        value: median(times),
        exits,
    })
}

/// Of what iperf3 says in JSON: the MiB that arrived, and how many a second.
fn carried(said: &str) -> Option<(f64, f64)> {
    let report: Value = serde_json::from_str(said).ok()?;
    let arrived = report.get("end")?.get("sum_received")?;
    let number = |name: &str| arrived.get(name)?.as_f64();
    let mib = 1_048_576.0;
    Some((
        number("bytes")? / mib,
        number("bits_per_second")? / 8.0 / mib,
    ))
}

/// What ping says of each answer: `… time=0.431 ms`.
fn round_trips_us(said: &str) -> Vec<f64> {
    let answers = said.lines().filter_map(|line| line.split("time=").nth(1));
    let times = answers.filter_map(|rest| rest.strip_suffix(" ms")?.parse::<f64>().ok());
    times.map(|ms| ms * 1000.0).collect()
}

fn as_float(count: u64) -> f64 {
    u32::try_from(count).unwrap_or(u32::MAX).into()
}

fn print(carrier: &Carrier, rows: &[(&str, &str, Both<Measured>)]) {
    print_head(carrier.name);
    for (name, exits, both) in rows {
        print_row(name, both, |run| run.value);
        print_row(exits, both, |run| run.exits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_is_found_in_what_iperf3_reports() {
        let said = r#"{"end": {"sum_sent": {"bytes": 9}, "sum_received": {"bytes": 4194304, "bits_per_second": 16777216.0}}}"#;
        assert_eq!(carried(said), Some((4.0, 2.0)));
        assert_eq!(carried(r#"{"error": "unable to connect"}"#), None);
        assert_eq!(carried("iperf3: not found"), None);
    }

    #[test]
    fn each_answer_to_a_ping_has_its_time() {
        let said = "PING 10.9.0.2 (10.9.0.2) 56(84) bytes of data.\n\
            64 bytes from 10.9.0.2: icmp_seq=1 ttl=64 time=0.500 ms\n\
            64 bytes from 10.9.0.2: icmp_seq=2 ttl=64 time=12 ms\n\n\
            2 packets transmitted, 2 received, 0% packet loss, time 2ms\n";
        assert_eq!(round_trips_us(said), [500.0, 12000.0]);
    }
}
