//! What a guest's CPUID says: the host's as far as KVM supports it, without what a guest must not see, with what it needs.
//!
//! Leaf numbers and bits: Intel SDM vol. 2A "CPUID", AMD APM vol. 3 appendix E, Documentation/virt/kvm/x86/cpuid.rst. KVM fills in what depends on the guest's state (XSAVE sizes,
//! OSXSAVE); XSAVE's leaf 0xd is left as KVM gives it.

pub mod model;
pub mod topology;

#[cfg(test)]
mod tests;

use self::{model::Model, topology::Topology};

/// One leaf (or sub-leaf), as `kvm_cpuid_entry2` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leaf {
    /// EAX on input.
    pub function: u32,
    /// ECX on input, where it matters.
    pub index: u32,
    /// Whether it matters: `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`.
    pub significant_index: bool,
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// What the machine says of one vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidConfig {
    /// Its APIC ID, one of the topology's.
    pub apic_id: u32,
    /// What it is a part of.
    pub topology: Topology,
    /// What it can do.
    pub model: Model,
    /// What its time stamp counter runs at, if KVM knows.
    pub tsc_khz: Option<u32>,
    /// Whether KVM's local APIC timer takes a TSC deadline.
    pub tsc_deadline: bool,
}

/// KVM's local APIC timer counts nanoseconds.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Leaf numbers.
mod leaf {
    pub(super) const BASIC: u32 = 0x0;
    pub(super) const FEATURES: u32 = 0x1;
    pub(super) const CACHES_INTEL: u32 = 0x4;
    pub(super) const MONITOR: u32 = 0x5;
    pub(super) const POWER: u32 = 0x6;
    pub(super) const MORE_FEATURES: u32 = 0x7;
    pub(super) const PERFMON: u32 = 0xa;
    pub(super) const TOPOLOGY: u32 = 0xb;
    pub(super) const STATES: u32 = 0xd;
    pub(super) const SGX: u32 = 0x12;
    pub(super) const TSC: u32 = 0x15;
    pub(super) const KEY_LOCKER_TME: u32 = 0x1b;
    pub(super) const TOPOLOGY_V2: u32 = 0x1f;
    pub(super) const HYPERVISOR: u32 = 0x4000_0000;
    pub(super) const HYPERVISOR_TIMING: u32 = 0x4000_0010;
    pub(super) const EXTENDED_FEATURES: u32 = 0x8000_0001;
    pub(super) const SIZES: u32 = 0x8000_0008;
    pub(super) const SVM: u32 = 0x8000_000a;
    pub(super) const CACHES_AMD: u32 = 0x8000_001d;
    pub(super) const TOPOLOGY_AMD: u32 = 0x8000_001e;
    pub(super) const MEMORY_ENCRYPTION: u32 = 0x8000_001f;
    pub(super) const TOPOLOGY_AMD_V2: u32 = 0x8000_0026;
}

// Leaf 1, ECX and EDX.
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const SMX: u32 = 1 << 6;
const SPEEDSTEP: u32 = 1 << 7;
const THERMAL_MONITOR_2: u32 = 1 << 8;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const THERMAL_ACPI: u32 = 1 << 22;
const THERMAL_MONITOR: u32 = 1 << 29;
// Leaf 6, EAX.
const ALWAYS_RUNNING_APIC_TIMER: u32 = 1 << 2;
// Leaf 7, EBX, ECX and EDX.
const SGX: u32 = 1 << 2;
const TME: u32 = 1 << 13;
const SGX_LAUNCH_CONTROL: u32 = 1 << 30;
const PCONFIG: u32 = 1 << 18;
// Leaf 0x8000_0001, ECX.
const SVM: u32 = 1 << 2;
const SKINIT: u32 = 1 << 12;

/// The leaves, one for each function and index.
struct Table(Vec<Leaf>);

impl Table {
    fn get(&self, function: u32, index: u32) -> Option<&Leaf> {
        let mut leaves = self.0.iter();
        leaves.find(|leaf| leaf.function == function && leaf.index == index)
    }

    fn get_mut(&mut self, function: u32, index: u32) -> Option<&mut Leaf> {
        let mut leaves = self.0.iter_mut();
        leaves.find(|leaf| leaf.function == function && leaf.index == index)
    }

    fn all(&mut self, function: u32) -> impl Iterator<Item = &mut Leaf> {
        self.0.iter_mut().filter(move |l| l.function == function)
    }

    /// Replaces every sub-leaf of `leaf`'s function with it.
    fn replace(&mut self, leaf: Leaf) {
        self.remove(leaf.function);
        self.0.push(leaf);
    }

    fn remove(&mut self, function: u32) {
        self.0.retain(|leaf| leaf.function != function);
    }

    /// Lets the range that starts at `base` reach `function`.
    fn reach(&mut self, base: u32, function: u32) {
        if let Some(leaf) = self.get_mut(base, 0) {
            leaf.eax = leaf.eax.max(function);
        }
    }

