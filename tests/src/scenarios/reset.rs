//! Reset: by what each device is reset, what of it outlives a reboot, and who is told what where nothing can be done.

use std::time::Duration;

use super::reading::{Statistics, md5, number_after};
use super::vf::{SECOND, STATS, expect_back};
use super::{Scenario, expect};
use crate::cards::{Cards, Machine};
use crate::error::Result;
use crate::host::Host;

/// An e1000e that has its bus for itself (01:00.0); two e1000 behind one bridge (03:01.0, 03:02.0). All NICs are on one hub, with one
/// of L1's (00:06.0).
///
/// The first port never says that its link is active, which Linux waits for after a reset at more than 5 GT/s.
///
/// In one boot of L1 only one guest gets DMA from behind the bridge, whichever VMM runs it: what such a card asks for bears the
/// bridge's requester ID, and Linux 6.12 clears the entry of that one from the IOMMU's context cache by the card's own ID
/// (`intel_context_flush_present` in drivers/iommu/intel/pasid.c), so that the first guest's stays. Hence two machines.
fn receivers() -> Machine {
    Machine::with_cards(three_receivers())
}

/// Those, and a card of two functions, xHCI and e1000e (04:00.0, 04:00.1), on a port slow enough; an RTL8139 on the root bus (00:05.0).
pub(super) fn of_all_kinds() -> Machine {
    let cards = three_receivers().with(
        "-device pcie-root-port,id=rp3,chassis=3,addr=04.0,x-speed=5 \
         -device qemu-xhci,bus=rp3,multifunction=on,addr=0.0 -device usb-kbd \
         -netdev hubport,id=h4,hubid=0 -device e1000e,bus=rp3,addr=0.1,netdev=h4 \
         -netdev hubport,id=h5,hubid=0 -device rtl8139,addr=05.0,netdev=h5",
    );
    Machine::with_cards(cards)
}

fn three_receivers() -> Cards {
    Cards::none().with(
        "-netdev user,id=u -netdev hubport,id=h0,hubid=0,netdev=u \
         -device pcie-root-port,id=rp1,chassis=1,addr=02.0 \
         -netdev hubport,id=h1,hubid=0 -device e1000e,bus=rp1,netdev=h1 \
         -device pcie-root-port,id=rp2,chassis=2,addr=03.0 -device pcie-pci-bridge,id=br0,bus=rp2 \
         -netdev hubport,id=h2,hubid=0 -device e1000,bus=br0,addr=01.0,netdev=h2 \
         -netdev hubport,id=h3,hubid=0 -device e1000,bus=br0,addr=02.0,netdev=h3 \
         -netdev hubport,id=h6,hubid=0 -device virtio-net-pci,addr=06.0,netdev=h6",
    )
}

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "each device is reset by the best way it has, with its bus if need be, and one without any still works",
            machine: of_all_kinds,
            limit: Duration::from_secs(300),
            run: by_the_best_way,
        },
        Scenario {
            name: "what receives when the guest is reset again and again writes nothing into the memory of the next boot",
            machine: receivers,
            limit: Duration::from_secs(300),
            run: nothing_strays,
        },
        Scenario {
            name: "a device that the guest puts to sleep works again when it wakes",
            machine: of_all_kinds,
            limit: Duration::from_secs(150),
            run: sleep_and_wake,
        },
        Scenario {
            name: "who is in the way of a reset is named with what to type, and typing it helps",
            machine: of_all_kinds,
            limit: Duration::from_secs(150),
            run: in_the_way,
        },
        Scenario {
            name: "a guest resets its VF by FLR, and a VF without one is not reset at its PF's cost",
            machine: Machine::example,
            limit: Duration::from_secs(150),
            run: function_level,
        },
    ]
}

/// How `device` was reset, as --stats has it: the method, how often it was and how often not.
fn resets(l1: &Host, device: &str) -> Result<(String, u64, u64)> {
    let device = Statistics::read(l1, STATS)?.device(device)?;
    let method = device.text("/reset/method")?.to_owned();
    Ok((
        method,
        device.number("/reset/done")?,
        device.number("/reset/failed")?,
    ))
}

fn expect_resets(l1: &Host, device: &str, method: &str, done: u64, failed: u64) -> Result<()> {
    let found = resets(l1, device)?;
    let what = format!("{device} was reset {done} times by {method}, {failed} not; {found:?}");
    expect(found == (method.to_owned(), done, failed), &what)
}

