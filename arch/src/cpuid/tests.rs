use super::*;

/// Cores of one socket.
const fn flat(cores: u32) -> Topology {
    Topology {
        sockets: 1,
        cores,
        threads: 1,
    }
}

const CONFIG: CpuidConfig = CpuidConfig {
    apic_id: 2,
    topology: flat(3),
    model: Model::Host,
    tsc_khz: Some(2_893_437),
    tsc_deadline: true,
};

fn leaf(function: u32, registers: [u32; 4]) -> Leaf {
    sub_leaf(function, 0, registers)
}

fn sub_leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> Leaf {
    Leaf {
        function,
        index,
        significant_index: matches!(function, 4 | 7 | 0xb | 0x1f | 0x8000_001d),
        eax,
        ebx,
        ecx,
        edx,
    }
}

/// A host that has everything set, so that what is hidden shows.
fn host(vendor: &[u8; 12]) -> Vec<Leaf> {
    let name = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
    vec![
        leaf(0, [0xd, name(0), name(8), name(4)]),
        leaf(1, [0x806f8, 0x7764_0815, !HYPERVISOR, !0]),
        // L1 data for two threads, L3 for 64.
        sub_leaf(4, 0, [0xfc00_4121, 0, 0, 0]),
        sub_leaf(4, 3, [0xfc0f_c163, 0, 0, 0]),
        sub_leaf(4, 4, [0, 0, 0, 0]),
        leaf(5, [0x40, 0x40, 3, 0]),
        leaf(6, [0xff, 7, 9, 0]),
        sub_leaf(7, 0, [0, !0, !0, !0]),
        leaf(0xa, [0x0730_0802, 0, 0, 0x603]),
        sub_leaf(0xb, 0, [1, 2, 0x100, 0x77]),
        sub_leaf(0xb, 1, [7, 128, 0x201, 0x77]),
        sub_leaf(0x12, 0, [1, 0, 0, 0]),
        leaf(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        leaf(0x4000_0001, [0x0100_7efb, 0, 0, 0]),
        leaf(0x8000_0001, [0, 0, !0, !0]),
        leaf(0x8000_0007, [0, 0, 0, 0x100]),
        leaf(0x8000_0008, [0x0030_3034, 0, 0x707f, 0]),
        leaf(0x8000_000a, [1, 8, 0, 0]),
        sub_leaf(0x8000_001d, 0, [0x4121, 0, 0, 0]),
        sub_leaf(0x8000_001d, 3, [0x003c_0163, 0, 0, 0]),
        leaf(0x8000_001e, [0x77, 0x101, 0x300, 0]),
        leaf(0x8000_001f, [0xf, 0, 0, 0]),
        sub_leaf(0x8000_0026, 0, [1, 2, 0x100, 0x77]),
    ]
}

fn intel() -> Vec<Leaf> {
    host(b"GenuineIntel")
}

fn amd() -> Vec<Leaf> {
    host(b"AuthenticAMD")
}

fn find(leaves: &[Leaf], function: u32, index: u32) -> Option<Leaf> {
    let mut found = leaves
        .iter()
        .filter(|l| l.function == function && l.index == index);
    let first = found.next().copied();
    assert!(found.next().is_none(), "{function:#x} is there twice");
    first
}

fn guest_leaf(host: &[Leaf], function: u32, index: u32) -> Leaf {
    find(&guest(host, &CONFIG), function, index).unwrap()
}

#[test]
fn nested_virtualisation_enclaves_and_power_states_are_hidden() {
    for host in [intel(), amd()] {
        let leaves = guest(&host, &CONFIG);
        let features = find(&leaves, 1, 0).unwrap();
        assert_eq!(features.ecx & (VMX | SMX | MONITOR | SPEEDSTEP), 0);
        assert_eq!(find(&leaves, 0x8000_0001, 0).unwrap().ecx & SVM, 0);
        let more = find(&leaves, 7, 0).unwrap();
        assert_eq!((more.ebx & SGX, more.ecx & TME), (0, 0));
        assert_eq!(find(&leaves, 6, 0).unwrap().eax, ALWAYS_RUNNING_APIC_TIMER);
        for gone in [5, 0x12, 0x8000_000a, 0x8000_001f, 0x8000_0026] {
            let left = find(&leaves, gone, 0);
            assert!(left.is_none() || gone == 0x8000_0026 && host == intel());
        }
    }
}

#[test]
fn a_guest_sees_that_it_is_one_and_has_x2apic_and_the_deadline_timer() {
    let mut host = intel();
    host.iter_mut().find(|l| l.function == 1).unwrap().ecx = 0;
    // Intel SDM vol. 2A, CPUID leaf 1: x2APIC, TSC-Deadline; bit 31 is left to hypervisors.
    assert_eq!(guest_leaf(&host, 1, 0).ecx, 1 << 21 | 1 << 24 | 1 << 31);
    // Leaf 6: ARAT, and nothing of the host's power management.
    assert_eq!(guest_leaf(&host, 6, 0).eax, 1 << 2);
    let without = CpuidConfig {
        tsc_deadline: false,
        ..CONFIG
    };
    let leaves = guest(&intel(), &without);
    assert_eq!(find(&leaves, 1, 0).unwrap().ecx & TSC_DEADLINE, 0);
    assert!(find(&leaves, leaf::TSC, 0).is_none());
}

#[test]
fn kvms_leaves_stay_and_the_timing_leaf_is_added() {
    let leaves = guest(&amd(), &CONFIG);
    assert_eq!(find(&leaves, 0x4000_0000, 0).unwrap().eax, 0x4000_0010);
    assert_eq!(find(&leaves, 0x4000_0001, 0).unwrap().eax, 0x0100_7efb);
    let timing = find(&leaves, 0x4000_0010, 0).unwrap();
    assert_eq!((timing.eax, timing.ebx), (2_893_437, 1_000_000));
    assert_eq!(find(&leaves, 0x8000_0007, 0).unwrap().edx, 0x100);
    assert!(find(&leaves, leaf::TSC, 0).is_none());
}

#[test]
fn steal_time_async_page_faults_pv_eoi_and_unhalt_are_offered_as_kvm_has_them_whatever_the_model() {
    // Documentation/virt/kvm/x86/cpuid.rst: ASYNC_PF, STEAL_TIME, PV_EOI, PV_UNHALT, POLL_CONTROL.
    let wanted = 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 12;
    for model in [Model::Host, Model::Level(1), Model::Level(3)] {
        let leaves = guest(&amd(), &CpuidConfig { model, ..CONFIG });
        let offered = find(&leaves, 0x4000_0001, 0).unwrap().eax;
        assert_eq!(offered & wanted, 0x0100_7efb & wanted);
        assert_ne!(offered & 1 << 5, 0, "steal time");
    }
}

#[test]
fn linux_computes_the_exact_tsc_frequency_from_leaf_15() {
    let leaves = guest(&intel(), &CONFIG);
    assert_eq!(find(&leaves, 0, 0).unwrap().eax, leaf::TSC);
    let tsc = find(&leaves, leaf::TSC, 0).unwrap();
    // native_calibrate_tsc(), in 32 bits.
    let khz = (tsc.ecx / 1000).checked_mul(tsc.ebx).unwrap() / tsc.eax;
    assert!(khz.abs_diff(2_893_437) <= 1, "{khz}");
}

#[test]
fn every_topology_leaf_tells_the_same_story() {
    for host in [intel(), amd()] {
        let features = guest_leaf(&host, 1, 0);
        assert_eq!(features.ebx, 0x0204_0815);
        assert_ne!(features.edx & 1 << 28, 0);
        let threads = guest_leaf(&host, 0xb, 0);
        assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
        let cores = guest_leaf(&host, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (2, 3, 0x201));
        assert_eq!((threads.edx, cores.edx), (2, 2));
        assert!(cores.significant_index);
        assert_eq!(guest_leaf(&host, 0xb, 2).ebx, 0);
        assert_eq!(find(&guest(&host, &CONFIG), 0x1f, 0), None);
    }
    let mut says_threads = amd();
    let extended = says_threads.iter_mut().find(|l| l.function == 0x8000_0001);
    extended.unwrap().ecx &= !2;
    assert_eq!(guest_leaf(&says_threads, 0x8000_0001, 0).ecx & 2, 2);
    let sizes = guest_leaf(&amd(), 0x8000_0008, 0);
    assert_eq!((sizes.eax, sizes.ecx), (0x0030_3034, 0x2002));
    let ids = guest_leaf(&amd(), 0x8000_001e, 0);
    assert_eq!((ids.eax, ids.ebx, ids.ecx), (2, 2, 0));
}

#[test]
fn the_last_level_cache_is_shared_by_all_and_the_others_by_none() {
    let private = guest_leaf(&intel(), 4, 0);
    assert_eq!((private.eax >> 14 & 0xfff, private.eax >> 26), (0, 3));
    assert_eq!(guest_leaf(&intel(), 4, 3).eax >> 14 & 0xfff, 3);
    assert_eq!(guest_leaf(&intel(), 4, 4).eax, 0);
    assert_eq!(guest_leaf(&amd(), 0x8000_001d, 0).eax, 0x121);
    assert_eq!(guest_leaf(&amd(), 0x8000_001d, 3).eax >> 14, 3);
}

#[test]
fn threads_share_the_caches_of_their_core_and_a_socket_its_last() {
    let config = CpuidConfig {
        // Thread 1 of core 1 of socket 1: one bit, two, and one.
        apic_id: 0b1011,
        topology: Topology {
            sockets: 2,
            cores: 3,
            threads: 2,
        },
        ..CONFIG
    };
    let leaves = guest(&intel(), &config);
    let levels = [0, 1].map(|index| find(&leaves, 0xb, index).unwrap());
    assert_eq!(levels.map(|level| (level.eax, level.ebx)), [(1, 2), (3, 6)]);
    assert_eq!(levels[0].edx, 11);
    assert_eq!(find(&leaves, 4, 0).unwrap().eax >> 14, 3 << 12 | 1);
    assert_eq!(find(&leaves, 4, 3).unwrap().eax >> 14, 3 << 12 | 7);
    let leaves = guest(&amd(), &config);
    assert_eq!(find(&leaves, 0x8000_001d, 0).unwrap().eax >> 14, 1);
    assert_eq!(find(&leaves, 0x8000_001d, 3).unwrap().eax >> 14, 7);
    let ids = find(&leaves, 0x8000_001e, 0).unwrap();
    assert_eq!((ids.eax, ids.ebx, ids.ecx), (11, 1 << 8 | 1, 1));
    assert_eq!(find(&leaves, 0x8000_0008, 0).unwrap().ecx & 0xf0ff, 0x3005);
}

#[test]
fn fields_saturate_at_254_cpus() {
    let config = CpuidConfig {
        apic_id: 253,
        topology: flat(254),
        ..CONFIG
    };
    let leaves = guest(&amd(), &config);
    assert_eq!(find(&leaves, 1, 0).unwrap().ebx, 0xfdff_0815);
    assert_eq!(find(&leaves, 4, 3).unwrap().eax >> 26, 63);
    assert_eq!(find(&leaves, 0xb, 1).unwrap().eax, 8);
    assert_eq!(find(&leaves, 0x8000_0008, 0).unwrap().ecx, 0x80fd);
}

#[test]
fn one_cpu_is_no_multiprocessor() {
    let config = CpuidConfig {
        apic_id: 0,
        topology: flat(1),
        ..CONFIG
    };
    let leaves = guest(&amd(), &config);
    assert_eq!(find(&leaves, 1, 0).unwrap().ebx, 0x0001_0815);
    assert_eq!(find(&leaves, 1, 0).unwrap().edx & 1 << 28, 0);
    assert_eq!(find(&leaves, 0x8000_0001, 0).unwrap().ecx & 2, 0);
    assert_eq!(find(&leaves, 0x8000_001d, 3).unwrap().eax >> 14, 0);
}

#[test]
fn a_performance_unit_without_counters_is_hidden() {
    assert!(find(&guest(&intel(), &CONFIG), 0xa, 0).is_some());
    let mut host = intel();
    host.iter_mut().find(|l| l.function == 0xa).unwrap().eax = 0x0700_0002;
    assert!(find(&guest(&host, &CONFIG), 0xa, 0).is_none());
}

#[test]
fn only_a_performance_unit_that_linux_can_use_is_shown() {
    let shown = |version: u32, counters: u32, width: u32| {
        let mut host = intel();
        let leaf = host.iter_mut().find(|l| l.function == 0xa).unwrap();
        leaf.eax = version | counters << 8 | width << 16;
        find(&guest(&host, &CONFIG), 0xa, 0).is_some()
    };
    assert!(shown(2, 1, 32) && shown(6, 8, 64));
    assert!(!shown(1, 8, 48) && !shown(7, 8, 48));
    assert!(!shown(2, 0, 48) && !shown(2, 9, 48));
    assert!(!shown(2, 8, 31) && !shown(2, 8, 65));
}

#[test]
fn only_the_bits_that_are_the_hosts_are_hidden() {
    // Intel SDM vol. 2A, CPUID leaves 1 and 7; AMD APM vol. 3 §E.4.1.
    let host = intel();
    let (before, after) = (find(&host, 1, 0).unwrap(), guest_leaf(&host, 1, 0));
    // MONITOR, VMX, SMX, EIST, TM2; ACPI, TM.
    let hidden = 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8;
    assert_eq!(after.ecx, before.ecx & !hidden | HYPERVISOR);
    assert_eq!(after.edx, before.edx & !(1 << 22 | 1 << 29));
    let more = guest_leaf(&host, 7, 0);
    // SGX; TME and SGX_LC; PCONFIG.
    let hidden = [1 << 2, 1 << 13 | 1 << 30, 1 << 18];
    assert_eq!(
        [more.ebx, more.ecx, more.edx],
        hidden.map(|bits: u32| !bits)
    );
    // SVM and SKINIT.
    for host in [intel(), amd()] {
        assert_eq!(guest_leaf(&host, 0x8000_0001, 0).ecx, !(1 << 2 | 1 << 12));
    }
}

#[test]
fn physical_address_bits_come_from_the_host() {
    assert_eq!(phys_bits(&amd()), 52);
    assert_eq!(phys_bits(&[]), 36);
    assert_eq!(phys_bits(&[leaf(0x8000_0008, [0xff, 0, 0, 0])]), 36);
}
