//! The virtual processors as a set: made once, started and stopped together, put back to power-on at a reset.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use arch::{
    boot::registers::BootRegisters,
    cpuid::{
        self, CpuidConfig, Leaf,
        model::{self, LevelNotReached, Model},
        topology::Topology,
    },
};
use kvm_bindings::MsrList;
use kvm_ioctls::Cap;

use crate::{
    affinity,
    core_file::Cpu,
    events::{Event, Mailbox},
    kvm::{
        KvmError, Vm,
        vcpu_state::{self, PowerOnState},
    },
    stats::ExitCounters,
    vcpu::{self, Running, Shared, Vcpu},
};

/// What the processors are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessorsConfig {
    /// How many, and how they are put together.
    pub topology: Topology,
    /// What they can do.
    pub model: Model,
    /// The host's processors that they run on, one each; wherever the host likes, if there is none.
    pub pin: Vec<usize>,
}

/// The vCPUs cannot be made or run.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorsError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// More than this host's KVM takes.
    #[error(
        "{wanted} CPUs are more than the {most} that KVM on this host can run\n  give the guest fewer with --cpus"
    )]
    TooMany {
        /// Asked for.
        wanted: u32,
        /// Possible.
        most: usize,
    },
    /// This host's CPU cannot do what the model can.
    #[error(transparent)]
    Model(#[from] LevelNotReached),
    /// A processor to run on that is not there, or not ours.
    #[error(
        "processor {processor} is none that viaduct may run on here\n  choose among those:  --cpus N,pin={}",
        ranges(allowed)
    )]
    NotAllowed {
        /// Asked for.
        processor: usize,
        /// Possible.
        allowed: Vec<usize>,
    },
    /// No thread for one of them.
    #[error(
        "starting a vCPU thread\n  give the guest fewer CPUs with --cpus, or allow more threads:  ulimit -u"
    )]
    Thread(#[from] io::Error),
    /// A vCPU thread died of a defect of ours.
    #[error("a vCPU thread panicked; this is a defect of viaduct: please report it")]
    Panicked,
}

/// Whether this host can run such processors.
pub fn check(
    vm: &Vm,
    config: &ProcessorsConfig,
    supported: &[Leaf],
) -> Result<(), ProcessorsError> {
    let most = vm.kvm.get_max_vcpus();
    let wanted = config.topology.cpus();
    if !usize::try_from(wanted).is_ok_and(|wanted| wanted <= most) {
        return Err(ProcessorsError::TooMany { wanted, most });
    }
    model::check(supported, config.model)?;
    if config.pin.is_empty() {
        return Ok(());
    }
    let allowed = affinity::allowed()?;
    let other = config.pin.iter().find(|one| !allowed.contains(one));
    match other.copied() {
        Some(processor) => Err(ProcessorsError::NotAllowed { processor, allowed }),
        None => Ok(()),
    }
}

/// Numbers in ascending order, as `0-3,8`.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|one, next| one + 1 == *next);
    let texts = runs.filter_map(|run| match run {
        [one] => Some(one.to_string()),
        [first, .., last] => Some(format!("{first}-{last}")),
        [] => None,
    });
    texts.collect::<Vec<_>>().join(",")
}

/// The guest's processors.
pub struct Processors {
    parked: Vec<Vcpu>,
    running: Vec<Running>,
    power_on: Vec<PowerOnState>,
    counters: Vec<Arc<ExitCounters>>,
    shared: Arc<Shared>,
}

impl Processors {
    /// Makes the vCPUs; CPU 0 is the boot CPU. `supported` is what the host's KVM can show a guest.
    pub fn create(
        vm: &Vm,
        config: &ProcessorsConfig,
        supported: &[Leaf],
        shared: Arc<Shared>,
    ) -> Result<Self, ProcessorsError> {
        check(vm, config, supported)?;
        vcpu::install_kick_handler()?;
        let saved = vm
            .kvm
            .get_msr_index_list()
            .map_err(KvmError::call("KVM_GET_MSR_INDEX_LIST"))?;
        let mut set = Self {
            parked: Vec::new(),
            running: Vec::new(),
            power_on: Vec::new(),
            counters: Vec::new(),
            shared,
        };
        for id in 0..config.topology.cpus() {
            set.add(vm, id, config, supported, &saved)?;
        }
        Ok(set)
    }