/// Gets a lease through each NIC, then does what is typed.
const EACH_NIC: &str = "lspci -nn; lab-dhcp || exit; cat /sys/bus/usb/devices/*/product; \
    echo == works; read -r order; eval $order";

pub(super) fn by_the_best_way(l1: &Host) -> Result<()> {
    let run = "run --cpus 2 --memory 384M --stats /run/stats.json --vfio 01:00.0 --vfio 03:01.0 --vfio 03:02.0 \
        --vfio 04:00.0,addr=06.0 --vfio 04:00.1,addr=06.1 --vfio 00:05.0";
    let mut guest = l1.viaduct(run).script(EACH_NIC).deadline_s(280).start()?;
    for order in ["echo b > /proc/sysrq-trigger\n", "true\n"] {
        guest.wait_for("LAB-L2 init")?;
        let said = guest.wait_for("== works")?;
        let leases = said.matches("10.0.2.").count();
        expect(
            leases == 5,
            &format!("a lease for each of 5 NICs, not {leases}"),
        )?;
        expect(said.contains("QEMU USB Keyboard"), "the keyboard is found")?;
        let together = said.contains("00:06.0 USB") && said.contains("00:06.1 Ethernet");
        expect(together, "the card of two functions is one in the guest")?;
        guest.type_in(order)?;
    }
    let warned = guest
        .errors()
        .contains("0000:00:05.0: nothing can reset it");
    expect(warned, "what cannot be reset is named")?;
    guest.succeeds()?;
    // By the kernel when it was opened and by the bus, then at the reboot by the bus.
    expect_resets(l1, "0000:01:00.0", "bus", 3, 0)?;
    expect_resets(l1, "0000:03:01.0", "hot", 2, 0)?;
    expect_resets(l1, "0000:03:02.0", "hot", 2, 0)?;
    expect_resets(l1, "0000:04:00.0", "hot", 2, 0)?;
    expect_resets(l1, "0000:04:00.1", "hot", 3, 0)?;
    expect_resets(l1, "0000:00:05.0", "none", 0, 2)?;
    let e1000 = l1.driver("0000:03:02.0")?.as_deref() == Some("e1000");
    expect(e1000, "the devices are back on their drivers")
}

/// How much of the guest's memory is filled with random bytes: a card that was left at work has buffers all over the guest.
const FILLED_BYTES: u64 = 32 << 20;

/// What the receivers are set to (register RCTL, bit 1: on), and whether memory changes while they master the bus; then the drivers,
/// and what each NIC hears in a second.
const LISTEN: &str = "head -c 33554432 /dev/urandom > /run/fill; look() { echo $1 $(stat -c %s /run/fill) $(md5sum < /run/fill); }; look before\n\
    for s in 1 2 3; do setpci -s 0$s.0 COMMAND=6; \
    a0=$(sed -n '1s/ .*//p' /sys/bus/pci/devices/0000:00:0$s.0/resource); \
    echo receiver $s: $(devmem $((a0+0x100)) 32); done\n\
    sleep 3; look after; rm /run/fill\n\
    modprobe -a e1000e e1000; lab-dhcp || exit; for n in eth0 eth1 eth2; do \
    ethtool -d $n | grep -A1 RCTL; done; heard() { cat /sys/class/net/eth$1/statistics/rx_packets; }\n\
    a=$(heard 0) b=$(heard 1) c=$(heard 2); sleep 1; \
    echo eth0 heard $(($(heard 0) - a)); echo eth1 heard $(($(heard 1) - b)); echo eth2 heard $(($(heard 2) - c))\n\
    echo == works; read -r order; eval $order";

/// L1's own NIC on the hub. Nobody but a device manager loads drivers for the virtio bus, and L1 has none.
const OWN_NIC: &str = "modprobe virtio_net && nic=$(ls /sys/bus/pci/devices/0000:00:06.0/virtio*/net) && \
    ip link set $nic up && ip addr replace 10.9.0.1/24 dev $nic";
/// Something for the NICs to receive: broadcasts, about a hundred a second.
const SHOUT: &str = "exec ping -q -i 0.005 -b 10.9.0.255";

/// The sum of the filled memory, all of which is there.
fn filled<'a>(said: &'a str, when: &str) -> Result<&'a str> {
    let start = format!("{when} {FILLED_BYTES} ");
    let line = said.lines().find_map(|line| line.strip_prefix(&start));
    md5(line.unwrap_or(said))
}

