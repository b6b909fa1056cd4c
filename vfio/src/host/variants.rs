//! Which driver of VFIO's fits a device: vfio-pci fits all, and a few devices have one that can do more with them, such as moving
//! them to another host (`mlx5_vfio_pci`).
//!
//! The kernel's build lists them in modules.alias like all drivers, but under `vfio_pci:`, so that no driver of theirs is loaded or
//! bound unless somebody asks. Of the patterns that fit the device's own modalias under that name, the one with the fewest wildcards
//! is the best, which is how the kernel's commit cc6711b0bf36 ("PCI / VFIO: Add 'override_only' support") wants it chosen.

use std::fs;

use devices::pci::Bdf;
use memchr::memmem;

use super::{Host, steps::VFIO_PCI, sysfs};

/// The module of vfio-pci itself, whose pattern is all wildcards.
const GENERIC: &str = "vfio_pci";

/// The name that a device's modalias has for drivers of VFIO's: this before the rest.
const OVERRIDE: &str = "vfio_";

/// The drivers of VFIO's that this kernel has.
pub(super) struct Variants {
    /// Which pattern of devices each fits, and the module it is in.
    modules: Vec<(String, String)>,
}

impl Variants {
    /// The module of the driver that was made for the device; none where vfio-pci is the best.
    fn module_for(&self, modalias: &str) -> Option<&str> {
        let name = format!("{OVERRIDE}{modalias}");
        let fitting = self
            .modules
            .iter()
            .filter(|(pattern, _)| fits(pattern, &name));
        let (_, module) = fitting.min_by_key(|(pattern, _)| pattern.matches('*').count())?;
        Some(module.as_str()).filter(|&module| module != GENERIC)
    }
}

impl Host {
    /// Reads the kernel's lists of modules: more than a megabyte, of which a few lines count.
    pub(super) fn read_variants(&self) -> Variants {
        let release = sysfs::text(&self.roots.proc.join("sys/kernel/osrelease"));
        let dir = self
            .roots
            .lib
            .join("modules")
            .join(release.unwrap_or_default());
        let read = |name| fs::read(dir.join(name)).unwrap_or_default();
        let listed = read("modules.alias");
        // Of what is built in: `MODULE.alias=PATTERN`, each ended by a zero byte.
        let built_in = read("modules.builtin.modinfo");
        let listed = naming(&listed, b'\n').filter_map(alias);
        let all = listed.chain(naming(&built_in, 0).filter_map(built_in_alias));
        let owned = |(pattern, module): (&str, &str)| (pattern.to_owned(), module.to_owned());
        Variants {
            modules: all.map(owned).collect(),
        }
    }

    /// The module of the driver that was made for this device; none where vfio-pci is the best.
    fn variant_for(&self, device: Bdf) -> Option<String> {
        let modalias = sysfs::text(&self.pci_dir(device).join("modalias"))?;
        self.variants().module_for(&modalias).map(str::to_owned)
    }

    /// The name under which a loaded module has its driver, which need not be its own.
    pub(super) fn driver_in(&self, module: &str) -> Option<String> {
        let drivers = self.roots.sys.join("module").join(module).join("drivers");
        let names = sysfs::names(&drivers);
        let listed = names.iter().find_map(|name| name.strip_prefix("pci:"));
        // A module that is built in need not have a folder.
        let named = || Some(module).filter(|name| self.driver_dir(name).exists());
        listed.or_else(named).map(str::to_owned)
    }

    /// The driver to give `device` to, as far as can be told without loading any.
    pub(super) fn expected_vfio_driver(&self, device: Bdf) -> String {
        let variant = self.variant_for(device);
        let name = |module: String| self.driver_in(&module).unwrap_or(module);
        variant.map_or_else(|| VFIO_PCI.into(), name)
    }

    /// The driver to give `device` to, loaded.
    pub(super) fn best_vfio_driver(&self, device: Bdf) -> String {
        let Some(module) = self.variant_for(device) else {
            return VFIO_PCI.into();
        };
        let loaded = self.driver_in(&module).map_or_else(
            || {
                self.changes
                    .load_module(&module)
                    .map(|()| self.driver_in(&module))
            },
            |driver| Ok(Some(driver)),
        );
        match loaded {
            Ok(Some(driver)) => return driver,
            Ok(None) => log::warn!(
                "{device}: {module}, which was made for it, has no driver; it gets {VFIO_PCI}"
            ),
            Err(error) => log::warn!(
                "{device}: {module}, which was made for it, cannot be loaded; it gets {VFIO_PCI}: {error}"
            ),
        }
        VFIO_PCI.into()
    }
}

