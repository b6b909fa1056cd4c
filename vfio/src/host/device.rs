//! One PCI function of the host, and what its sysfs directory says about it.

use std::{cell::RefCell, collections::BTreeMap, fs, path::PathBuf, rc::Rc};

use devices::pci::Bdf;

use super::{Host, Mac, facts::ConfigSpace, mac, sysfs};

/// Facts of a function, as they were when asked for.
///
/// Not `driver_override`: reading it waits for the device's lock, which a driver that does not let go holds for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its address.
    pub bdf: Bdf,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem_device: u16,
    /// Class code: base class, sub-class, programming interface in the lower 24 bits.
    pub class: u32,
    /// Layout of its configuration header: 0 endpoint, 1 bridge, 2 CardBus bridge (PCI 3.0 §6.1).
    pub header_type: u8,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group; none where no IOMMU stands before it.
    pub iommu_group: Option<u32>,
    /// The memory node it is next to.
    pub numa_node: Option<u32>,
    /// Of a virtual function: the physical one, and which one of its functions this is.
    pub virtual_function_of: Option<(Bdf, u32)>,
    /// Of a physical function: its virtual ones.
    pub sriov: Option<Sriov>,
    /// How the kernel can reset it, best first: `flr`, `pm`, `bus`, …
    pub reset_methods: Vec<String>,
    /// The network interfaces that stand on it.
    pub interfaces: Vec<NetInterface>,
    /// Whether the firmware's console was on it.
    pub boot_vga: bool,
}

/// The virtual functions of a physical one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sriov {
    /// How many it can have.
    pub total: u32,
    /// Those that are enabled, by index.
    pub functions: Vec<Bdf>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetInterface {
    /// Its name, `eth2`.
    pub name: String,
    /// Its address, where it is an Ethernet one.
    pub mac: Option<Mac>,
    /// It is switched on (`ip link set … up`).
    pub is_up: bool,
    /// Whether it can carry anything, in the kernel's words: `up`, `down`, `unknown`, …
    pub state: Option<String>,
}

/// What functions have in common, so that it is read once for all of them.
pub(super) struct Surroundings {
    /// The network interfaces that stand on a function, or on one behind it.
    interfaces: BTreeMap<Bdf, Vec<String>>,
    /// The virtual functions of those physical ones that were asked for.
    virtual_functions: RefCell<BTreeMap<Bdf, Rc<[Bdf]>>>,
}

/// An interface's flag that it is switched on, `IFF_UP` of linux/if.h.
const IFF_UP: u32 = 1 << 0;

/// The facts cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is no such function (any more).
    #[error("{0}: no such device\n  see what there is:  viaduct list")]
    NotFound(Bdf),
    /// The kernel does not say something it always says.
    #[error("{device}: cannot read '{attribute}' in {}", dir.display())]
    Unreadable {
        /// Which function.
        device: Bdf,
        /// Which attribute.
        attribute: &'static str,
        /// Where it should be.
        dir: PathBuf,
    },
}

impl Device {
    /// Whether it leads to another bus (or is the way to all of them): nothing that can be given to a guest.
    pub fn is_bridge(&self) -> bool {
        is_bridge(self.header_type, self.class)
    }
}

fn is_bridge(header_type: u8, class: u32) -> bool {
    // A host or ISA bridge has an endpoint's header. Other endpoints of class 06 (switch management, "other bridge") are
    // devices like any other.
    header_type != 0 || matches!(class >> 8, 0x0600 | 0x0601)
}

impl Host {
    /// What there is to know about a function.
    pub fn device(&self, bdf: Bdf) -> Result<Device, DeviceError> {
        let config = ConfigSpace::header(&self.pci_dir(bdf));
        self.device_among(bdf, &config, &self.surroundings())
    }

    /// The same, given what has been read before.
    pub(super) fn device_among(
        &self,
        bdf: Bdf,
        config: &ConfigSpace,
        around: &Surroundings,
    ) -> Result<Device, DeviceError> {
        let dir = self.pci_dir(bdf);
        if !dir.exists() {
            return Err(DeviceError::NotFound(bdf));
        }
        let number = |attribute| {
            sysfs::number(&dir.join(attribute)).ok_or_else(|| DeviceError::Unreadable {
                device: bdf,
                attribute,
                dir: dir.clone(),
            })
        };
        let id = |attribute| number(attribute).map(|id| u16::try_from(id).unwrap_or(0xffff));
        let class = number("class")?;
        Ok(Device {
            bdf,
            vendor: id("vendor")?,
            device: id("device")?,
            subsystem_vendor: id("subsystem_vendor").unwrap_or(0),
            subsystem_device: id("subsystem_device").unwrap_or(0),
            class,
            header_type: header_type(config, class),
            driver: self.driver_of(bdf),
            iommu_group: sysfs::link_name(&dir.join("iommu_group"))
                .and_then(|name| name.parse().ok()),
            // -1, no node, does not parse.
            numa_node: sysfs::number(&dir.join("numa_node")),
            virtual_function_of: self.physical_function(bdf, around),
            sriov: self.sriov(bdf, around),
            reset_methods: sysfs::text(&dir.join("reset_method"))
                .map(|text| text.split_whitespace().map(String::from).collect())
                .unwrap_or_default(),
            interfaces: self.interfaces(bdf, around),
            boot_vga: sysfs::number(&dir.join("boot_vga")) == Some(1),
        })
    }