fn nothing_strays(l1: &Host) -> Result<()> {
    const FAULTS: &str =
        "dmesg > /run/dmesg || exit; grep -cE 'DMAR: .*fault|IO_PAGE_FAULT' /run/dmesg; true";
    let faults = l1.sh(FAULTS)?;
    l1.sh(OWN_NIC)?;
    let shouting = l1.job(SHOUT, Duration::from_secs(300))?;
    let run =
        "run --memory 256M --stats /run/stats.json --vfio 01:00.0 --vfio 03:01.0 --vfio 03:02.0";
    let mut guest = l1
        .viaduct(run)
        .kernel_words("modprobe.blacklist=e1000e,e1000")
        .deadline_s(300)
        .script(LISTEN)
        .start()?;
    let reboots = l1.amount(2, 5);
    let mut now = faults.clone();
    for boot in 0..=reboots {
        guest.wait_for("LAB-L2 init")?;
        let said = guest.wait_for("== works")?;
        for receiver in 1..=3 {
            let off = format!("receiver {receiver}: 0x00000000");
            let what = format!("boot {boot}: receiver {receiver} is off before its driver comes");
            expect(said.contains(&off), &what)?;
        }
        let what = format!("boot {boot}: nothing wrote to memory");
        expect(filled(&said, "before")? == filled(&said, "after")?, &what)?;
        let on = said
            .matches("Receiver:                          enabled")
            .count();
        expect(
            on == 3,
            &format!("boot {boot}: with its driver each receiver is on, not {on}"),
        )?;
        for nic in 0..3 {
            let heard = number_after(&said, &format!("eth{nic} heard "))?;
            let what = format!("boot {boot}: eth{nic} receives broadcasts, {heard} in a second");
            expect(heard >= 20, &what)?;
        }
        now = l1.sh(FAULTS)?;
        let last = boot == reboots;
        guest.type_in(if last {
            "true\n"
        } else {
            "echo b > /proc/sysrq-trigger\n"
        })?;
    }
    guest.succeeds()?;
    drop(shouting);
    let log =
        l1.sh("grep -E 'DMAR|AMD-Vi|vfio|e1000' /run/dmesg | tail -n 25; cat /proc/uptime")?;
    let what = format!("no device reads or writes elsewhere either:\n{log}");
    expect(now == faults, &what)
}

/// With its driver, then without, looking at its registers.
const SLEEP: &str = "lab-dhcp || exit; echo == by hand\n\
    setpci -s 06.0 CAP_PM+4.b=3; setpci -s 06.0 CAP_PM+4.b; setpci -s 06.0 CAP_PM+4.b=0; setpci -s 06.0 CAP_PM+4.b\n\
    ping -A -q -c 3 10.0.2.2; echo == off; p=/sys/bus/pci/devices/0000:00:06.0\n\
    echo 0000:00:06.0 > /sys/bus/pci/drivers/e1000e/unbind; setpci -s 06.0 COMMAND=2\n\
    a=$(sed -n '1s/ .*//p' $p/resource); devmem $((a+8)) 32; setpci -s 06.0 CAP_PM+4.b=3; devmem $((a+8)) 32\n\
    setpci -s 06.0 CAP_PM+4.b=0; devmem $((a+8)) 32; true";

/// E1000_STATUS_LU of the status register (drivers/net/ethernet/intel/e1000e/defines.h).
const LINK_UP: u32 = 1 << 1;

fn sleep_and_wake(l1: &Host) -> Result<()> {
    let run = "run --memory 256M --vfio 01:00.0,addr=06";
    let mut guest = l1.viaduct(run).script(SLEEP).start()?;
    guest.wait_for("== by hand")?;
    let said = guest.wait_for("== off")?;
    let states: Vec<&str> = said.split_whitespace().take(2).collect();
    expect(
        states == ["03", "00"],
        &format!("it sleeps and wakes, power states {states:?}"),
    )?;
    expect(said.contains("3 packets received"), "ping after D3hot")?;
    let status = guest.wait_for("LAB-L2 exit")?;
    let values = status.lines().filter_map(|line| line.strip_prefix("0x"));
    let values: Vec<_> = values
        .filter_map(|hex| u32::from_str_radix(hex, 16).ok())
        .collect();
    let asleep = values.get(1) == Some(&u32::MAX);
    // But for the link, which comes up in its own time.
    let stays = |status: u32| status & !LINK_UP;
    let awake = values.len() == 3 && stays(values[0]) == stays(values[2]) && values[0] != u32::MAX;
    expect(
        asleep && awake,
        &format!("its registers are there when it is awake: {values:x?}"),
    )?;
    expect(guest.wait_for_end()? == 0, "the guest ends well")
}

