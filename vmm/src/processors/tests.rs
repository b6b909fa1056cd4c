use std::{
    thread,
    time::{Duration, Instant},
};

use arch::boot::{paging, registers::Protocol};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::{
    events::Events,
    kvm::memslots::SlotTable,
    ram::Ram,
    signals::Signals,
    tiny_guest::{self, CODE, DEADLINE, ENDED, guest_code},
    vcpu::Stop,
};

/// Where CPU n counts: a quadword each.
const COUNTS: u64 = 0x3000;
/// Where the other CPUs start, in real mode: the page that the start-up message names.
const STARTUP: u64 = 0x2000;
const CPUS: u32 = 4;

/// Several CPUs, and what they need.
struct Several {
    processors: Processors,
    events: Events,
    ram: Ram,
    vm: Vm,
}

/// Cores of one socket, wherever the host likes.
fn plain(cores: u32) -> ProcessorsConfig {
    ProcessorsConfig {
        topology: Topology {
            sockets: 1,
            cores,
            threads: 1,
        },
        model: Model::Host,
        pin: Vec::new(),
    }
}

impl Several {
    /// The boot CPU starts all others by INIT and start-up messages (Intel SDM vol. 3, 9.4.4). Then each counts; and CPU 0, while
    /// the others do, ends the guest when `ends`.
    fn new(ends: bool) -> Option<Self> {
        let vm = tiny_guest::vm()?;
        let slots = SlotTable::new(vm.fd.clone());
        let ram = tiny_guest::ram(&slots);
        let (ports, device) = Default::default();
        let shared = tiny_guest::shared(&ports, &device);
        let supported = vm.supported_cpuid().unwrap();
        let several = Self {
            processors: Processors::create(&vm, &plain(CPUS), &supported, shared).unwrap(),
            events: Events::new(Signals::block().unwrap()).unwrap(),
            ram,
            vm,
        };
        several.load(ends);
        Some(several)
    }

    /// Memory and the boot CPU as they are at power-on.
    fn load(&self, ends: bool) {
        // "All but this one", INIT and then a start-up at page 2, through the interrupt command register.
        let boot_cpu = guest_code!("code64":
            "mov ebx, 0xfee00000" "mov dword ptr [rbx + 0xf0], 0x1ff"
            "mov dword ptr [rbx + 0x300], 0xc4500" "mov dword ptr [rbx + 0x300], 0xc4602"
            "mov ebx, 0x3000"
            "4: inc qword ptr [rbx]"
            "mov rax, [0x3040]" "test rax, rax" "jz 4b"
            "5: mov rax, [0x3008]" "test rax, rax" "jz 5b"
            "out 0xf4, al" "jmp 4b"
        );
        // Which CPU it is, by a ticket: they all come here at once.
        let other_cpus = guest_code!("code16":
            "mov ax, 8" "mov bx, 0x3048" "lock xadd [bx], ax" "mov bx, ax" "add bx, 0x3000"
            "4: inc dword ptr [bx]" "jmp 4b"
        );
        let registers = BootRegisters::new(Protocol::Linux64, CODE);
        for (address, bytes) in [
            (CODE, boot_cpu),
            (STARTUP, other_cpus),
            (COUNTS, &[0; 0x40]),
            (COUNTS + 0x40, &[u8::from(ends)]),
            (COUNTS + 0x48, &[8, 0]),
            (paging::ROOT, &paging::tables()),
            (registers.gdt_base, &registers.gdt()),
        ] {
            let memory = self.ram.memory();
            memory.write_slice(bytes, GuestAddress(address)).unwrap();
        }
        self.processors.enter(&registers).unwrap();
    }

    fn counts(&self) -> [u64; CPUS as usize] {
        let memory = self.ram.memory();
        let count = |cpu: usize| GuestAddress(COUNTS + cpu as u64 * 8);
        std::array::from_fn(|cpu| memory.read_obj(count(cpu)).unwrap())
    }

    fn start(&mut self) {
        let mailbox = self.events.mailbox();
        self.processors.start(&mailbox).unwrap();
    }

    /// Waits until every CPU has counted on.
    fn all_count(&self) {
        let (begun, before) = (Instant::now(), self.counts());
        while self.counts().iter().zip(before).any(|(n, b)| *n == b) {
            assert!(begun.elapsed() < DEADLINE, "{:?}", self.counts());
            thread::yield_now();
        }
    }
}

#[test]
fn four_cpus_run_until_they_are_stopped_and_go_on_where_they_were() {
    let Some(mut several) = Several::new(false) else {
        return;
    };
    for _ in 0..20 {
        several.start();
        several.all_count();
        several.processors.stop().unwrap();
        let stopped = several.counts();
        thread::sleep(Duration::from_millis(2));
        assert_eq!(several.counts(), stopped, "none is in the guest any more");
        let ids: Vec<_> = several.processors.parked.iter().map(|cpu| cpu.id).collect();
        assert_eq!(ids, [0, 1, 2, 3]);
    }
}

