//! Topology, in every way a CPU can say it: one socket, one thread a core, the last-level cache shared by all and the others by
//! none. Whatever the host's own topology was is replaced; a guest that believed it would see its cores twice, or not at all.
//!
//! Intel SDM vol. 2A, CPUID leaves 1, 4, 0xb, 0x1f; AMD APM vol. 3 §E.3, §E.4 (leaves 0x8000_0008, _001d, _001e).

use super::{Leaf, Table, leaf};

/// Leaf 1 EDX: the logical processor count in EBX is valid.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX (AMD): those processors are cores, not threads.
const CMP_LEGACY: u32 = 1 << 1;

const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;
const CACHE_LEVEL_3: u32 = 3;

pub(super) fn describe(table: &mut Table, apic_id: u32, cpus: u32) {
    legacy(table, apic_id, cpus);
    levels(table, leaf::TOPOLOGY, apic_id, cpus);
    table.reach(leaf::BASIC, leaf::TOPOLOGY);
    if table.get(leaf::TOPOLOGY_V2, 0).is_some() {
        levels(table, leaf::TOPOLOGY_V2, apic_id, cpus);
    }
    caches(table, cpus);
    if table.is_amd() {
        amd(table, apic_id, cpus);
    }
}

/// How many low bits of an APIC ID tell cores apart.
fn core_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

/// A field `bits` wide of a count that may not fit.
fn saturated(count: u32, bits: u32) -> u32 {
    count.min((1 << bits) - 1)
}

fn legacy(table: &mut Table, apic_id: u32, cpus: u32) {
    let ids = saturated(1 << core_bits(cpus), 8);
    for leaf in table.all(leaf::FEATURES) {
        leaf.ebx = leaf.ebx & 0xffff | ids << 16 | saturated(apic_id, 8) << 24;
        leaf.edx = leaf.edx & !HTT | if cpus > 1 { HTT } else { 0 };
    }
}

/// Leaf 0xb, and 0x1f which has the same form: threads, cores, then a level 0 that ends the list.
fn levels(table: &mut Table, function: u32, apic_id: u32, cpus: u32) {
    table.remove(function);
    let levels = [
        (LEVEL_THREAD, 0, 1),
        (LEVEL_CORE, core_bits(cpus), cpus),
        (0, 0, 0),
    ];
    for (index, (level, shift, processors)) in (0..).zip(levels) {
        table.0.push(Leaf {
            function,
            index,
            significant_index: true,
            eax: shift,
            ebx: processors,
            ecx: index | level << 8,
            edx: apic_id,
        });
    }
}

/// The sharing fields of the cache leaves; sizes stay the host's.
fn caches(table: &mut Table, cpus: u32) {
    for function in [leaf::CACHES_INTEL, leaf::CACHES_AMD] {
        for leaf in table.all(function).filter(|leaf| leaf.eax & 0x1f != 0) {
            let shared = leaf.eax >> 5 & 7 >= CACHE_LEVEL_3;
            let sharers = if shared { 1 << core_bits(cpus) } else { 1 };
            leaf.eax = leaf.eax & 0x3fff | saturated(sharers - 1, 12) << 14;
            if function == leaf::CACHES_INTEL {
                leaf.eax |= saturated((1 << core_bits(cpus)) - 1, 6) << 26;
            }
        }
    }
}

fn amd(table: &mut Table, apic_id: u32, cpus: u32) {
    for leaf in table.all(leaf::EXTENDED_FEATURES) {
        leaf.ecx = leaf.ecx & !CMP_LEGACY | if cpus > 1 { CMP_LEGACY } else { 0 };
    }
    for leaf in table.all(leaf::SIZES) {
        leaf.ecx = leaf.ecx & !0xf0ff | saturated(cpus - 1, 8) | core_bits(cpus) << 12;
    }
    if table.get(leaf::TOPOLOGY_AMD, 0).is_some() {
        table.replace(Leaf {
            function: leaf::TOPOLOGY_AMD,
            eax: apic_id,
            // One thread a core (bits 15:8 count from zero), one node.
            ebx: saturated(apic_id, 8),
            ..Leaf::default()
        });
    }
    // Complexes and dies of the host; leaf 0xb says all there is to say.
    table.remove(leaf::TOPOLOGY_AMD_V2);
}
