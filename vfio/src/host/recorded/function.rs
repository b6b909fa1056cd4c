//! A function of a recorded machine: what is said of it, and the directory that is made of that.
//!
//! ```text
//! driver igb                  it has this driver
//! group 14                    its IOMMU group
//! under 0000:00:01.0          the bridge that it is behind
//! subsystem 8086:0001
//! header 1                    layout of its header: 0 endpoint, 1 bridge
//! pin A
//! bar 0 memory64 prefetchable 0x4000000000 16K
//! rom 0xfe000000 512K
//! capability power            or express, `msi VECTORS`, `msix VECTORS BAR:OFFSET BAR:OFFSET` (table, pending bits)
//! net eth0 52:54:00:00:00:01 up
//! virtual 63 of 8086:1565 first 16 step 2 driver ixgbevf group 100
//!                             virtual functions: their number, IDs, first address behind this one, distance, driver, first group
//! ```
//!
//! Anything else is an attribute: `numa_node 1`, `reset_method flr bus`.

use std::path::PathBuf;

use devices::pci::Bdf;

use super::{Recorded, space};

#[derive(Clone)]
pub(super) struct Function {
    pub(super) bdf: Bdf,
    pub(super) vendor: u16,
    pub(super) device: u16,
    class: u32,
    driver: Option<String>,
    group: Option<u32>,
    under: Option<Bdf>,
    pub(super) header_type: u8,
    pub(super) pin: u8,
    /// Of each register: `0xfirst 0xlast 0xflags`.
    resources: [String; 7],
    pub(super) capabilities: Vec<Vec<u8>>,
    /// Name, MAC address, whether it is up.
    interfaces: Vec<(String, String, bool)>,
    attributes: Vec<(String, String)>,
    /// Of a virtual one: its physical function.
    physical: Option<Bdf>,
    virtuals: Vec<Self>,
}

impl Function {
    /// `0000:01:00.0 8086:1521 020000`
    pub(super) fn new(line: &str) -> Self {
        let [bdf, ids, class] = words(line);
        let (vendor, device) = ids.split_once(':').unwrap();
        Self {
            bdf: bdf.parse().unwrap(),
            vendor: hex(vendor).try_into().unwrap(),
            device: hex(device).try_into().unwrap(),
            class: hex(class).try_into().unwrap(),
            driver: None,
            group: None,
            under: None,
            header_type: 0,
            pin: 0,
            resources: Default::default(),
            capabilities: Vec::new(),
            interfaces: Vec::new(),
            attributes: Vec::new(),
            physical: None,
            virtuals: Vec::new(),
        }
    }

    /// Something more about it.
    pub(super) fn say(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap();
        let rest = rest.trim();
        match word {
            "driver" => self.driver = Some(rest.to_owned()),
            "group" => self.group = Some(rest.parse().unwrap()),
            "under" => self.under = Some(rest.parse().unwrap()),
            "header" => self.header_type = rest.parse().unwrap(),
            "pin" => self.pin = rest.as_bytes()[0] - b'A' + 1,
            "bar" => {
                let (index, rest) = rest.split_once(' ').unwrap();
                self.resources[index.parse::<usize>().unwrap()] = space::resource(rest);
            }
            "rom" => self.resources[6] = space::resource(&format!("memory32 readonly {rest}")),
            "capability" => self.capabilities.push(space::capability(rest)),
            "net" => {
                let [name, mac, state] = words(rest);
                self.interfaces
                    .push((name.into(), mac.into(), state == "up"));
            }
            "virtual" => self.virtuals = self.virtual_functions(rest),
            "subsystem" => {
                let (vendor, device) = rest.split_once(':').unwrap();
                self.attribute("subsystem_vendor", &format!("0x{vendor}"));
                self.attribute("subsystem_device", &format!("0x{device}"));
            }
            attribute => self.attribute(attribute, rest),
        }
    }

    fn attribute(&mut self, name: &str, text: &str) {
        self.attributes.push((name.into(), text.into()));
    }

    fn virtual_functions(&self, line: &str) -> Vec<Self> {
        let [
            count,
            "of",
            ids,
            "first",
            first,
            "step",
            step,
            "driver",
            driver,
            "group",
            group,
        ] = words(line)
        else {
            panic!("not virtual functions: {line}");
        };
        let number = |text: &str| -> u32 { text.parse().unwrap() };
        let function = |index| {
            let id: u32 = u32::from(self.bdf.bus) << 8
                | u32::from(self.bdf.device) << 3
                | u32::from(self.bdf.function);
            let id: u32 = id + number(first) + index * number(step);
            let bdf = Bdf {
                segment: self.bdf.segment,
                bus: (id >> 8).try_into().unwrap(),
                device: (id >> 3 & 0x1f).try_into().unwrap(),
                function: (id & 7).try_into().unwrap(),
            };
            let class = self.class;
            let mut function = Self::new(&format!("{bdf} {ids} {class:06x}"));
            function.say("reset_method flr");
            function.say("capability express");
            function.say("capability msix 3 3:0 3:0x2000");
            let at = 0x20_0000_0000_u64 + u64::from(index) * 0x4000;
            function.say(&format!("bar 0 memory64 prefetchable {at:#x} 16K"));
            function.say(&format!(
                "bar 3 memory64 prefetchable {:#x} 16K",
                at + 0x1000_0000
            ));
            function.driver = Some(driver.to_owned());
            function.group = Some(number(group) + index);
            function.under = self.under;
            function.physical = Some(self.bdf);
            let mac = format!("02:00:00:00:00:{index:02x}");
            function.interfaces = vec![(format!("vf{index}"), mac, false)];
            function
        };
        (0..number(count)).map(function).collect()
    }

