//! Devices that the host itself stands on: taking one away ends more than its driver.

use std::{collections::HashSet, fmt, fs};

use devices::pci::Bdf;

use super::{Device, Host, sysfs};

/// Why the host would miss the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Danger {
    /// It has virtual functions, which go when its driver goes.
    VirtualFunctions(Vec<Bdf>),
    /// The default route goes through it.
    DefaultRoute {
        /// The interface on it.
        interface: String,
    },
    /// A file system on it is mounted.
    Mounted {
        /// The disk or partition on it.
        disk: String,
        /// Where.
        at: String,
    },
    /// The host swaps to it.
    Swap {
        /// The disk or partition on it.
        disk: String,
    },
    /// The firmware's console was on it.
    BootVga,
}

impl fmt::Display for Danger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VirtualFunctions(functions) => {
                let names: Vec<String> = functions.iter().map(Bdf::to_string).collect();
                let names = names.join(", ");
                write!(f, "its virtual functions go when its driver goes: {names}")
            }
            Self::DefaultRoute { interface } => {
                write!(
                    f,
                    "this host's default route goes through {interface}, which is on it"
                )
            }
            Self::Mounted { disk, at } => write!(f, "{disk}, which is on it, is mounted on {at}"),
            Self::Swap { disk } => write!(f, "this host swaps to {disk}, which is on it"),
            Self::BootVga => write!(f, "it is the display that this host booted on"),
        }
    }
}

/// Bridges on bonds on VLANs: nobody goes deeper than this.
const LAYERS: usize = 8;

impl Host {
    /// What the host would miss if the device were taken.
    pub fn dangers(&self, device: &Device) -> Vec<Danger> {
        let mut dangers = Vec::new();
        if let Some(sriov) = device.sriov.as_ref().filter(|s| !s.functions.is_empty()) {
            dangers.push(Danger::VirtualFunctions(sriov.functions.clone()));
        }
        if !device.interfaces.is_empty() {
            dangers.extend(self.routes_through(device));
        }
        let mounts = self.mounts();
        dangers.extend(self.disks_in_use(device.bdf, &mounts));
        dangers.extend(self.shares_in_use(device.bdf, &mounts));
        if device.boot_vga {
            dangers.push(Danger::BootVga);
        }
        dangers
    }

    fn routes_through(&self, device: &Device) -> impl Iterator<Item = Danger> {
        let routed = self.interfaces_of_default_route();
        let interfaces = device.interfaces.iter();
        interfaces
            .filter(move |interface| routed.contains(&interface.name))
            .map(|interface| Danger::DefaultRoute {
                interface: interface.name.clone(),
            })
    }

