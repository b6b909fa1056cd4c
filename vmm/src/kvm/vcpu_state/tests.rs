use super::*;
use crate::{
    kvm::irqchip::IrqchipState,
    tiny_guest::{ENDED, TinyGuest, guest_code},
};

const PAT: u32 = 0x277;
const MTRR_FIX_64K: u32 = 0x250;
const MTRR_PHYS_BASE_0: u32 = 0x200;
const MTRR_DEF_TYPE: u32 = 0x2ff;
const LSTAR: u32 = 0xc000_0082;
const TSC_DEADLINE: u32 = 0x6e0;
const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;

/// What can be asked about a CPU, apart from its time-stamp counter.
#[derive(Debug, PartialEq)]
struct Everything {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Vec<u32>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
    lapic: Vec<i8>,
    msrs: Vec<(u32, u64)>,
    mp_state: kvm_mp_state,
}

impl Everything {
    fn about(guest: &TinyGuest) -> Self {
        let fd = guest.fd();
        let listed = guest.vm.kvm.get_msr_index_list().unwrap();
        let ranges = [
            MTRR_FIX_64K,
            MTRR_PHYS_BASE_0,
            MTRR_PHYS_BASE_0 + 1,
            MTRR_DEF_TYPE,
        ];
        let all = listed.as_slice().iter().copied().chain(ranges);
        Self {
            regs: fd.get_regs().unwrap(),
            sregs: fd.get_sregs().unwrap(),
            xsave: fd.get_xsave().unwrap().region.to_vec(),
            xcrs: fd.get_xcrs().unwrap(),
            debug: fd.get_debug_regs().unwrap(),
            events: fd.get_vcpu_events().unwrap(),
            lapic: fd.get_lapic().unwrap().regs.to_vec(),
            msrs: read_msrs(fd, all).unwrap(),
            mp_state: fd.get_mp_state().unwrap(),
        }
    }

    fn msr(&self, index: u32) -> u64 {
        let found = self.msrs.iter().find(|msr| msr.0 == index);
        found.map_or(0, |msr| msr.1)
    }
}

/// Leaves nothing as it was: general, segment, control, debug, FPU and SSE registers, MSRs, and a LAPIC whose timer runs.
fn scribble() -> &'static [u8] {
    guest_code!("code64":
        // EFER: no-execute and SYSCALL.
        "mov ecx, 0xc0000080" "rdmsr" "or eax, 0x801" "wrmsr"
        "mov ecx, 0xc0000082" "mov eax, 0x1234" "xor edx, edx" "wrmsr"
        "mov ecx, 0x174" "mov eax, 0x10" "wrmsr"
        "mov ecx, 0x277" "mov eax, 0x01010101" "mov edx, 0x01010101" "wrmsr"
        "xor edx, edx"
        "mov ecx, 0x200" "mov eax, 0x80000000" "wrmsr"
        "mov ecx, 0x201" "mov eax, 0x80000800" "mov edx, 0xf" "wrmsr"
        "xor edx, edx"
        "mov ecx, 0x250" "mov eax, 0x06060606" "wrmsr"
        "mov ecx, 0x2ff" "mov eax, 0xc00" "wrmsr"
        // kvmclock: the page and its enable bit.
        "mov ecx, 0x4b564d01" "mov eax, 0x20001" "wrmsr"
        // The LAPIC: on, task priority, a periodic timer that is far from its end.
        "mov ebx, 0xfee00000" "mov dword ptr [rbx + 0xf0], 0x1ff" "mov dword ptr [rbx + 0x80], 0x20"
        "mov dword ptr [rbx + 0x3e0], 0xb" "mov dword ptr [rbx + 0x320], 0x20051" "mov dword ptr [rbx + 0x380], 0x7fffffff"
        // SSE on, and something in its registers and in the debug registers.
        "mov rax, cr4" "or eax, 0x600" "mov cr4, rax" "mov rax, cr0" "or eax, 2" "mov cr0, rax"
        "mov ebx, 0x1000" "movdqu xmm3, [rbx]" "mov eax, 0x4000" "mov dr1, rax" "mov cr2, rax"
        "mov ax, 0x18" "mov fs, ax" "mov gs, ax"
        "mov esp, 0x8000" "push rax" "popfq"
        "mov rsi, -1" "mov rdi, -2" "mov r8, -3" "mov r15, -4"
        "out 0xf4, al"
    )
}

