//! CPU models: all that the host has, or no instructions beyond a level of the x86-64 psABI, so that a guest finds the same on
//! every host that reaches that level.
//!
//! The levels are those of the System V ABI, AMD64 supplement, "Micro-Architecture Levels"; bits as in the parent module. What is no
//! instruction of programs stays the host's: paging, mitigations, timers, what KVM adds. KVM cannot keep a guest from using an
//! instruction that it is not told of.

use std::str::FromStr;

use super::{Leaf, Table, leaf};

/// What a guest's CPU can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Model {
    /// All that the host's can.
    #[default]
    Host,
    /// A level of the psABI, 1 to 4.
    Level(u8),
}

/// The text names no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a CPU model: there are host, x86-64, x86-64-v2, x86-64-v3 and x86-64-v4")]
pub struct UnknownModel(pub String);

impl FromStr for Model {
    type Err = UnknownModel;

    fn from_str(text: &str) -> Result<Self, UnknownModel> {
        Ok(match text {
            "host" => Self::Host,
            "x86-64" | "x86-64-v1" => Self::Level(1),
            "x86-64-v2" => Self::Level(2),
            "x86-64-v3" => Self::Level(3),
            "x86-64-v4" => Self::Level(4),
            _ => return Err(UnknownModel(text.to_owned())),
        })
    }
}

/// The host's CPU does not reach the level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this host's CPU does not reach x86-64-v{level}: it lacks {}\n  give the guest what it has:  --cpus N,model={fits}",
    missing.join(", ")
)]
pub struct LevelNotReached {
    /// Asked for.
    pub level: u8,
    /// What is not there.
    pub missing: Vec<&'static str>,
    /// The highest model that would do.
    pub fits: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Ebx,
    Ecx,
    Edx,
}