#[test]
fn after_a_reset_only_the_boot_cpu_runs_and_starts_the_others_again() {
    let Some(mut several) = Several::new(false) else {
        return;
    };
    for _ in 0..20 {
        several.start();
        several.all_count();
        several.processors.stop().unwrap();
        several.processors.reset().unwrap();
        several.load(false);
        for (id, cpu) in several.processors.parked.iter().enumerate() {
            let state = cpu.fd.get_mp_state().unwrap().mp_state;
            assert_eq!(
                state == kvm_bindings::KVM_MP_STATE_UNINITIALIZED,
                id != 0,
                "CPU {id}"
            );
        }
    }
}

#[test]
fn the_cpu_that_stops_by_itself_says_so_and_the_others_run_on_until_stopped() {
    let Some(mut several) = Several::new(true) else {
        return;
    };
    several.start();
    match several.events.wait().unwrap() {
        Event::Stopped { vcpu, stop } => assert_eq!((vcpu, stop), (0, ENDED)),
        other => panic!("{other:?}"),
    }
    let before = several.counts();
    let begun = Instant::now();
    while several.counts()[1] == before[1] {
        assert!(begun.elapsed() < DEADLINE, "CPU 1 stopped too");
    }
    several.processors.stop().unwrap();
    for _ in 1..CPUS {
        match several.events.wait().unwrap() {
            Event::Stopped { vcpu, stop } => assert!(vcpu != 0 && stop == Stop::Asked),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn stopping_what_never_started_or_is_stopped_does_nothing() {
    let Some(mut several) = Several::new(false) else {
        return;
    };
    several.processors.stop().unwrap();
    several.start();
    several.processors.stop().unwrap();
    several.processors.stop().unwrap();
    assert_eq!(several.processors.parked.len(), CPUS as usize);
}

#[test]
fn dropping_running_cpus_stops_them() {
    let Some(mut several) = Several::new(false) else {
        return;
    };
    several.start();
    several.all_count();
    let Several {
        processors,
        ram,
        vm,
        events,
    } = several;
    drop(processors);
    drop((events, vm));
    let count = || ram.memory().read_obj::<u64>(GuestAddress(COUNTS)).unwrap();
    let stopped = count();
    thread::sleep(Duration::from_millis(5));
    assert_eq!(count(), stopped);
}

#[test]
fn more_cpus_than_kvm_can_run_are_refused_with_how_many_it_can() {
    let Some(vm) = tiny_guest::vm() else { return };
    let (ports, device) = Default::default();
    let shared = tiny_guest::shared(&ports, &device);
    let most = vm.kvm.get_max_vcpus();
    let wanted = u32::try_from(most).unwrap() + 1;
    let Err(refused) = Processors::create(&vm, &plain(wanted), &[], shared) else {
        panic!("{wanted} CPUs were made");
    };
    assert_eq!(
        refused.to_string(),
        format!(
            "{wanted} CPUs are more than the {most} that KVM on this host can run\n  give the guest fewer with --cpus"
        )
    );
}

#[test]
fn processors_that_are_not_ours_are_refused_with_those_that_are() {
    let Some(vm) = tiny_guest::vm() else {
        return;
    };
    let supported = vm.supported_cpuid().unwrap();
    let allowed = affinity::allowed().unwrap();
    let pinned = |processor| ProcessorsConfig {
        pin: vec![processor],
        ..plain(1)
    };
    assert!(check(&vm, &pinned(allowed[0]), &supported).is_ok());
    let refused = check(&vm, &pinned(8191), &supported).unwrap_err();
    let said = refused.to_string();
    assert!(said.contains(&ranges(&allowed)), "{said}");
    assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
}

#[test]
fn a_vcpu_runs_where_it_is_pinned() {
    let Some(mut several) = Several::new(false) else {
        return;
    };
    let last = *affinity::allowed().unwrap().last().unwrap();
    for vcpu in &mut several.processors.parked {
        vcpu.processor = Some(last);
    }
    several.processors.start(&several.events.mailbox()).unwrap();
    let begun = Instant::now();
    while !threads_are_pinned_to(last) {
        assert!(begun.elapsed() < DEADLINE, "they are not pinned");
        thread::yield_now();
    }
    several.processors.stop().unwrap();
}

/// Whether all threads of this process that are vCPUs, of which there are some, may run on that processor only.
fn threads_are_pinned_to(processor: usize) -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let read = |task: &std::fs::DirEntry, file| {
        std::fs::read_to_string(task.path().join(file)).unwrap_or_default()
    };
    let vcpus: Vec<String> = tasks
        .filter(|task| read(task, "comm").starts_with("vcpu"))
        .map(|task| read(&task, "status"))
        .collect();
    let wanted = format!("Cpus_allowed_list:\t{processor}\n");
    vcpus
        .iter()
        .filter(|status| status.contains(&wanted))
        .count()
        >= 4
}
