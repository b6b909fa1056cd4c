//! Guests of a few instructions, for the tests of what talks to KVM: the production types around a quarter of a megabyte of RAM, one
//! recorder on each bus, and a port that ends the guest.

use std::{
    slice,
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use arch::{
    boot::{
        paging,
        registers::{BootRegisters, Protocol},
    },
    ram::RamRange,
};
use devices::{
    bus::{Action, Bus, BusDevice},
    mapping::Memslots,
};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    kvm::{KvmError, Vm, memslots::SlotTable, vcpu_state},
    ram::{Pages, Ram},
    stats::ExitCounters,
    vcpu::{self, Running, Shared, Stop, Vcpu},
};

/// Where the first instruction goes, in either mode.
pub(crate) const CODE: u64 = 0x1000;
/// RAM ends here; what lies above is nobody's but for [`DEVICE`].
pub(crate) const RAM_END: u64 = 0x4_0000;
/// Where the memory bus has its recorder, a page long.
pub(crate) const DEVICE: u64 = 0x8_0000;
/// Where guests count what is to be counted.
pub(crate) const COUNTER: u64 = 0x3000;
/// Whatever is written to this port ends the guest with [`ENDED`].
pub(crate) const END_PORT: u64 = 0xf4;
/// How a guest that wrote to [`END_PORT`] stops.
pub(crate) const ENDED: Stop = Stop::Guest(Action::PowerOff);
/// Far more than any of these guests takes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Assembles a guest's instructions, which must not depend on where they are. Labels are numbers from 4.
macro_rules! guest_code {
    ($mode:literal: $($instruction:literal)*) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: the instructions go to read-only data and only their addresses are taken; nothing of them is executed here.
        unsafe {
            std::arch::asm!(
                ".pushsection .rodata", "2:", concat!(".", $mode), $($instruction,)* ".code64", "3:", ".popsection",
                "lea {start}, [rip + 2b]", "lea {end}, [rip + 3b]",
                start = out(reg) start, end = out(reg) end, options(nomem, nostack, preserves_flags)
            );
        }
        $crate::tiny_guest::code(start, end)
    }};
}
pub(crate) use guest_code;

/// For [`guest_code`]: the bytes from `start` to `end`, which are read-only data of this program.
pub(crate) fn code(start: *const u8, end: *const u8) -> &'static [u8] {
    let len = end.addr() - start.addr();
    // SAFETY: the macro above, the only caller, names the two ends of one piece of read-only data.
    unsafe { slice::from_raw_parts(start, len) }
}

/// Marks the current test as skipped: the line that `cargo lab test` reads in the output that
/// libtest captures of each test.
pub(crate) fn skipped(reason: &str) {
    println!("SKIPPED ({reason})");
}

/// A VM; `None`, and the test is skipped, where /dev/kvm cannot be opened.
pub(crate) fn vm() -> Option<Vm> {
    match Vm::create() {
        Err(KvmError::Open { source, .. }) => {
            skipped(&format!("/dev/kvm: {source}"));
            None
        }
        made => Some(made.unwrap()),
    }
}

/// An access that a recorder saw: its offset, and its width or its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

/// Writes down who accesses it how. Reads give 0x11, 0x22, 0x33… on and on.
#[derive(Default)]
pub(crate) struct Recorder {
    seen: Mutex<Vec<Access>>,
    given: Mutex<u8>,
}

impl Recorder {
    /// What came since the last call.
    pub(crate) fn take(&self) -> Vec<Access> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl BusDevice for Recorder {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut given = self.given.lock().unwrap();
        for byte in &mut *data {
            *given = given.wrapping_add(0x11);
            *byte = *given;
        }
        self.seen
            .lock()
            .unwrap()
            .push(Access::Read(offset, data.len()));
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        self.seen
            .lock()
            .unwrap()
            .push(Access::Write(offset, data.to_vec()));
        Action::None
    }
}

/// Calls back at each access; a write asks for what the call answers.
pub(crate) struct OnAccess<F>(pub(crate) F);

impl<F: Fn() -> Action + Send + Sync> BusDevice for OnAccess<F> {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let _ = (self.0)();
        data.fill(0x5a);
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Action {
        (self.0)()
    }
}

/// A guest with one CPU.
pub(crate) struct TinyGuest {
    /// The CPU, while it is not running.
    vcpu: Option<Vcpu>,
    pub(crate) counters: Arc<ExitCounters>,
    pub(crate) shared: Arc<Shared>,
    /// Answers at ports 0x00 to 0xef.
    pub(crate) ports: Arc<Recorder>,
    /// Answers at [`DEVICE`].
    pub(crate) device: Arc<Recorder>,
    pub(crate) slots: Arc<SlotTable>,
    pub(crate) vm: Vm,
    pub(crate) ram: Ram,
}

impl TinyGuest {
    /// A guest that starts with `code` in real mode, all segments at 0.
    pub(crate) fn real_mode(code: &[u8]) -> Option<Self> {
        let guest = Self::new(code)?;
        let fd = guest.fd();
        let mut sregs = fd.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        fd.set_sregs(&sregs).unwrap();
        let mut regs = fd.get_regs().unwrap();
        (regs.rip, regs.rsp, regs.rflags) = (CODE, CODE, 2);
        fd.set_regs(&regs).unwrap();
        Some(guest)
    }