fn in_the_way(l1: &Host) -> Result<()> {
    // No traffic: see `receivers`.
    let one = |l1: &Host| -> Result<String> {
        let run = "run --memory 256M --stats /run/stats.json --vfio 03:01.0";
        let mut guest = l1
            .viaduct(run)
            .script("lspci -s 1.0 | grep 82540EM")
            .start()?;
        guest.wait_for("LAB-L2 exit 0")?;
        guest.wait_for_end()?;
        Ok(guest.errors().to_owned())
    };
    l1.sh("echo 0000:03:02.0 > /sys/bus/pci/drivers/e1000/unbind")?;
    let said = one(l1)?;
    let named = said.contains("there is also 0000:03:02.0 (no driver)");
    expect(named, &format!("the other one is named in:\n{said}"))?;
    expect(said.contains("viaduct bind 03:02.0"), "and what to type")?;
    expect_resets(l1, "0000:03:01.0", "none", 0, 1)?;
    l1.sh("viaduct bind 03:02.0")?;
    let said = one(l1)?;
    expect(!said.contains("there is also"), "nobody is in the way now")?;
    expect_resets(l1, "0000:03:01.0", "hot", 1, 0)?;
    l1.sh("viaduct unbind 03:02.0 --driver e1000")?;
    Ok(())
}

/// Resets the VF while no driver has it, as a driver or a person would.
const FLR: &str = "v=/sys/bus/pci/devices/0000:00:06.0; lab-dhcp || exit; echo 0000:00:06.0 > $v/driver/unbind\n\
    cat $v/reset_method; echo 1 > $v/reset || exit; echo 0000:00:06.0 > /sys/bus/pci/drivers/igbvf/bind; \
    lab-dhcp && ping -A -q -c 3 10.0.2.2";

fn function_level(l1: &Host) -> Result<()> {
    let run = "run --memory 256M --vfio 03:10.3,addr=06 --stats /run/stats.json";
    let said = l1.viaduct(run).script(FLR).start()?.succeeds()?;
    let knows = said.lines().any(|line| line == "flr");
    expect(knows, "the guest knows of FLR")?;
    expect(said.contains("3 packets received"), "ping after it")?;
    // At its opening; by the guest; and igbvf asks for none.
    expect_resets(l1, SECOND, "flr", 2, 0)?;
    expect_back(l1, SECOND)?;

    l1.sh("echo > /sys/bus/pci/devices/0000:03:10.3/reset_method")?;
    let mut guest = l1.viaduct(run).script("lab-dhcp").start()?;
    guest.wait_for("LAB-L2 exit 0")?;
    guest.wait_for_end()?;
    l1.sh("echo default > /sys/bus/pci/devices/0000:03:10.3/reset_method")?;
    let said = guest.errors();
    let named = [
        "0000:03:00.0 (igb)",
        "0000:03:00.1 (igb)",
        "0000:03:10.1 (igbvf)",
    ];
    for who in named {
        expect(said.contains(who), &format!("{who} is named in:\n{said}"))?;
    }
    expect_resets(l1, SECOND, "none", 0, 1)?;
    expect_back(l1, SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filled_memory_counts_only_with_all_its_bytes_and_a_sum_of_them() {
        let sum = "9cc26fa09ce37bc95afe01bc718836d1";
        let said = format!("before 33554432 {sum} -\r\nreceiver 1: 0x0\nafter 33554432 {sum} -\n");
        assert_eq!(filled(&said, "before").unwrap(), sum);
        assert_eq!(filled(&said, "after").unwrap(), sum);
        // What a busybox that refuses `head -c 70M` left.
        let empty = "before 0 d41d8cd98f00b204e9800998ecf8427e -\n";
        assert!(filled(empty, "before").is_err());
        let cut = format!("before 1048576 {sum} -\n");
        assert!(filled(&cut, "before").is_err());
        assert!(filled("before 33554432\n", "before").is_err());
        assert!(filled("", "after").is_err());
    }
}