/// An instruction set: from which level on, its name, the leaf, the register and the bit.
type Feature = (u8, &'static str, u32, Register, u32);

use Register::{Ebx, Ecx, Edx};

/// What each level adds. The first level is what every CPU has that runs a 64-bit guest.
const LEVELS: [Feature; 21] = [
    (2, "CMPXCHG16B", leaf::FEATURES, Ecx, 13),
    (2, "LAHF-SAHF", leaf::EXTENDED_FEATURES, Ecx, 0),
    (2, "POPCNT", leaf::FEATURES, Ecx, 23),
    (2, "SSE3", leaf::FEATURES, Ecx, 0),
    (2, "SSSE3", leaf::FEATURES, Ecx, 9),
    (2, "SSE4.1", leaf::FEATURES, Ecx, 19),
    (2, "SSE4.2", leaf::FEATURES, Ecx, 20),
    (3, "XSAVE", leaf::FEATURES, Ecx, 26),
    (3, "AVX", leaf::FEATURES, Ecx, 28),
    (3, "F16C", leaf::FEATURES, Ecx, 29),
    (3, "FMA", leaf::FEATURES, Ecx, 12),
    (3, "MOVBE", leaf::FEATURES, Ecx, 22),
    (3, "BMI1", leaf::MORE_FEATURES, Ebx, 3),
    (3, "AVX2", leaf::MORE_FEATURES, Ebx, 5),
    (3, "BMI2", leaf::MORE_FEATURES, Ebx, 8),
    (3, "LZCNT", leaf::EXTENDED_FEATURES, Ecx, 5),
    (4, "AVX512F", leaf::MORE_FEATURES, Ebx, 16),
    (4, "AVX512DQ", leaf::MORE_FEATURES, Ebx, 17),
    (4, "AVX512CD", leaf::MORE_FEATURES, Ebx, 28),
    (4, "AVX512BW", leaf::MORE_FEATURES, Ebx, 30),
    (4, "AVX512VL", leaf::MORE_FEATURES, Ebx, 31),
];

/// Bits that are no instructions of programs, and stay as KVM has them.
const KEPT: [(u32, Register, u32); 6] = [
    // PCID, x2APIC, deadline timer, OSXSAVE (KVM's to set), hypervisor.
    (
        leaf::FEATURES,
        Ecx,
        1 << 17 | 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31,
    ),
    // FSGSBASE, TSC_ADJUST, SMEP, INVPCID, SMAP.
    (
        leaf::MORE_FEATURES,
        Ebx,
        1 << 0 | 1 << 1 | 1 << 7 | 1 << 10 | 1 << 20,
    ),
    // UMIP, five-level paging.
    (leaf::MORE_FEATURES, Ecx, 1 << 2 | 1 << 16),
    // MD_CLEAR, SPEC_CTRL, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
    (
        leaf::MORE_FEATURES,
        Edx,
        1 << 10 | 0b11 << 26 | 1 << 28 | 1 << 29 | 1 << 31,
    ),
    // CMP_LEGACY, CR8_LEGACY, TOPOEXT.
    (leaf::EXTENDED_FEATURES, Ecx, 1 << 1 | 1 << 4 | 1 << 22),
    // SYSCALL and what leaf 1 has here as well on AMD's; without MMXEXT, FXSR_OPT and 3DNow!.
    (
        leaf::EXTENDED_FEATURES,
        Edx,
        !(1 << 22 | 1 << 25 | 0b11 << 30),
    ),
];

/// AMD's mitigations in leaf 0x8000_0008 EBX: IBPB; IBRS, STIBP and how they are preferred; SSBD; PSFD and what needs none.
const MITIGATIONS_AMD: u32 = 1 << 12 | 0x3f << 14 | 0b111 << 24 | 0b111 << 28;

/// Leaves about instructions that no level has: processor trace, AMX, AVX10.
const WITHOUT: [u32; 4] = [0x14, 0x1d, 0x1e, 0x24];

/// The state components of XCR0 that a level needs: SSE's and AVX's, and AVX-512's.
const STATES_V3: u32 = 0b111;
const STATES_V4: u32 = 0b1110_0111;

/// Whether the host's CPU, whose CPUID under KVM is `supported`, can be shown as `model`.
pub fn check(supported: &[Leaf], model: Model) -> Result<(), LevelNotReached> {
    let Model::Level(level) = model else {
        return Ok(());
    };
    let missing = missing(supported, level);
    if missing.is_empty() {
        return Ok(());
    }
    let reached = (1..level)
        .rev()
        .find(|&lower| self::missing(supported, lower).is_empty());
    Err(LevelNotReached {
        level,
        missing,
        fits: match reached {
            Some(3) => "x86-64-v3",
            Some(2) => "x86-64-v2",
            _ => "x86-64",
        },
    })
}

fn missing(supported: &[Leaf], level: u8) -> Vec<&'static str> {
    let lacks = |&&(from, _, function, register, bit): &&Feature| {
        let mut leaves = supported.iter();
        let leaf = leaves.find(|leaf| leaf.function == function && leaf.index == 0);
        let has = leaf.is_some_and(|leaf| get(leaf, register) & 1 << bit != 0);
        from <= level && !has
    };
    LEVELS
        .iter()
        .filter(lacks)
        .map(|feature| feature.1)
        .collect()
}

/// The page of leaf 7 whose EDX has controls of speculation (PSFD, IPRED_CTRL, RRSBA_CTRL, BHI_CTRL, MCDT_NO) and no instructions.
const PAGE_OF_MITIGATIONS: u32 = 2;

/// Takes away the instructions that are not in `model`.
pub(super) fn limit(table: &mut Table, model: Model) {
    let Model::Level(level) = model else {
        return;
    };
    for (function, register, kept) in KEPT {
        let allowed = kept | instructions(level, function, register);
        if let Some(leaf) = table.get_mut(function, 0) {
            *get_mut(leaf, register) &= allowed;
        }
    }
    for leaf in table.all(leaf::SIZES) {
        leaf.ebx &= MITIGATIONS_AMD;
    }
    for function in WITHOUT {
        table.remove(function);
    }
    limit_features(table);
    limit_states(table, level);
}

