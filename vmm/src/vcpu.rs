//! The vCPU loop: run the guest, bring its accesses to the bus, count.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, compiler_fence},
    },
    thread::{self, JoinHandle},
};

use devices::bus::{Action, Bus};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::{
    affinity,
    stats::{ExitCounters, ExitKind},
};

/// Why a vCPU stopped running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It was told to.
    Asked,
    /// The guest did something that concerns the whole machine.
    Guest(Action),
    /// The guest triple-faulted; where, as far as KVM says.
    TripleFault(Option<u64>),
    /// KVM gave up on the guest; the text says how.
    Failed(String),
}

/// What came of one entry into the guest.
enum Step {
    /// An access, which is answered.
    Done,
    /// Nothing: a signal took it out of the guest.
    Kicked,
    /// Nothing: the guest reached for memory that is mapped for it and not there. Where, if KVM says.
    Unreachable(Option<u64>),
    Stop(Stop),
}

/// Exits that one instruction takes at most: KVM lets go of a string instruction after 1024 elements, of whatever it reads and writes.
const MOST_PARTS: usize = 4096;

/// How often in a row a vCPU may reach for what is not there without a device being found that it was: whoever withdraws a mapping may
/// be about to, on another thread.
const MOST_FAULTS: u32 = 4;

/// Withdraws what is mapped of devices that no longer answer; whether there was one.
type Withdraw = Box<dyn Fn() -> bool + Send + Sync>;

/// What all vCPUs share.
pub struct Shared {
    /// I/O ports.
    pub io: Arc<Bus>,
    /// Memory outside RAM.
    pub memory: Arc<Bus>,
    /// Set to make every vCPU return; kicked ones look at it.
    pub stop: AtomicBool,
    withdraw: Withdraw,
}

impl Shared {
    /// The buses that the vCPUs' accesses go to.
    pub fn new(io: Arc<Bus>, memory: Arc<Bus>) -> Self {
        Self {
            io,
            memory,
            stop: AtomicBool::new(false),
            withdraw: Box::new(|| false),
        }
    }

    /// What is called when a vCPU cannot reach memory that is mapped for it: it withdraws what is mapped of devices that no longer
    /// answer, and says whether there was one.
    pub fn withdrawing(mut self, withdraw: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.withdraw = Box::new(withdraw);
        self
    }
}

/// A vCPU that is running on its own thread. Joining it gives the vCPU back.
pub struct Running {
    thread: JoinHandle<Vcpu>,
}

/// A vCPU that is not running.
pub struct Vcpu {
    /// Its number, from 0.
    pub id: u32,
    /// KVM's side of it.
    pub fd: VcpuFd,
    /// What it exited for.
    pub exits: Arc<ExitCounters>,
    /// The host's processor that it runs on, if it has one of its own.
    pub processor: Option<usize>,
}

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that runs on this thread; null on every other thread. The kick writes to it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that takes a vCPU out of the guest.
fn kick_signal() -> i32 {
    SIGRTMIN()
}

/// A kick can come between the look at `stop` and KVM_RUN: the signal alone would be lost there, so the handler also sets
/// immediate_exit, which KVM_RUN looks at when it starts (Documentation/virt/kvm/api.rst, struct kvm_run).
extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is into the kvm_run page of the vCPU that this thread runs; `Vcpu::run` clears it before that goes.
        unsafe { flag.write_volatile(1) };
    }
}

/// Makes kicks work; once, before the first vCPU runs.
pub fn install_kick_handler() -> std::io::Result<()> {
    register_signal_handler(kick_signal(), on_kick)
        .map_err(|errno| std::io::Error::from_raw_os_error(errno.errno()))
}

impl Running {
    /// Starts `vcpu` on a thread of its own. `stopped` is called there when it stops by itself.
    pub fn start(
        mut vcpu: Vcpu,
        shared: Arc<Shared>,
        stopped: impl FnOnce(u32, Stop) + Send + 'static,
    ) -> std::io::Result<Self> {
        let thread = thread::Builder::new()
            .name(format!("vcpu{}", vcpu.id))
            .spawn(move || {
                // A panic is a defect, but even then the machine ends in good order and the devices go back.
                let ended = panic::catch_unwind(AssertUnwindSafe(|| vcpu.run(&shared)));
                IMMEDIATE_EXIT.set(ptr::null_mut());
                let defect = || Stop::Failed("a defect of viaduct: please report it".to_owned());
                stopped(vcpu.id, ended.unwrap_or_else(|_| defect()));
                vcpu
            })?;
        Ok(Self { thread })
    }

    /// Takes it out of the guest, to look at `stop`.
    pub fn kick(&self) {
        use std::os::unix::thread::JoinHandleExt;
        // SAFETY: the thread has not been joined, so its pthread_t is valid; the signal has a handler.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), kick_signal()) };
    }

    /// Waits for it and gives the vCPU back; `None` if its thread panicked.
    pub fn join(self) -> Option<Vcpu> {
        self.thread.join().ok()
    }
}