    /// Whether the CPU is made by AMD, or by Hygon after AMD's design.
    fn is_amd(&self) -> bool {
        let vendor = self.get(leaf::BASIC, 0).map(|l| [l.ebx, l.edx, l.ecx]);
        let name = vendor.map(|v| v.map(u32::to_le_bytes).concat());
        name.is_some_and(|name| name == b"AuthenticAMD" || name == b"HygonGenuine")
    }
}

/// The CPUID of the vCPU that `config` describes, from what `KVM_GET_SUPPORTED_CPUID` gave.
pub fn guest(supported: &[Leaf], config: &CpuidConfig) -> Vec<Leaf> {
    let mut table = Table(supported.to_vec());
    hide(&mut table);
    show(&mut table, config);
    topology::describe(&mut table, config.apic_id, config.topology);
    model::limit(&mut table, config.model);
    table.0.sort_by_key(|leaf| (leaf.function, leaf.index));
    table.0
}

/// Physical address bits, which is how far guest-physical addresses reach; 36 where the CPU does not say.
pub fn phys_bits(supported: &[Leaf]) -> u8 {
    let sizes = supported.iter().find(|l| l.function == leaf::SIZES);
    let bits = sizes.map(|leaf| leaf.eax.to_le_bytes()[0]);
    // 52 is the architecture's limit; whatever claims less than 32 is no x86-64.
    bits.filter(|bits| (32..=52).contains(bits)).unwrap_or(36)
}

/// Takes away what belongs to the host, or what a VMM would have to emulate.
fn hide(table: &mut Table) {
    for leaf in table.all(leaf::FEATURES) {
        // A guest's guests are not supported: their nested state is not kept over a reset.
        leaf.ecx &= !(VMX | SMX | MONITOR | SPEEDSTEP | THERMAL_MONITOR_2);
        leaf.edx &= !(THERMAL_ACPI | THERMAL_MONITOR);
    }
    for leaf in table.all(leaf::EXTENDED_FEATURES) {
        leaf.ecx &= !(SVM | SKINIT);
    }
    if let Some(leaf) = table.get_mut(leaf::MORE_FEATURES, 0) {
        leaf.ebx &= !SGX;
        leaf.ecx &= !(SGX_LAUNCH_CONTROL | TME);
        leaf.edx &= !PCONFIG;
    }
    for function in [
        leaf::MONITOR,
        leaf::SGX,
        leaf::KEY_LOCKER_TME,
        leaf::SVM,
        leaf::MEMORY_ENCRYPTION,
    ] {
        table.remove(function);
    }
    if !table.get(leaf::PERFMON, 0).is_some_and(has_counters) {
        table.remove(leaf::PERFMON);
    }
}

/// Whether leaf 0xa describes a performance monitoring unit that Linux can use: a known version, and counters of some width.
/// Anything else makes it complain of broken hardware.
fn has_counters(leaf: &Leaf) -> bool {
    let [version, counters, width, _] = leaf.eax.to_le_bytes();
    (2..=6).contains(&version) && (1..=8).contains(&counters) && (32..=64).contains(&width)
}

/// Adds what spares the guest a calibration or an exit.
fn show(table: &mut Table, config: &CpuidConfig) {
    for leaf in table.all(leaf::FEATURES) {
        leaf.ecx |= HYPERVISOR | X2APIC;
        leaf.ecx &= !TSC_DEADLINE;
        if config.tsc_deadline {
            leaf.ecx |= TSC_DEADLINE;
        }
    }
    // KVM's timer never stops; without this bit Linux wants a PIT to fall back on.
    table.replace(Leaf {
        function: leaf::POWER,
        eax: ALWAYS_RUNNING_APIC_TIMER,
        ..Leaf::default()
    });
    table.reach(leaf::BASIC, leaf::POWER);
    if let Some(tsc_khz) = config.tsc_khz {
        show_frequency(table, tsc_khz, config.tsc_deadline);
    }
}

fn show_frequency(table: &mut Table, tsc_khz: u32, tsc_deadline: bool) {
    // No KVM leaves, no hypervisor range to extend.
    if table.get(leaf::HYPERVISOR, 0).is_some() {
        table.replace(Leaf {
            function: leaf::HYPERVISOR_TIMING,
            eax: tsc_khz,
            ebx: APIC_BUS_KHZ,
            ..Leaf::default()
        });
        table.reach(leaf::HYPERVISOR, leaf::HYPERVISOR_TIMING);
    }
    // The TSC as twice a crystal of half its frequency: exact, and Linux's 32-bit kHz arithmetic does not overflow. Linux also
    // takes the crystal for the APIC timer's clock, which it is not; that does no harm where the timer is set by TSC deadline.
    let crystal_hz = tsc_khz.checked_mul(500).filter(|_| tsc_deadline);
    if let Some(crystal_hz) = crystal_hz.filter(|_| !table.is_amd()) {
        table.replace(Leaf {
            function: leaf::TSC,
            eax: 1,
            ebx: 2,
            ecx: crystal_hz,
            ..Leaf::default()
        });
        table.reach(leaf::BASIC, leaf::TSC);
    }
}
