//! The virtual processors as a set: made once, started and stopped together, put back to power-on at a reset.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use arch::{
    boot::registers::BootRegisters,
    cpuid::{self, CpuidConfig, Leaf},
};
use kvm_bindings::MsrList;
use kvm_ioctls::Cap;

use crate::{
    events::{Event, Mailbox},
    kvm::{
        KvmError, Vm,
        vcpu_state::{self, PowerOnState},
    },
    stats::ExitCounters,
    vcpu::{self, Running, Shared, Vcpu},
};

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
    /// No thread for one of them.
    #[error(
        "starting a vCPU thread\n  give the guest fewer CPUs with --cpus, or allow more threads:  ulimit -u"
    )]
    Thread(#[from] io::Error),
    /// A vCPU thread died of a defect of ours.
    #[error("a vCPU thread panicked; this is a defect of viaduct: please report it")]
    Panicked,
}

/// Whether KVM on this host can run that many.
pub fn check_count(vm: &Vm, wanted: u32) -> Result<(), ProcessorsError> {
    let most = vm.kvm.get_max_vcpus();
    let fits = usize::try_from(wanted).is_ok_and(|wanted| wanted <= most);
    if fits {
        Ok(())
    } else {
        Err(ProcessorsError::TooMany { wanted, most })
    }
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
    /// Makes `count` vCPUs; CPU 0 is the boot CPU. `supported` is what the host's KVM can show a guest.
    pub fn create(
        vm: &Vm,
        count: u32,
        supported: &[Leaf],
        shared: Arc<Shared>,
    ) -> Result<Self, ProcessorsError> {
        check_count(vm, count)?;
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
        for id in 0..count {
            set.add(vm, id, count, supported, &saved)?;
        }
        Ok(set)
    }

    fn add(
        &mut self,
        vm: &Vm,
        id: u32,
        count: u32,
        supported: &[Leaf],
        saved: &MsrList,
    ) -> Result<(), KvmError> {
        let fd = vm
            .fd
            .create_vcpu(id.into())
            .map_err(KvmError::call("KVM_CREATE_VCPU"))?;
        let config = CpuidConfig {
            apic_id: id,
            cpus: count,
            tsc_khz: fd.get_tsc_khz().ok().filter(|&khz| khz > 0),
            tsc_deadline: vm.kvm.check_extension(Cap::TscDeadlineTimer),
        };
        vcpu_state::set_cpuid(&fd, &cpuid::guest(supported, &config))?;
        vcpu_state::set_msrs(&fd, &arch::msr::boot_msrs())?;
        let mut lapic = fd.get_lapic().map_err(KvmError::call("KVM_GET_LAPIC"))?;
        arch::lapic::wire_local_interrupts(&mut lapic.regs);
        fd.set_lapic(&lapic)
            .map_err(KvmError::call("KVM_SET_LAPIC"))?;
        self.power_on.push(PowerOnState::read(&fd, id == 0, saved)?);
        let exits = Arc::new(ExitCounters::default());
        self.counters.push(exits.clone());
        self.parked.push(Vcpu { id, fd, exits });
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
