//! What a vCPU is at power-on, and how it gets back there: everything KVM keeps of it, read once before it first runs and written
//! back at a reset of the machine.

use std::ops::RangeInclusive;

use arch::{
    boot::{gdt::Segment, registers::BootRegisters},
    cpuid::Leaf,
};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    MsrList, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use super::KvmError;

/// The time-stamp counter. It goes on counting over a reset: writing it would put the vCPUs out of step.
const MSR_IA32_TSC: u32 = 0x10;

/// The memory type range registers, which KVM keeps and does not list among the MSRs worth saving: eight variable ranges, the fixed
/// ones, and the default (Intel SDM vol. 4).
const MTRRS: [RangeInclusive<u32>; 5] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x2ff..=0x2ff,
];

/// One leaf as `arch` writes it.
pub(super) fn leaf(entry: &kvm_cpuid_entry2) -> Leaf {
    Leaf {
        function: entry.function,
        index: entry.index,
        significant_index: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

/// Gives a vCPU its CPUID.
pub fn set_cpuid(fd: &VcpuFd, leaves: &[Leaf]) -> Result<(), KvmError> {
    let entries: Vec<_> = leaves
        .iter()
        .map(|leaf| kvm_cpuid_entry2 {
            function: leaf.function,
            index: leaf.index,
            flags: if leaf.significant_index {
                KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            } else {
                0
            },
            eax: leaf.eax,
            ebx: leaf.ebx,
            ecx: leaf.ecx,
            edx: leaf.edx,
            ..Default::default()
        })
        .collect();
    let cpuid = CpuId::from_entries(&entries).map_err(|_| KvmError::Lacks("room for CPUID"))?;
    fd.set_cpuid2(&cpuid)
        .map_err(KvmError::call("KVM_SET_CPUID2"))
}

/// Writes MSRs; one that this host does not have is left out, with a note.
pub fn set_msrs(fd: &VcpuFd, values: &[(u32, u64)]) -> Result<(), KvmError> {
    let entries: Vec<_> = values
        .iter()
        .map(|&(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    let mut rest = entries.as_slice();
    while !rest.is_empty() {
        let msrs = Msrs::from_entries(rest).map_err(|_| KvmError::Lacks("room for MSRs"))?;
        // KVM stops at the first one that it refuses and says how many it took.
        let taken = fd.set_msrs(&msrs).map_err(KvmError::call("KVM_SET_MSRS"))?;
        let Some(refused) = rest.get(taken) else {
            break;
        };
        log::debug!(
            "MSR {:#x} cannot be set to {:#x}",
            refused.index,
            refused.data
        );
        rest = rest.get(taken + 1..).unwrap_or_default();
    }
    Ok(())
}

/// Everything KVM keeps of a vCPU that a reset has to put back.
pub struct PowerOnState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// The FPU's registers and what came after: SSE, AVX, protection keys.
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    mp_state: kvm_mp_state,
}

impl PowerOnState {
    /// Reads it from a vCPU that has not run yet. `saved` are the MSRs that KVM says are worth keeping.
    pub fn read(fd: &VcpuFd, is_boot_cpu: bool, saved: &MsrList) -> Result<Self, KvmError> {
        let mp_state = if is_boot_cpu {
            KVM_MP_STATE_RUNNABLE
        } else {
            KVM_MP_STATE_UNINITIALIZED
        };
        let ranges = MTRRS.into_iter().flatten();
        Ok(Self {
            regs: fd.get_regs().map_err(KvmError::call("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?,
            xsave: fd.get_xsave().map_err(KvmError::call("KVM_GET_XSAVE"))?,
            xcrs: fd.get_xcrs().map_err(KvmError::call("KVM_GET_XCRS"))?,
            debug: fd
                .get_debug_regs()
                .map_err(KvmError::call("KVM_GET_DEBUGREGS"))?,
            events: fd
                .get_vcpu_events()
                .map_err(KvmError::call("KVM_GET_VCPU_EVENTS"))?,
            lapic: fd.get_lapic().map_err(KvmError::call("KVM_GET_LAPIC"))?,
            msrs: read_msrs(fd, saved.as_slice().iter().copied().chain(ranges))?,
            mp_state: kvm_mp_state { mp_state },
        })
    }

    /// Writes it back, with the vCPU stopped.
    pub fn restore(&self, fd: &VcpuFd) -> Result<(), KvmError> {
        // The APIC base and mode are in sregs, so they precede the LAPIC; the TSC deadline is an MSR that the LAPIC's timer mode
        // gates, so MSRs follow it. Events last: setting registers clears a pending exception.
        fd.set_mp_state(self.mp_state)
            .map_err(KvmError::call("KVM_SET_MP_STATE"))?;
        fd.set_sregs(&self.sregs)
            .map_err(KvmError::call("KVM_SET_SREGS"))?;
        fd.set_regs(&self.regs)
            .map_err(KvmError::call("KVM_SET_REGS"))?;
        fd.set_xcrs(&self.xcrs)
            .map_err(KvmError::call("KVM_SET_XCRS"))?;
        // SAFETY: KVM reads more than a kvm_xsave only of a guest that may use features which a process has to ask for
        // (ARCH_REQ_XCOMP_GUEST_PERM, AMX), and this one never asks.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(KvmError::call("KVM_SET_XSAVE"))?;
        fd.set_debug_regs(&self.debug)
            .map_err(KvmError::call("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(&self.lapic)
            .map_err(KvmError::call("KVM_SET_LAPIC"))?;
        set_msrs(fd, &self.msrs)?;
        fd.set_vcpu_events(&self.events)
            .map_err(KvmError::call("KVM_SET_VCPU_EVENTS"))
    }
}

/// Reads MSRs, but for the time-stamp counter; one that this host does not have is left out.
fn read_msrs(fd: &VcpuFd, indices: impl Iterator<Item = u32>) -> Result<Vec<(u32, u64)>, KvmError> {
    let entries: Vec<_> = indices
        .filter(|&index| index != MSR_IA32_TSC)
        .map(|index| kvm_msr_entry {
            index,
            ..Default::default()
        })
        .collect();
    let mut values = Vec::with_capacity(entries.len());
    let mut rest = entries.as_slice();
    while !rest.is_empty() {
        let mut msrs = Msrs::from_entries(rest).map_err(|_| KvmError::Lacks("room for MSRs"))?;
        let read = fd
            .get_msrs(&mut msrs)
            .map_err(KvmError::call("KVM_GET_MSRS"))?;
        values.extend(
            msrs.as_slice()
                .iter()
                .take(read)
                .map(|msr| (msr.index, msr.data)),
        );
        // One that is listed and yet unreadable has no state to keep.
        rest = rest.get(read + 1..).unwrap_or_default();
    }
    Ok(values)
}

/// Puts the boot CPU, which is at power-on, to where `boot` says.
pub fn enter(fd: &VcpuFd, boot: &BootRegisters) -> Result<(), KvmError> {
    let mut sregs = fd.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
    sregs.cs = segment(boot.code);
    for register in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *register = segment(boot.data);
    }
    sregs.tr = segment(boot.task);
    sregs.gdt = kvm_dtable {
        base: boot.gdt_base,
        limit: boot.gdt_limit,
        ..Default::default()
    };
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = boot.cr0;
    sregs.cr3 = boot.cr3;
    sregs.cr4 = boot.cr4;
    sregs.efer = boot.efer;
    fd.set_sregs(&sregs)
        .map_err(KvmError::call("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: boot.rip,
        rsp: boot.rsp,
        rflags: boot.rflags,
        rsi: boot.rsi,
        rbx: boot.rbx,
        ..Default::default()
    };
    fd.set_regs(&regs).map_err(KvmError::call("KVM_SET_REGS"))
}

fn segment(segment: Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base.into(),
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.type_,
        present: segment.present.into(),
        dpl: 0,
        db: segment.db.into(),
        s: segment.s.into(),
        l: segment.l.into(),
        g: segment.g.into(),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests;