    fn add(
        &mut self,
        vm: &Vm,
        id: u32,
        config: &ProcessorsConfig,
        supported: &[Leaf],
        saved: &MsrList,
    ) -> Result<(), KvmError> {
        // KVM makes its number for a vCPU the APIC ID.
        let apic_id = config.topology.apic_id(id);
        let fd = vm
            .fd
            .create_vcpu(apic_id.into())
            .map_err(KvmError::call("KVM_CREATE_VCPU"))?;
        let cpuid = CpuidConfig {
            apic_id,
            topology: config.topology,
            model: config.model,
            tsc_khz: fd.get_tsc_khz().ok().filter(|&khz| khz > 0),
            tsc_deadline: vm.kvm.check_extension(Cap::TscDeadlineTimer),
        };
        vcpu_state::set_cpuid(&fd, &cpuid::guest(supported, &cpuid))?;
        vcpu_state::set_msrs(&fd, &arch::msr::boot_msrs())?;
        let mut lapic = fd.get_lapic().map_err(KvmError::call("KVM_GET_LAPIC"))?;
        arch::lapic::wire_local_interrupts(&mut lapic.regs);
        fd.set_lapic(&lapic)
            .map_err(KvmError::call("KVM_SET_LAPIC"))?;
        self.power_on.push(PowerOnState::read(&fd, id == 0, saved)?);
        let exits = Arc::new(ExitCounters::default());
        self.counters.push(exits.clone());
        let pinned = usize::try_from(id).ok().and_then(|id| config.pin.get(id));
        self.parked.push(Vcpu {
            id,
            fd,
            exits,
            processor: pinned.copied(),
        });
        Ok(())
    }

    /// Puts the boot CPU, stopped and at power-on, to the kernel's entry.
    pub fn enter(&self, registers: &BootRegisters) -> Result<(), ProcessorsError> {
        let boot_cpu = self.parked.iter().find(|vcpu| vcpu.id == 0);
        boot_cpu
            .map_or(Ok(()), |cpu| vcpu_state::enter(&cpu.fd, registers))
            .map_err(Into::into)
    }

    /// What each exited for.
    pub fn counters(&self) -> &[Arc<ExitCounters>] {
        &self.counters
    }

    /// Starts all of them. Each posts to `mailbox` when it stops by itself.
    pub fn start(&mut self, mailbox: &Mailbox) -> Result<(), ProcessorsError> {
        self.shared.stop.store(false, Ordering::SeqCst);
        for vcpu in self.parked.drain(..) {
            let mailbox = mailbox.clone();
            let stopped = move |vcpu, stop| mailbox.post(Event::Stopped { vcpu, stop });
            self.running
                .push(Running::start(vcpu, self.shared.clone(), stopped)?);
        }
        Ok(())
    }

    /// Stops all of them and waits until none is in the guest.
    pub fn stop(&mut self) -> Result<(), ProcessorsError> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.running.iter().for_each(Running::kick);
        let count = self.running.len();
        let before = self.parked.len();
        // All of them are waited for, whatever became of one.
        self.parked
            .extend(self.running.drain(..).filter_map(Running::join));
        self.parked.sort_by_key(|vcpu| vcpu.id);
        if self.parked.len() == before + count {
            Ok(())
        } else {
            Err(ProcessorsError::Panicked)
        }
    }

    /// What is in the registers of all of them, stopped.
    pub fn registers(&self) -> Result<Vec<Cpu>, ProcessorsError> {
        let read = |vcpu: &Vcpu| {
            let registers = vcpu.fd.get_regs().map_err(KvmError::call("KVM_GET_REGS"))?;
            let segments = vcpu.fd.get_sregs();
            Ok(Cpu {
                registers,
                segments: segments.map_err(KvmError::call("KVM_GET_SREGS"))?,
            })
        };
        self.parked.iter().map(read).collect()
    }

    /// Puts all of them, stopped, back to power-on.
    pub fn reset(&self) -> Result<(), ProcessorsError> {
        for (vcpu, state) in self.parked.iter().zip(&self.power_on) {
            state.restore(&vcpu.fd)?;
        }
        Ok(())
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            log::error!("{error}");
        }
    }
}

#[cfg(test)]
mod tests;