    /// Whether the function is a bridge; not if it does not even say its class.
    pub(super) fn is_bridge(&self, bdf: Bdf) -> bool {
        let dir = self.pci_dir(bdf);
        let class = sysfs::number(&dir.join("class"));
        class.is_some_and(|class| is_bridge(header_type(&ConfigSpace::header(&dir), class), class))
    }

    fn physical_function(&self, bdf: Bdf, around: &Surroundings) -> Option<(Bdf, u32)> {
        let physical = sysfs::link_name(&self.pci_dir(bdf).join("physfn"))?;
        let physical = physical.parse().ok()?;
        let functions = self.virtual_functions(physical, around);
        let at = functions.iter().position(|&function| function == bdf)?;
        Some((physical, u32::try_from(at).ok()?))
    }

    fn sriov(&self, bdf: Bdf, around: &Surroundings) -> Option<Sriov> {
        let total = sysfs::number(&self.pci_dir(bdf).join("sriov_totalvfs"))?;
        let functions = self.virtual_functions(bdf, around).to_vec();
        Some(Sriov { total, functions })
    }

    /// The enabled virtual functions of `physical`, by index: links `virtfn0`, `virtfn1`, …
    fn virtual_functions(&self, physical: Bdf, around: &Surroundings) -> Rc<[Bdf]> {
        let dir = self.pci_dir(physical);
        let read = || {
            (0..u32::from(u16::MAX))
                .map_while(|index| sysfs::link_name(&dir.join(format!("virtfn{index}"))))
                .map_while(|name| name.parse().ok())
                .collect()
        };
        let mut known = around.virtual_functions.borrow_mut();
        known.entry(physical).or_insert_with(read).clone()
    }

    /// What functions have in common now.
    pub(super) fn surroundings(&self) -> Surroundings {
        let class = self.roots.sys.join("class/net");
        let mut interfaces: BTreeMap<Bdf, Vec<String>> = BTreeMap::new();
        for name in sysfs::names(&class) {
            let path = fs::read_link(class.join(&name)).unwrap_or_default();
            // `../../devices/pci0000:00/0000:00:01.0/0000:03:10.3/net/eth2`
            let parts = path.iter().filter_map(|part| part.to_str()?.parse().ok());
            for function in parts {
                interfaces.entry(function).or_default().push(name.clone());
            }
        }
        Surroundings {
            interfaces,
            virtual_functions: RefCell::default(),
        }
    }

    /// The network interfaces that stand on the function, directly or through a device below it (virtio, USB).
    fn interfaces(&self, bdf: Bdf, around: &Surroundings) -> Vec<NetInterface> {
        let class = self.roots.sys.join("class/net");
        let names = around.interfaces.get(&bdf).into_iter().flatten();
        names
            .map(|name| {
                let dir = class.join(name);
                let flags = sysfs::number(&dir.join("flags"));
                NetInterface {
                    name: name.clone(),
                    mac: sysfs::text(&dir.join("address")).and_then(|text| mac::octets(&text)),
                    is_up: flags.is_some_and(|flags| flags & IFF_UP != 0),
                    state: sysfs::text(&dir.join("operstate")),
                }
            })
            .collect()
    }

    /// The names in `/sys/class/<class>` whose devices stand on the function.
    pub(super) fn class_devices_below(
        &self,
        class: &str,
        bdf: Bdf,
    ) -> impl Iterator<Item = String> + use<> {
        // One readlink each, of `../../devices/pci0000:00/0000:00:01.0/0000:03:10.3/net/eth2`.
        let dir = self.roots.sys.join("class").join(class);
        let function = bdf.to_string();
        sysfs::names(&dir).into_iter().filter(move |name| {
            fs::read_link(dir.join(name))
                .is_ok_and(|path| path.iter().any(|part| part == function.as_str()))
        })
    }
}

/// Layout of the header, without the multifunction bit.
fn header_type(config: &ConfigSpace, class: u32) -> u8 {
    // Without its configuration space the class is the next best witness: 0604 is a PCI-to-PCI bridge.
    let of_class = u8::from(class >> 8 == 0x0604);
    config.header_type().unwrap_or(of_class)
}