#[test]
fn a_cpu_that_ran_is_at_power_on_again_after_a_restore() {
    let Some(mut guest) = TinyGuest::long_mode(scribble()) else {
        return;
    };
    set_msrs(guest.fd(), &arch::msr::boot_msrs()).unwrap();
    let saved = guest.vm.kvm.get_msr_index_list().unwrap();
    let before = Everything::about(&guest);
    let state = PowerOnState::read(guest.fd(), true, &saved).unwrap();

    assert_eq!(guest.run(), ENDED);
    // What the guest's instructions cannot do, or not on every host.
    guest.fd().nmi().unwrap();
    let mut xcrs = guest.fd().get_xcrs().unwrap();
    xcrs.xcrs[0].value |= 1 << 1;
    guest.fd().set_xcrs(&xcrs).unwrap();
    let after = Everything::about(&guest);
    assert_eq!(after.msr(PAT), 0x0101_0101_0101_0101);
    assert_eq!(after.msr(KVM_SYSTEM_TIME_NEW), 0x2_0001);
    assert_eq!(after.msr(LSTAR), 0x1234);
    assert_eq!(after.msr(MTRR_DEF_TYPE), 0xc00);
    assert_ne!(after.sregs, before.sregs);
    assert_ne!(after.lapic, before.lapic);
    assert_ne!(after.xsave, before.xsave);
    assert_ne!(after.debug, before.debug);
    assert_ne!(after.events, before.events);
    assert_ne!(after.xcrs, before.xcrs);

    state.restore(guest.fd()).unwrap();
    let restored = Everything::about(&guest);
    assert_eq!(restored.regs, before.regs);
    assert_eq!(restored.sregs, before.sregs);
    assert_eq!(restored.msrs, before.msrs);
    assert_eq!(restored.lapic, before.lapic);
    assert_eq!(restored, before);
}

#[test]
fn an_x2apic_with_an_armed_deadline_is_back_at_power_on_after_a_restore() {
    let code = guest_code!("code64":
        "mov ecx, 0x1b" "rdmsr" "or eax, 0xc00" "wrmsr"
        "mov ecx, 0x80f" "mov eax, 0x1ff" "xor edx, edx" "wrmsr"
        // The timer in TSC-deadline mode, and a deadline in a long time.
        "mov ecx, 0x832" "mov eax, 0x40051" "wrmsr"
        "mov ecx, 0x6e0" "mov edx, 0x7fffffff" "wrmsr"
        "out 0xf4, al"
    );
    let Some(mut guest) = TinyGuest::long_mode(code) else {
        return;
    };
    let saved = guest.vm.kvm.get_msr_index_list().unwrap();
    let before = Everything::about(&guest);
    let state = PowerOnState::read(guest.fd(), true, &saved).unwrap();
    assert_eq!(guest.run(), ENDED);
    let after = Everything::about(&guest);
    assert_eq!(after.sregs.apic_base & 0xc00, 0xc00);
    assert_ne!(after.msr(TSC_DEADLINE), 0);
    state.restore(guest.fd()).unwrap();
    assert_eq!(Everything::about(&guest), before);
}

#[test]
fn a_cpu_other_than_the_boot_cpu_waits_for_its_start_again() {
    let Some(mut guest) = TinyGuest::real_mode(guest_code!("code16": "out 0xf4, al")) else {
        return;
    };
    let saved = guest.vm.kvm.get_msr_index_list().unwrap();
    let [boot, other] =
        [true, false].map(|first| PowerOnState::read(guest.fd(), first, &saved).unwrap());
    assert_eq!(guest.run(), ENDED);
    other.restore(guest.fd()).unwrap();
    let state = guest.fd().get_mp_state().unwrap().mp_state;
    assert_eq!(state, KVM_MP_STATE_UNINITIALIZED);
    boot.restore(guest.fd()).unwrap();
    let state = guest.fd().get_mp_state().unwrap().mp_state;
    assert_eq!(state, KVM_MP_STATE_RUNNABLE);
}

#[test]
fn a_register_that_the_host_lacks_does_not_keep_the_others_from_being_set() {
    let Some(guest) = TinyGuest::real_mode(&[]) else {
        return;
    };
    const NOBODYS: u32 = 0x1234_5678;
    set_msrs(
        guest.fd(),
        &[(LSTAR, 1), (NOBODYS, 2), (PAT, 6), (NOBODYS, 3)],
    )
    .unwrap();
    let read = |all: &[u32]| read_msrs(guest.fd(), all.iter().copied()).unwrap();
    assert_eq!(
        read(&[NOBODYS, LSTAR, NOBODYS, PAT]),
        [(LSTAR, 1), (PAT, 6)]
    );
}

#[test]
fn the_interrupt_controllers_are_at_power_on_again_after_a_restore() {
    // Both PICs initialised for other vectors, and an IOAPIC pin set up, as a guest's kernel does.
    let code = guest_code!("code64":
        "mov al, 0x11" "out 0x20, al" "out 0xa0, al"
        "mov al, 0x30" "out 0x21, al" "mov al, 0x38" "out 0xa1, al"
        "mov al, 4" "out 0x21, al" "mov al, 2" "out 0xa1, al"
        "mov al, 1" "out 0x21, al" "out 0xa1, al"
        "mov al, 0xff" "out 0x21, al" "out 0xa1, al"
        "mov ebx, 0xfec00000" "mov dword ptr [rbx], 0x18" "mov dword ptr [rbx + 0x10], 0x51"
        "out 0xf4, al"
    );
    let Some(mut guest) = TinyGuest::long_mode(code) else {
        return;
    };
    let [state, before] = [(); 2].map(|()| IrqchipState::read(&guest.vm.fd).unwrap());
    assert_eq!(guest.run(), ENDED);
    let after = IrqchipState::read(&guest.vm.fd).unwrap();
    for (chip, before) in after.bytes().iter().zip(before.bytes()) {
        assert_ne!(*chip, before);
    }
    state.restore(&guest.vm.fd).unwrap();
    let restored = IrqchipState::read(&guest.vm.fd).unwrap();
    assert_eq!(restored.bytes(), before.bytes());
}