impl Vcpu {
    /// Runs the guest until something stops it.
    fn run(&mut self, shared: &Shared) -> Stop {
        if let Some(processor) = self.processor
            && let Err(error) = affinity::run_on(&[processor])
        {
            return Stop::Failed(format!(
                "it cannot run on processor {processor}: {error}\n  see which are there:  lscpu --extended"
            ));
        }
        let run: *mut kvm_bindings::kvm_run = self.fd.get_kvm_run();
        // SAFETY: `run` points to this vCPU's kvm_run page, mapped as long as `self.fd` lives.
        IMMEDIATE_EXIT.set(unsafe { &raw mut (*run).immediate_exit });
        // A kick before this line finds no flag, so `stop` must not be looked at before it.
        compiler_fence(Ordering::SeqCst);
        let mut faults = 0;
        let stop = loop {
            if shared.stop.load(Ordering::SeqCst) {
                break Stop::Asked;
            }
            match self.run_once(run, shared) {
                Step::Done => faults = 0,
                // The guest makes the access again, and finds the bus where the mapping was.
                Step::Unreachable(_) if (shared.withdraw)() => faults = 0,
                Step::Unreachable(_) if faults < MOST_FAULTS => faults += 1,
                Step::Unreachable(at) => break Stop::Failed(unreachable(at)),
                Step::Kicked => {
                    self.exits.count(ExitKind::Kick);
                    // Cleared before `stop` is looked at, so that a kick that comes from now on is not lost.
                    self.fd.set_kvm_immediate_exit(0);
                }
                Step::Stop(stop) => break stop,
            }
        };
        let settled = self.settle(run, shared);
        IMMEDIATE_EXIT.set(ptr::null_mut());
        self.fd.set_kvm_immediate_exit(0);
        if stop == Stop::Asked { settled } else { stop }
    }

    /// Finishes the instruction whose access was the last exit.
    ///
    /// KVM puts what was read where it belongs, and moves on, when it is entered the next time (Documentation/virt/kvm/api.rst,
    /// KVM_RUN). Left to the next start, that would be done to a CPU that a reset has put back to power-on in between. With
    /// immediate_exit set KVM does it and nothing else.
    fn settle(&mut self, run: *mut kvm_bindings::kvm_run, shared: &Shared) -> Stop {
        for _ in 0..MOST_PARTS {
            self.fd.set_kvm_immediate_exit(1);
            match self.run_once(run, shared) {
                Step::Done => {}
                Step::Kicked | Step::Unreachable(_) => break,
                Step::Stop(stop) => return stop,
            }
        }
        Stop::Asked
    }

    /// One entry into the guest and what it comes back with.
    fn run_once(&mut self, run: *mut kvm_bindings::kvm_run, shared: &Shared) -> Step {
        let exits = &self.exits;
        let action = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                exits.count(ExitKind::IoIn);
                // A string instruction brings several elements at once, all of them for the same port.
                for element in data.chunks_mut(io_size(run)) {
                    shared.io.read(port.into(), element);
                }
                Action::None
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                exits.count(ExitKind::IoOut);
                let write = |element| {
                    shared
                        .io
                        .write(port.into(), element)
                        .unwrap_or(Action::None)
                };
                let mut actions = data.chunks(io_size(run)).map(write);
                actions
                    .find(|action| *action != Action::None)
                    .unwrap_or(Action::None)
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                exits.count(ExitKind::MmioRead);
                shared.memory.read(address, data);
                Action::None
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                exits.count(ExitKind::MmioWrite);
                shared.memory.write(address, data).unwrap_or(Action::None)
            }
            Ok(VcpuExit::Shutdown) => {
                let at = self.fd.get_regs().ok().map(|registers| registers.rip);
                return Step::Stop(Stop::TripleFault(at));
            }
            Ok(VcpuExit::Intr) => return Step::Kicked,
            Err(errno) if errno.errno() == libc::EINTR => return Step::Kicked,
            Err(errno) if errno.errno() == libc::EAGAIN => Action::None,
            // What KVM makes of a SIGBUS: a page of a BAR whose device sleeps or is gone (vfio_pci_mmap_fault). Kernels that say where
            // do it by an exit of its own (KVM_CAP_MEMORY_FAULT_INFO).
            Err(errno) if errno.errno() == libc::EFAULT => return Step::Unreachable(None),
            Ok(VcpuExit::MemoryFault { gpa, .. }) => return Step::Unreachable(Some(gpa)),
            Ok(other) => return Step::Stop(Stop::Failed(describe(&other, run))),
            Err(errno) => return Step::Stop(Stop::Failed(format!("KVM_RUN: {errno}"))),
        };
        match action {
            Action::None => Step::Done,
            action => Step::Stop(Stop::Guest(action)),
        }
    }
}

/// Bytes per element of the port access that the vCPU exited with, which VcpuExit does not say.
fn io_size(run: *const kvm_bindings::kvm_run) -> usize {
    // SAFETY: `run` is the mapped kvm_run page of the vCPU that just exited.
    let size = unsafe { &raw const (*run).__bindgen_anon_1.io.size };
    // SAFETY: the exit was KVM_EXIT_IO, so `io` is the part of the union that KVM filled.
    usize::from(unsafe { size.read() }).max(1)
}

/// Every device answers, so it is RAM that the host lost, or a device that does not do what it says.
fn unreachable(at: Option<u64>) -> String {
    let place = at.map_or_else(String::new, |at| format!(" at {at:#x}"));
    format!(
        "memory that is mapped for it{place} cannot be reached, RAM or a BAR of an assigned device\n  \
         see whether the kernel said why:  dmesg | tail"
    )
}

fn describe(exit: &VcpuExit<'_>, run: *const kvm_bindings::kvm_run) -> String {
    if !matches!(exit, VcpuExit::InternalError) {
        return format!("KVM stopped with {exit:?}");
    }
    // SAFETY: `run` is the mapped kvm_run page of the vCPU that just exited.
    let suberror = unsafe { &raw const (*run).__bindgen_anon_1.internal.suberror };
    // SAFETY: the exit was KVM_EXIT_INTERNAL_ERROR, so `internal` is the part of the union that KVM filled.
    let suberror = unsafe { suberror.read() };
    let what = match suberror {
        1 => "an instruction that KVM cannot emulate",
        2 => "simultaneous exceptions",
        3 => "an event delivery that failed",
        _ => "an unknown reason",
    };
    format!("KVM internal error {suberror}: {what}")
}

#[cfg(test)]
mod tests;
