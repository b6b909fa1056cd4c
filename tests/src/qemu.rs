//! The command line of the QEMU that simulates L1: a machine with an IOMMU, on real nested virtualisation where the runner
//! has it and in emulation where it does not.

use std::process::Command;

use crate::agent;
use crate::cards::{Iommu, Machine, Places};
use crate::engine::Engine;
use crate::error::Result;
use crate::image::Image;

/// Whose sockets the lab listens on: QEMU connects L1's agent and its own monitor to them.
pub(crate) const AGENT: &str = "agent";
pub(crate) const MONITOR: &str = "monitor";

/// Whether L1 runs on the runner's KVM, with KVM inside it.
pub(crate) fn has_nested_kvm() -> bool {
    *Engine::of_runner() == Engine::Kvm
}

/// The command line of an L1 that the lab's agent answers in. QEMU's stdin and stdout are L1's hvc0.
pub(crate) fn command(image: &Image, machine: &Machine, places: &Places) -> Result<Command> {
    let mut qemu = machine_itself(image, machine, places)?;
    qemu.arg("-serial")
        .arg(format!("file:{}", places.serial_log().display()));
    qemu.args(["-device", "virtio-serial-pci,id=ports,addr=1b"]);
    for whose in [AGENT, MONITOR] {
        let path = places.socket(whose);
        qemu.args([
            "-chardev",
            &format!("socket,id={whose},abstract=on,path={path}"),
        ]);
    }
    qemu.args(["-mon", "chardev=monitor,mode=control"]);
    let port = format!(
        "virtserialport,bus=ports.0,chardev=agent,name={}",
        agent::PORT
    );
    qemu.args(["-device", &port, "-chardev", "stdio,id=console,signal=off"]);
    qemu.args(["-device", "virtconsole,bus=ports.0,chardev=console"]);
    Ok(qemu)
}

/// The same machine as a shell script for a person: L1's serial port is the terminal, and further arguments are appended.
pub(crate) fn by_hand(image: &Image, machine: &Machine, places: &Places) -> Result<String> {
    let mut qemu = machine_itself(image, machine, places)?;
    qemu.args(["-serial", "mon:stdio"]);
    Ok(format!("#!/bin/sh\nexec {} \"$@\"\n", shown(&qemu)))
}

fn machine_itself(image: &Image, machine: &Machine, places: &Places) -> Result<Command> {
    let mut qemu = image.tree().program("/usr/bin/qemu-system-x86_64");
    let root = image.tree().root();
    qemu.arg("-L")
        .arg(root.join("usr/share/qemu"))
        .arg("-L")
        .arg(root.join("usr/share/seabios"));
    qemu.args(processor(machine));
    qemu.args(["-nodefaults", "-no-reboot", "-display", "none"]);
    qemu.args(["-smp", &machine.processors.to_string()]);
    qemu.args(["-m", &format!("{}M", machine.memory_mib)]);
    qemu.arg("-kernel")
        .arg(image.l1_kernel())
        .arg("-initrd")
        .arg(image.l1_initrd());
    qemu.args(["-append", &kernel_words(machine)]);
    qemu.args(own_devices(image, places)?);
    for disk in machine.cards.disks(&places.dir) {
        qemu.args(["-drive", &disk.argument()]);
    }
    qemu.args(machine.cards.arguments());
    Ok(qemu)
}

fn processor(machine: &Machine) -> Vec<String> {
    let kvm = has_nested_kvm();
    // Interrupt remapping needs the IOAPIC in QEMU, where KVM has it in the kernel by default.
    let board = if kvm {
        "q35,kernel-irqchip=split"
    } else {
        "q35"
    };
    let (engine, cpu) = if kvm {
        ("kvm", "host")
    } else {
        ("tcg,thread=multi", "max")
    };
    let mut words = vec!["-M", board, "-accel", engine, "-cpu", cpu];
    words.extend(match machine.iommu {
        Iommu::Intel | Iommu::Unused => &["-device", "intel-iommu,intremap=on,aw-bits=48"][..],
        // dma-remap: without it the devices' DMA goes past the page tables that vfio-pci fills.
        Iommu::Amd => &["-device", "amd-iommu,intremap=on,dma-remap=on,xtsup=on"],
        Iommu::Absent => &[],
    });
    words.into_iter().map(str::to_owned).collect()
}

fn kernel_words(machine: &Machine) -> String {
    // no_timer_check: without it one boot in four panics over the timer behind the remapped IOAPIC.
    let mut words = String::from("console=ttyS0 panic=-1 no_timer_check mitigations=off quiet");
    // KVM that is built in sees the processor's frequency as it was first guessed. Where that differs from the real one by more than
    // this, and the processor (emulated, here) does not scale, guests' timers go off many seconds late.
    words.push_str(" kvm.tsc_tolerance_ppm=10000");
    words.push_str(match machine.iommu {
        Iommu::Intel => " intel_iommu=on iommu=nopt",
        Iommu::Amd => " iommu=nopt",
        // Said aloud: some kernels are built to use it by default.
        Iommu::Unused => " intel_iommu=off",
        Iommu::Absent => "",
    });
    words.push(' ');
    words.push_str(machine.kernel_words);
    words
}

/// Root disk and shares, in slots that no card wants.
fn own_devices(image: &Image, places: &Places) -> Result<Vec<String>> {
    let disk = image.tree().disk();
    let share = |id: &str, path: &std::path::Path, slot: &str, options: &str| {
        let path = path.display();
        [
            "-fsdev".to_owned(),
            format!("local,id={id},path={path},security_model=none,multidevs=remap{options}"),
            "-device".to_owned(),
            format!("virtio-9p-pci,fsdev={id},mount_tag={id},addr={slot}"),
        ]
    };
    let mut words = vec![
        "-drive".to_owned(),
        format!(
            "if=none,id=root,format=raw,readonly=on,file={}",
            disk.display()
        ),
        "-device".to_owned(),
        "virtio-blk-pci,drive=root,serial=lab-root,addr=1e".to_owned(),
    ];
    words.extend(share("lab", &places.share(), "1d", ""));
    words.extend(share("l2", &image.l2(), "1c", ",readonly=on"));
    if let Some(modules) = image.l1_modules()? {
        words.extend(share("modules", &modules, "1a", ",readonly=on"));
    }
    Ok(words)
}

/// The command line as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let quoted = |word: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:+@".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.to_owned()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| quoted(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_typed() {
        let mut command = Command::new("qemu");
        command.args(["-append", "a b", "it's"]);
        assert_eq!(shown(&command), "qemu -append 'a b' 'it'\\''s'");
    }
}