/// The pages of features: none beyond the first but for what is against side channels.
fn limit_features(table: &mut Table) {
    for leaf in table.all(leaf::MORE_FEATURES) {
        match leaf.index {
            0 => leaf.eax = leaf.eax.min(PAGE_OF_MITIGATIONS),
            PAGE_OF_MITIGATIONS => (leaf.eax, leaf.ebx, leaf.ecx) = (0, 0, 0),
            _ => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
        }
    }
}

/// The instructions up to `level` that a register names.
fn instructions(level: u8, function: u32, register: Register) -> u32 {
    let named = LEVELS
        .iter()
        .filter(|feature| feature.0 <= level && feature.2 == function && feature.3 == register);
    named.fold(0, |bits, feature| bits | 1 << feature.4)
}

/// XSAVE's leaf: the components that the level's instructions have, saved in the plain way.
fn limit_states(table: &mut Table, level: u8) {
    let states = match level {
        3 => STATES_V3,
        4 => STATES_V4,
        _ => return table.remove(leaf::STATES),
    };
    table.0.retain(|leaf| {
        leaf.function != leaf::STATES
            || leaf.index < 2
            || leaf.index < 32 && states & 1 << leaf.index != 0
    });
    for leaf in table.all(leaf::STATES) {
        match leaf.index {
            0 => (leaf.eax, leaf.edx) = (leaf.eax & states, 0),
            1 => (leaf.eax, leaf.ecx, leaf.edx) = (0, 0, 0),
            _ => {}
        }
    }
}

fn get(leaf: &Leaf, register: Register) -> u32 {
    match register {
        Ebx => leaf.ebx,
        Ecx => leaf.ecx,
        Edx => leaf.edx,
    }
}

