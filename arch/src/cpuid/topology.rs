//! Topology, in every way a CPU can say it: sockets, their cores, and the cores' threads; the last-level cache shared by a socket, the
//! others by the threads of a core. Whatever the host's own topology was is replaced; a guest that believed it would see its cores
//! twice, or not at all.
//!
//! Intel SDM vol. 2A, CPUID leaves 1, 4, 0xb, 0x1f; AMD APM vol. 3 §E.3, §E.4 (leaves 0x8000_0008, _001d, _001e).

use super::{Leaf, Table, leaf};
use crate::layout;

/// Leaf 1 EDX: the logical processor count in EBX is valid.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX (AMD): those processors are cores, not threads.
const CMP_LEGACY: u32 = 1 << 1;

const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;
const CACHE_LEVEL_3: u32 = 3;

/// How CPUs are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Sockets; at least one.
    pub sockets: u32,
    /// Cores of each socket; at least one.
    pub cores: u32,
    /// Threads of each core; at least one.
    pub threads: u32,
}

/// CPUs cannot be put together so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// The parts are not the whole.
    #[error(
        "{cpus} CPUs are not {sockets} sockets of {cores} cores with {threads} threads each, which are {product}\n  \
         leave one of the numbers out"
    )]
    Product {
        /// The whole.
        cpus: u32,
        /// Sockets.
        sockets: u32,
        /// Cores of each.
        cores: u32,
        /// Threads of each.
        threads: u32,
        /// What these make.
        product: u32,
    },
    /// Each kind of part has bits of its own in an APIC ID, so that some numbers are left over.
    #[error(
        "the last of the CPUs would have APIC ID {0}, and the last there is is 253\n  \
         choose numbers of cores and threads that are powers of two, or fewer CPUs"
    )]
    Ids(u32),
}

impl Topology {
    /// `cpus` put together as far as it is said how: what is not said is one thread a core, and as many cores as there are left in
    /// one socket.
    pub fn of(
        cpus: u32,
        sockets: Option<u32>,
        cores: Option<u32>,
        threads: Option<u32>,
    ) -> Result<Self, TopologyError> {
        let cpus = cpus.max(1);
        let part = |of: Option<u32>| of.unwrap_or(1).max(1);
        let rest = |taken: u32| (cpus / taken.max(1)).max(1);
        let threads = part(threads);
        let (sockets, cores) = match (sockets, cores) {
            (None, Some(cores)) => (rest(cores.saturating_mul(threads)), part(Some(cores))),
            (sockets, Some(cores)) => (part(sockets), part(Some(cores))),
            (sockets, None) => (part(sockets), rest(part(sockets).saturating_mul(threads))),
        };
        let topology = Self {
            sockets,
            cores,
            threads,
        };
        let product = topology.cpus();
        if product != cpus {
            return Err(TopologyError::Product {
                cpus,
                sockets,
                cores,
                threads,
                product,
            });
        }
        match topology.apic_id(cpus - 1) {
            last if last >= layout::MAX_CPUS => Err(TopologyError::Ids(last)),
            _ => Ok(topology),
        }
    }

    /// How many CPUs these are.
    pub fn cpus(self) -> u32 {
        let cores = self.sockets.saturating_mul(self.cores);
        cores.saturating_mul(self.threads)
    }

    /// The APIC ID of CPU `number`: thread, core and socket have bits of their own in it (Intel SDM vol. 3A, "Hierarchical Mapping of
    /// Shared Resources").
    pub fn apic_id(self, number: u32) -> u32 {
        let (core, thread) = (number / self.threads, number % self.threads);
        let (socket, core) = (core / self.cores, core % self.cores);
        socket << self.socket_shift() | core << self.thread_bits() | thread
    }

    /// The APIC IDs of all, in ascending order; the first is the boot CPU's.
    pub fn apic_ids(self) -> impl Iterator<Item = u32> {
        (0..self.cpus()).map(move |number| self.apic_id(number))
    }

    /// How many low bits of an APIC ID tell threads apart.
    fn thread_bits(self) -> u32 {
        bits(self.threads)
    }

    /// How many bits tell cores apart.
    fn core_bits(self) -> u32 {
        bits(self.cores)
    }

    /// How many low bits a socket's CPUs share nothing of with others'.
    fn socket_shift(self) -> u32 {
        self.thread_bits() + self.core_bits()
    }

    /// CPUs of a socket.
    fn in_socket(self) -> u32 {
        self.cores.saturating_mul(self.threads)
    }
}

/// How many bits tell `count` things apart.
fn bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

pub(super) fn describe(table: &mut Table, apic_id: u32, topology: Topology) {
    legacy(table, apic_id, topology);
    levels(table, leaf::TOPOLOGY, apic_id, topology);
    table.reach(leaf::BASIC, leaf::TOPOLOGY);
    if table.get(leaf::TOPOLOGY_V2, 0).is_some() {
        levels(table, leaf::TOPOLOGY_V2, apic_id, topology);
    }
    caches(table, topology);
    if table.is_amd() {
        amd(table, apic_id, topology);
    }
}

