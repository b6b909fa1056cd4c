//! What would happen, for `--dry-run`: comments in front of the file that `--config` takes, so that what is printed can be kept.

use devices::pci::Bdf;
use vfio::{
    host::{Host, Mac},
    kernel::Interface,
};

use crate::machine::{Assignment, BalloonConfig, Config, VsockConfig};

/// It, with `file` behind it.
pub(super) fn text(host: &Host, managed: &[Bdf], config: &Config, file: &str) -> String {
    let steps = host.plan(managed);
    let steps = steps.iter().map(|step| format!("host: {step}"));
    let lines = guest(config).into_iter().chain(steps);
    // Whatever is in a name: no line of it is taken for one of the file's, and no comment has what TOML has in none.
    let comments: String = lines
        .map(|line| format!("# {}\n", line.replace(char::is_control, "\u{fffd}")))
        .collect();
    comments + file
}

/// What the guest would be.
fn guest(config: &Config) -> Vec<String> {
    let (cpus, mib) = (config.cpus(), config.memory_bytes >> 20);
    let mut lines = vec![
        format!("guest: {cpus} vCPU, {mib} MiB of RAM"),
        format!("  kernel   {}", config.kernel.display()),
    ];
    let initrd = config.initrd.iter();
    lines.extend(initrd.map(|path| format!("  initrd   {}", path.display())));
    lines.push(format!("  cmdline  {}", config.cmdline));
    for Assignment { slot, device, .. } in &config.assigned {
        lines.push(format!("  00:{slot}  is the host's {device}"));
    }
    lines.extend(virtual_devices(config));
    let core = config.core.iter();
    lines.extend(core.map(|path| format!("  its memory goes to {} if it dies", path.display())));
    if !config.assigned.is_empty() {
        lines.push(format!("  DMA through {}", interface(config)));
    }
    lines
}

fn virtual_devices(config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    for disk in &config.disks {
        let (slot, path) = (disk.slot, disk.path.display());
        let how = if disk.is_readonly { ", read only" } else { "" };
        let past = if disk.is_direct {
            ", past the page cache"
        } else {
            ""
        };
        lines.push(format!("  00:{slot}  is a disk in {path}{how}{past}"));
    }
    for net in &config.networks {
        let (slot, source, mac) = (net.slot, &net.source, Mac(net.mac));
        let is_there = !matches!(net.source.find(net.queues), Ok(None));
        let made = if is_there {
            ""
        } else {
            " (made, and gone afterwards)"
        };
        lines.push(format!(
            "  00:{slot}  is a network interface on {source}{made}, with the address {mac}"
        ));
    }
    let rng = config.rng.iter();
    lines.extend(rng.map(|slot| format!("  00:{slot}  has the host's random numbers")));
    if let Some(BalloonConfig { slot, pages, .. }) = &config.balloon {
        let mib = pages >> 8;
        lines.push(format!(
            "  00:{slot}  is a balloon, which takes {mib} MiB of RAM"
        ));
    }
    let console = config.console.iter();
    lines.extend(console.map(|console| format!("  00:{}  is the console hvc0", console.slot)));
    if let Some(VsockConfig { slot, cid, socket }) = &config.vsock {
        let by = match socket {
            Some(socket) => socket.display().to_string(),
            None => "AF_VSOCK (vhost-vsock)".to_owned(),
        };
        lines.push(format!(
            "  00:{slot}  has sockets: it is {cid}, reached by {by}"
        ));
    }
    lines
}

/// Which of the kernel's interfaces the devices' memory will be mapped by, as far as that can be told.
fn interface(config: &Config) -> String {
    match config.interface.or_else(Interface::of_host) {
        Some(interface) => format!("the kernel's {interface} interface"),
        None => "what the kernel has once its modules are loaded".into(),
    }
}