fn get_mut(leaf: &mut Leaf, register: Register) -> &mut u32 {
    match register {
        Ebx => &mut leaf.ebx,
        Ecx => &mut leaf.ecx,
        Edx => &mut leaf.edx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CPU that has everything.
    fn all() -> Vec<Leaf> {
        let leaf = |function, index| Leaf {
            function,
            index,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Leaf::default()
        };
        let functions = [
            (1, 0),
            (7, 0),
            (7, 1),
            (7, 2),
            (0xd, 0),
            (0xd, 1),
            (0xd, 2),
            (0xd, 5),
            (0xd, 17),
            (0xd, 32),
            (4, 3),
        ];
        let further = [(0x1d, 0), (0x8000_0001, 0), (0x8000_0008, 0)];
        let both = functions.into_iter().chain(further);
        both.map(|(function, index)| leaf(function, index))
            .collect()
    }

    fn limited(level: u8) -> Table {
        let mut table = Table(all());
        limit(&mut table, Model::Level(level));
        table
    }

    #[test]
    fn models_go_by_the_names_that_compilers_use() {
        assert_eq!("host".parse(), Ok(Model::Host));
        for (name, level) in [
            ("x86-64", 1),
            ("x86-64-v1", 1),
            ("x86-64-v2", 2),
            ("x86-64-v3", 3),
            ("x86-64-v4", 4),
        ] {
            assert_eq!(name.parse(), Ok(Model::Level(level)));
        }
        assert!("skylake".parse::<Model>().is_err());
    }

    #[test]
    fn each_level_has_its_instructions_and_none_of_the_next() {
        for level in 1..=4 {
            let table = limited(level);
            for (from, name, function, register, bit) in LEVELS {
                let has = get(table.get(function, 0).unwrap(), register) & 1 << bit != 0;
                assert_eq!(has, from <= level, "{name} in level {level}");
            }
        }
    }

    #[test]
    fn no_other_instructions_are_left_and_what_is_none_stays() {
        let table = limited(3);
        let features = table.get(1, 0).unwrap();
        // AES, PCLMULQDQ and RDRAND are of no level; the deadline timer and x2APIC are no instructions of programs.
        assert_eq!(features.ecx & (1 << 25 | 1 << 1 | 1 << 30), 0);
        assert_eq!(features.ecx & (1 << 24 | 1 << 21), 1 << 24 | 1 << 21);
        assert_eq!(features.edx, !0, "the first level");
        let more = table.get(7, 0).unwrap();
        assert_eq!((more.ebx & 1 << 29, more.eax), (0, 2), "SHA");
        assert_ne!(more.ebx & 1 << 7, 0, "SMEP");
        let page = |index| table.get(7, index).map(|l| [l.eax, l.ebx, l.ecx, l.edx]);
        assert_eq!(page(1), Some([0; 4]));
        assert_eq!(page(2), Some([0, 0, 0, !0]), "RRSBA_CTRL, BHI_CTRL");
        assert!(table.get(0x1d, 0).is_none());
        assert_eq!(table.get(0x8000_0008, 0).unwrap().ebx & 1, 0, "CLZERO");
    }

    #[test]
    fn paging_mitigations_and_timers_stay_bit_for_bit() {
        // The first level has no instructions that these registers name. Bits: Intel SDM vol. 2A and AMD APM vol. 3, CPUID.
        let table = limited(1);
        let leaf = |function| table.get(function, 0).unwrap();
        assert_eq!(leaf(1).ecx, 0x8922_0000);
        let more = leaf(7);
        assert_eq!(
            [more.ebx, more.ecx, more.edx],
            [0x0010_0483, 0x0001_0004, 0xbc00_0400]
        );
        assert_eq!(
            [leaf(0x8000_0001).ecx, leaf(0x8000_0001).edx],
            [0x0040_0012, 0x3dbf_ffff]
        );
        assert_eq!(leaf(0x8000_0008).ebx, 0x770f_d000);
    }

    #[test]
    fn the_states_to_save_are_those_of_the_level() {
        assert!(limited(2).get(0xd, 0).is_none());
        let table = limited(3);
        assert_eq!(table.get(0xd, 0).unwrap().eax, 0b111);
        assert!(table.get(0xd, 2).is_some() && table.get(0xd, 5).is_none());
        let table = limited(4);
        assert_eq!(table.get(0xd, 0).unwrap().eax, 0xe7);
        assert!(table.get(0xd, 5).is_some() && table.get(0xd, 17).is_none());
        assert!(table.get(0xd, 32).is_none());
        // XSAVEOPT, XSAVEC and XSAVES are of no level; EBX is the size of what XCR0 and IA32_XSS enable.
        let plain = table.get(0xd, 1).map(|l| [l.eax, l.ebx, l.ecx, l.edx]);
        assert_eq!(plain, Some([0, !0, 0, 0]));
        assert!(table.get(4, 3).is_some(), "no other leaf is touched");
    }

    #[test]
    fn a_host_that_lacks_a_level_is_told_what_is_missing_and_what_would_do() {
        assert_eq!(check(&all(), Model::Level(4)), Ok(()));
        let mut host = all();
        host.iter_mut()
            .find(|l| l.function == 7 && l.index == 0)
            .unwrap()
            .ebx &= !(1 << 5 | 1 << 16);
        let error = check(&host, Model::Level(4)).unwrap_err();
        assert_eq!(error.missing, ["AVX2", "AVX512F"]);
        assert_eq!(error.fits, "x86-64-v2");
        assert_eq!(check(&host, Model::Level(2)), Ok(()));
        let fits = |bit: u32, function: u32| {
            let mut host = all();
            for leaf in host.iter_mut().filter(|l| l.function == function) {
                (leaf.ebx, leaf.ecx) = (leaf.ebx & !(1 << bit), leaf.ecx & !(1 << bit));
            }
            check(&host, Model::Level(4)).unwrap_err().fits
        };
        // AVX512F, and POPCNT.
        assert_eq!((fits(16, 7), fits(23, 1)), ("x86-64-v3", "x86-64"));
        assert_eq!(check(&[], Model::Host), Ok(()));
    }
}