/// A field `bits` wide of a count that may not fit.
fn saturated(count: u32, bits: u32) -> u32 {
    count.min((1 << bits) - 1)
}

fn legacy(table: &mut Table, apic_id: u32, topology: Topology) {
    let ids = saturated(1 << topology.socket_shift(), 8);
    for leaf in table.all(leaf::FEATURES) {
        leaf.ebx = leaf.ebx & 0xffff | ids << 16 | saturated(apic_id, 8) << 24;
        leaf.edx = leaf.edx & !HTT | if topology.in_socket() > 1 { HTT } else { 0 };
    }
}

/// Leaf 0xb, and 0x1f which has the same form: threads, cores, then a level 0 that ends the list.
fn levels(table: &mut Table, function: u32, apic_id: u32, topology: Topology) {
    table.remove(function);
    let levels = [
        (LEVEL_THREAD, topology.thread_bits(), topology.threads),
        (LEVEL_CORE, topology.socket_shift(), topology.in_socket()),
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
fn caches(table: &mut Table, topology: Topology) {
    for function in [leaf::CACHES_INTEL, leaf::CACHES_AMD] {
        for leaf in table.all(function).filter(|leaf| leaf.eax & 0x1f != 0) {
            let shared = leaf.eax >> 5 & 7 >= CACHE_LEVEL_3;
            let sharers = 1
                << match shared {
                    true => topology.socket_shift(),
                    false => topology.thread_bits(),
                };
            leaf.eax = leaf.eax & 0x3fff | saturated(sharers - 1, 12) << 14;
            if function == leaf::CACHES_INTEL {
                leaf.eax |= saturated((1 << topology.core_bits()) - 1, 6) << 26;
            }
        }
    }
}

fn amd(table: &mut Table, apic_id: u32, topology: Topology) {
    let in_socket = topology.in_socket();
    for leaf in table.all(leaf::EXTENDED_FEATURES) {
        leaf.ecx = leaf.ecx & !CMP_LEGACY | if in_socket > 1 { CMP_LEGACY } else { 0 };
    }
    let shift = topology.socket_shift();
    for leaf in table.all(leaf::SIZES) {
        leaf.ecx = leaf.ecx & !0xf0ff | saturated(in_socket - 1, 8) | shift << 12;
    }
    if table.get(leaf::TOPOLOGY_AMD, 0).is_some() {
        let core = (apic_id & ((1 << shift) - 1)) >> topology.thread_bits();
        table.replace(Leaf {
            function: leaf::TOPOLOGY_AMD,
            eax: apic_id,
            // Bits 15:8 count the threads of a core from zero.
            ebx: saturated(core, 8) | saturated(topology.threads - 1, 8) << 8,
            // A socket is a node.
            ecx: saturated(apic_id >> shift, 8),
            ..Leaf::default()
        });
    }
    // Complexes and dies of the host; leaf 0xb says all there is to say.
    table.remove(leaf::TOPOLOGY_AMD_V2);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cpus: u32, parts: [Option<u32>; 3]) -> Result<[u32; 3], TopologyError> {
        let made = Topology::of(cpus, parts[0], parts[1], parts[2])?;
        Ok([made.sockets, made.cores, made.threads])
    }

    #[test]
    fn what_is_not_said_follows_from_the_rest() {
        assert_eq!(of(6, [None, None, None]), Ok([1, 6, 1]));
        assert_eq!(of(8, [Some(2), None, None]), Ok([2, 4, 1]));
        assert_eq!(of(8, [None, None, Some(2)]), Ok([1, 4, 2]));
        assert_eq!(of(8, [None, Some(2), Some(2)]), Ok([2, 2, 2]));
        assert_eq!(of(8, [Some(2), Some(2), Some(2)]), Ok([2, 2, 2]));
        assert!(matches!(
            of(8, [Some(3), None, None]),
            Err(TopologyError::Product { .. })
        ));
        assert!(matches!(
            of(8, [Some(1), Some(4), Some(1)]),
            Err(TopologyError::Product { .. })
        ));
        assert!(of(254, [Some(254), Some(254), Some(254)]).is_err());
        assert_eq!(of(254, [None, None, None]), Ok([1, 254, 1]));
    }

    #[test]
    fn an_apic_id_names_socket_core_and_thread_in_bits_of_their_own() {
        let topology = Topology::of(12, Some(2), Some(3), Some(2)).unwrap();
        let ids: Vec<u32> = topology.apic_ids().collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!(
            of(252, [Some(84), Some(3), None]),
            Err(TopologyError::Ids(334))
        );
    }
}