    /// The interfaces of the default routes, and the ones below those (of a bridge, a bond, a VLAN).
    fn interfaces_of_default_route(&self) -> HashSet<String> {
        let net = self.roots.proc.join("net");
        let v4 = sysfs::text(&net.join("route")).unwrap_or_default();
        let v6 = sysfs::text(&net.join("ipv6_route")).unwrap_or_default();
        // Interface, destination, …, mask in the eighth column. A gateway of zero is a default route too (point to point).
        let v4 = v4.lines().filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let default =
                columns.get(1) == Some(&"00000000") && columns.get(7) == Some(&"00000000");
            default.then(|| columns[0].to_owned())
        });
        // Destination, its prefix length, …, interface last. The kernel keeps rejecting default routes on lo.
        let v6 = v6.lines().filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let any = columns.first()?.bytes().all(|digit| digit == b'0');
            let name = columns.last().filter(|&&name| name != "lo")?;
            (any && columns.get(1) == Some(&"00")).then(|| (*name).to_owned())
        });
        let mut found: HashSet<String> = v4.chain(v6).collect();
        let mut layer: Vec<String> = found.iter().cloned().collect();
        for _ in 0..LAYERS {
            let lower = layer.iter().flat_map(|name| self.lower(name));
            layer = lower.filter(|name| !found.contains(name)).collect();
            found.extend(layer.iter().cloned());
        }
        found
    }

    /// The interfaces that `interface` is made of: the links `lower_eth2`.
    fn lower(&self, interface: &str) -> Vec<String> {
        sysfs::names(&self.roots.sys.join("class/net").join(interface))
            .iter()
            .filter_map(|name| Some(name.strip_prefix("lower_")?.to_owned()))
            .collect()
    }

    fn disks_in_use(&self, bdf: Bdf, mounts: &[Mount]) -> Vec<Danger> {
        let swaps = self.swaps();
        let mut dangers = Vec::new();
        for disk in self.class_devices_below("block", bdf) {
            for part in self.stacked_on(&disk) {
                if let Some(mount) = mounts.iter().find(|m| self.is_disk(m, &part)) {
                    let (disk, at) = (disk.clone(), mount.at.clone());
                    dangers.push(Danger::Mounted { disk, at });
                }
                if swaps.contains(&part) {
                    dangers.push(Danger::Swap { disk: disk.clone() });
                }
            }
        }
        dangers
    }

    /// Folders of somebody else's that are mounted through a virtio device on the function (9p, virtiofs).
    fn shares_in_use(&self, bdf: Bdf, mounts: &[Mount]) -> Vec<Danger> {
        let devices = sysfs::names(&self.pci_dir(bdf)).into_iter();
        let devices = devices.filter(|name| name.starts_with("virtio"));
        let tags = devices.flat_map(|device| self.tags(bdf, &device));
        tags.filter_map(|(kind, tag)| {
            let is_it = |mount: &&Mount| mount.kind == kind && mount.source == tag;
            let at = mounts.iter().find(is_it)?.at.clone();
            let disk = format!("the share '{tag}'");
            Some(Danger::Mounted { disk, at })
        })
        .collect()
    }

    /// What a virtio device's shares are called, by kind of file system. The kernel tells of virtiofs since 6.9 only.
    fn tags(&self, bdf: Bdf, device: &str) -> Vec<(&'static str, String)> {
        let text = sysfs::text(&self.pci_dir(bdf).join(device).join("mount_tag"));
        // Some kernels count the string's end as a part of it.
        let plan9 = text.map(|tag| ("9p", tag.trim_end_matches('\0').to_owned()));
        let all = self.roots.sys.join("fs/virtiofs");
        let of_device = |name: &String| {
            let dir = all.join(name);
            let on = sysfs::link_name(&dir.join("device"));
            let tag = sysfs::text(&dir.join("tag")).filter(|_| on.as_deref() == Some(device));
            Some(("virtiofs", tag?))
        };
        let virtio = sysfs::names(&all);
        plan9
            .into_iter()
            .chain(virtio.iter().filter_map(of_device))
            .collect()
    }

    /// The disk and what is made of it: `sda2`, the `dm-0` on that, the `dm-1` on that.
    fn stacked_on(&self, disk: &str) -> Vec<String> {
        let class = self.roots.sys.join("class/block");
        let mut all = vec![multipath_head(disk)];
        for _ in 0..LAYERS {
            let above: Vec<String> = all
                .iter()
                .flat_map(|name| sysfs::names(&class.join(name).join("holders")))
                .filter(|name| !all.contains(name))
                .collect();
            if above.is_empty() {
                break;
            }
            all.extend(above);
            all.dedup();
        }
        all
    }

    fn is_disk(&self, mount: &Mount, disk: &str) -> bool {
        let number = sysfs::text(&self.roots.sys.join("class/block").join(disk).join("dev"));
        // By number; and by name for btrfs, which mounts under numbers of its own.
        number.as_ref() == Some(&mount.number) || self.disk_name(&mount.source) == disk
    }

    /// `/dev/mapper/root` is `dm-0`.
    fn disk_name(&self, path: &str) -> String {
        let relative = path.strip_prefix("/dev/").unwrap_or(path);
        let path = self.roots.dev.join(relative);
        let path = fs::canonicalize(&path).unwrap_or(path);
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// What is mounted where: `36 35 98:0 /root /mnt rw … - ext4 /dev/sda2 rw` (proc_pid_mountinfo(5)).
    fn mounts(&self) -> Vec<Mount> {
        let text = sysfs::text(&self.roots.proc.join("self/mountinfo")).unwrap_or_default();
        let mount = |line: &str| {
            let (mount, source) = line.split_once(" - ")?;
            let mut columns = mount.split(' ').skip(2);
            let mut source = source.split(' ');
            Some(Mount {
                kind: source.next()?.to_owned(),
                source: source.next()?.to_owned(),
                number: columns.next()?.to_owned(),
                at: columns.nth(1)?.to_owned(),
            })
        };
        text.lines().filter_map(mount).collect()
    }

    fn swaps(&self) -> HashSet<String> {
        let text = sysfs::text(&self.roots.proc.join("swaps")).unwrap_or_default();
        text.lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next())
            .map(|path| self.disk_name(path))
            .collect()
    }
}

struct Mount {
    kind: String,
    number: String,
    at: String,
    source: String,
}

/// With NVMe multipath the PCI function has `nvme0c1n1`, a path; what is mounted is `nvme0n1`, which stands on no function.
fn multipath_head(disk: &str) -> String {
    let head = || {
        let (subsystem, rest) = disk.strip_prefix("nvme")?.split_once('c')?;
        let (_, namespace) = rest.split_once('n')?;
        Some(format!("nvme{subsystem}n{namespace}"))
    };
    head().unwrap_or_else(|| disk.to_owned())
}