    /// A guest that starts with `code` in long mode, as Linux does: the low 4 GiB mapped, interrupts off.
    pub(crate) fn long_mode(code: &[u8]) -> Option<Self> {
        let guest = Self::new(code)?;
        let leaves = guest.vm.supported_cpuid().unwrap();
        vcpu_state::set_cpuid(guest.fd(), &leaves).unwrap();
        let registers = BootRegisters::new(Protocol::Linux64, CODE);
        guest.put(paging::ROOT, &paging::tables());
        guest.put(registers.gdt_base, &registers.gdt());
        vcpu_state::enter(guest.fd(), &registers).unwrap();
        Some(guest)
    }

    fn new(code: &[u8]) -> Option<Self> {
        let vm = vm()?;
        vcpu::install_kick_handler().unwrap();
        let slots = Arc::new(SlotTable::new(vm.fd.clone()));
        let (ports, device) = <(Arc<Recorder>, Arc<Recorder>)>::default();
        let counters = Arc::new(ExitCounters::default());
        let guest = Self {
            vcpu: Some(Vcpu {
                id: 0,
                fd: vm.fd.create_vcpu(0).unwrap(),
                exits: counters.clone(),
                processor: None,
            }),
            counters,
            shared: shared(&ports, &device),
            ports,
            device,
            ram: ram(&slots),
            slots,
            vm,
        };
        guest.put(CODE, code);
        Some(guest)
    }

    /// KVM's side of the CPU, which is not running.
    pub(crate) fn fd(&self) -> &kvm_ioctls::VcpuFd {
        &self.vcpu.as_ref().unwrap().fd
    }

    /// Writes to RAM.
    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        let memory = self.ram.memory();
        memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    /// A quadword of RAM.
    pub(crate) fn quadword(&self, address: u64) -> u64 {
        self.ram.memory().read_obj(GuestAddress(address)).unwrap()
    }

    /// Starts the CPU.
    pub(crate) fn start(&mut self) -> Started<'_> {
        use std::sync::atomic::Ordering;
        self.shared.stop.store(false, Ordering::SeqCst);
        let counted_before = self.quadword(COUNTER);
        let (sender, stops) = mpsc::channel();
        let vcpu = self.vcpu.take().unwrap();
        let tell = move |_, stop| sender.send(stop).unwrap();
        let running = Running::start(vcpu, self.shared.clone(), tell).unwrap();
        Started {
            guest: self,
            running,
            stops,
            counted_before,
        }
    }

    /// Runs the CPU until it stops by itself.
    pub(crate) fn run(&mut self) -> Stop {
        self.start().wait()
    }
}

/// A guest whose CPU runs.
pub(crate) struct Started<'a> {
    guest: &'a mut TinyGuest,
    running: Running,
    stops: Receiver<Stop>,
    counted_before: u64,
}

impl Started<'_> {
    /// Waits until the CPU stops by itself.
    pub(crate) fn wait(self) -> Stop {
        let stop = self.stops.recv_timeout(DEADLINE);
        let stop = stop.expect("the guest runs on and on");
        self.guest.vcpu = self.running.join();
        stop
    }

    /// Waits until the guest has counted on at [`COUNTER`]: then it is in the guest.
    pub(crate) fn wait_until_it_counts(&self) {
        let begun = Instant::now();
        while self.quadword(COUNTER) == self.counted_before {
            assert!(begun.elapsed() < DEADLINE, "the guest does not run");
            thread::yield_now();
        }
    }

    /// A quadword of RAM.
    pub(crate) fn quadword(&self, address: u64) -> u64 {
        self.guest.quadword(address)
    }

    /// Tells the CPU to stop, and waits until it has.
    pub(crate) fn stop(self) -> Stop {
        use std::sync::atomic::Ordering;
        self.guest.shared.stop.store(true, Ordering::SeqCst);
        self.running.kick();
        self.wait()
    }
}

/// The buses that a tiny guest has.
pub(crate) fn shared(ports: &Arc<Recorder>, device: &Arc<Recorder>) -> Arc<Shared> {
    let (io, memory) = (Bus::new(), Bus::new());
    io.insert(0, 0xf0, ports.clone()).unwrap();
    let end = Arc::new(OnAccess(|| Action::PowerOff));
    io.insert(END_PORT, 1, end).unwrap();
    memory.insert(DEVICE, 0x1000, device.clone()).unwrap();
    Arc::new(Shared::new(Arc::new(io), Arc::new(memory)))
}

/// The RAM that a tiny guest has, in its slot.
pub(crate) fn ram(slots: &SlotTable) -> Ram {
    let plan = [RamRange {
        guest: 0,
        len: RAM_END,
    }];
    let ram = Ram::reserve(&plan, Pages::Small).unwrap();
    for (guest, memory) in ram.ranges() {
        slots.map(guest, memory).unwrap();
    }
    ram
}