    /// Its directory in `/sys`, below those of the bridges before it.
    fn dir(&self, all: &[Self]) -> PathBuf {
        let Self { bdf, under, .. } = self;
        let bridge = under.and_then(|under| all.iter().find(|other| other.bdf == under));
        let before = match bridge {
            Some(bridge) => bridge.dir(all),
            None => format!("devices/pci{:04x}:{:02x}", bdf.segment, bdf.bus).into(),
        };
        before.join(bdf.to_string())
    }

    pub(super) fn make(&self, machine: &Recorded, all: &[Self]) {
        let inner = self.dir(all);
        let bdf = self.bdf;
        machine.link(
            &format!("sys/bus/pci/devices/{bdf}"),
            PathBuf::from("../../..").join(&inner),
        );
        let dir = format!("sys/{}", inner.display());
        self.make_attributes(machine, &dir);
        self.make_links(machine, &dir);
        for (name, mac, up) in &self.interfaces {
            let net = format!("{dir}/net/{name}");
            let (state, flags) = if *up {
                ("up", "0x1003")
            } else {
                ("down", "0x1002")
            };
            for (attribute, text) in [("address", &**mac), ("operstate", state), ("flags", flags)] {
                machine.file(&format!("{net}/{attribute}"), format!("{text}\n"));
            }
            let target = PathBuf::from("../..").join(&inner).join("net").join(name);
            machine.link(&format!("sys/class/net/{name}"), target);
        }
        for (index, function) in self.virtuals.iter().enumerate() {
            let name = function.bdf;
            machine.link(&format!("{dir}/virtfn{index}"), format!("../{name}"));
            function.make(machine, all);
        }
    }

    fn make_attributes(&self, machine: &Recorded, dir: &str) {
        let usual = [
            ("vendor", format!("{:#06x}", self.vendor)),
            ("device", format!("{:#06x}", self.device)),
            ("subsystem_vendor", "0x0000".to_owned()),
            ("subsystem_device", "0x0000".to_owned()),
            ("class", format!("{:#08x}", self.class)),
            ("numa_node", "-1".to_owned()),
            ("power_state", "D0".to_owned()),
            ("driver_override", "(null)".to_owned()),
        ];
        let said = self
            .attributes
            .iter()
            .map(|(name, text)| (&**name, text.clone()));
        for (name, text) in usual.into_iter().chain(said) {
            machine.file(&format!("{dir}/{name}"), format!("{text}\n"));
        }
        let none = "0x0000000000000000 0x0000000000000000 0x0000000000000000";
        let line = |line: &String| format!("{}\n", if line.is_empty() { none } else { line });
        let lines: String = self.resources.iter().map(line).collect();
        machine.file(&format!("{dir}/resource"), lines);
        machine.file(&format!("{dir}/config"), space::config(self, self.class));
        if !self.virtuals.is_empty() {
            let count = self.virtuals.len();
            for attribute in ["sriov_totalvfs", "sriov_numvfs"] {
                machine.file(&format!("{dir}/{attribute}"), format!("{count}\n"));
            }
        }
    }

    fn make_links(&self, machine: &Recorded, dir: &str) {
        let bdf = self.bdf;
        if let Some(driver) = &self.driver {
            let home = machine.path(&format!("sys/bus/pci/drivers/{driver}"));
            std::fs::create_dir_all(&home).unwrap();
            machine.link(&format!("{dir}/driver"), home);
        }
        if let Some(group) = self.group {
            let home = format!("sys/kernel/iommu_groups/{group}");
            machine.link(&format!("{home}/devices/{bdf}"), machine.path(dir));
            machine.link(&format!("{dir}/iommu_group"), machine.path(&home));
        }
        if let Some(physical) = self.physical {
            machine.link(&format!("{dir}/physfn"), format!("../{physical}"));
        }
    }
}

/// Exactly `N` words.
fn words<const N: usize>(line: &str) -> [&str; N] {
    let words: Vec<&str> = line.split_whitespace().collect();
    words
        .try_into()
        .unwrap_or_else(|_| panic!("not {N} words: {line}"))
}

fn hex(digits: &str) -> u64 {
    u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).unwrap()
}