/// The parts of `text`, ended by `end`, that name a driver of VFIO's.
fn naming(text: &[u8], end: u8) -> impl Iterator<Item = &str> {
    memmem::find_iter(text, OVERRIDE).filter_map(move |at| {
        let start = memchr::memrchr(end, &text[..at]).map_or(0, |before| before + 1);
        let rest = &text[start..];
        str::from_utf8(&rest[..memchr::memchr(end, rest).unwrap_or(rest.len())]).ok()
    })
}

/// `alias PATTERN MODULE`
fn alias(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace();
    let (Some("alias"), Some(pattern), Some(module)) = (words.next(), words.next(), words.next())
    else {
        return None;
    };
    Some((pattern, module))
}

fn built_in_alias(field: &str) -> Option<(&str, &str)> {
    let (module, pattern) = field.split_once(".alias=")?;
    Some((pattern, module))
}

/// Whether the pattern, in which `*` stands for anything, is that of `name`.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::{
        super::fixture::{Fixture, bdf, function},
        *,
    };

    const ALIASES: &str = "# Aliases extracted from modules themselves.
alias pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_core
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci
alias vfio_pci:v00001AF4d00001041sv*sd*bc02sc00i* wide_vfio_pci
alias vfio_pci:v00001AF4d00001041sv00001AF4sd00000001bc*sc*i00 virtio_vfio_pci
alias symbol:vfio_pci_core_ioctl vfio_pci_core
alias
";

    fn machine(modalias: &str) -> Fixture {
        let fixture = Fixture::new();
        fixture.add(function("03:10.3"));
        fixture.file(
            "sys/bus/pci/devices/0000:03:10.3/modalias",
            format!("{modalias}\n"),
        );
        fixture.file("proc/sys/kernel/osrelease", "6.12.1-test\n");
        fixture.file("lib/modules/6.12.1-test/modules.alias", ALIASES);
        fixture
    }

    fn variant(modalias: &str) -> Option<String> {
        machine(modalias).host().variant_for(bdf("03:10.3"))
    }

    #[test]
    fn the_driver_made_for_a_device_is_the_one_whose_pattern_has_the_fewest_wildcards() {
        let mellanox = "pci:v000015B3d0000101Esv000015B3sd00000001bc02sc00i00";
        assert_eq!(variant(mellanox).as_deref(), Some("mlx5_vfio_pci"));
        let virtio = "pci:v00001AF4d00001041sv00001AF4sd00000001bc02sc00i00";
        assert_eq!(variant(virtio).as_deref(), Some("virtio_vfio_pci"));
        let of_another = "pci:v00001AF4d00001041sv00001AF4sd00000002bc02sc00i00";
        assert_eq!(variant(of_another).as_deref(), Some("wide_vfio_pci"));
    }

    #[test]
    fn a_device_that_only_the_pattern_of_all_fits_has_no_driver_of_its_own() {
        let intel = "pci:v00008086d000010CAsv00008086sd0000A03Cbc02sc00i00";
        assert_eq!(variant(intel), None);
        let audio = "pci:v00001AF4d00001041sv00001AF4sd00000001bc04sc00i01";
        assert_eq!(variant(audio), None);
        assert_eq!(variant("pci:"), None);
    }

    #[test]
    fn a_host_without_a_list_of_modules_has_no_driver_made_for_anything() {
        let fixture = Fixture::new();
        let device = fixture.add(function("03:10.3"));
        assert_eq!(fixture.host().variant_for(device), None);
    }

    #[test]
    fn drivers_that_are_built_in_are_found_as_well() {
        let fixture = machine("pci:v000010DEd00002342sv000010DEsd000016EBbc03sc02i00");
        fixture.file(
            "lib/modules/6.12.1-test/modules.builtin.modinfo",
            "vfio.license=GPL v2\0nvgrace_gpu_vfio_pci.alias=vfio_pci:v000010DEd00002342sv*sd*bc*sc*i*\0",
        );
        let variant = fixture.host().variant_for(bdf("03:10.3"));
        assert_eq!(variant.as_deref(), Some("nvgrace_gpu_vfio_pci"));
    }

    #[test]
    fn a_star_stands_for_anything_also_for_nothing() {
        for (pattern, name, yes) in [
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "acd", false),
            ("a*b*c", "a1b2b3c", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*ba", "aba", true),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(fits(pattern, name), yes, "{pattern} {name}");
        }
    }
}
