use std::{fs::File, hint, os::fd::AsRawFd, sync::atomic::AtomicUsize, time::Instant};

use devices::mapping::{HostMapping, Memslots};

use super::*;
use crate::tiny_guest::{Access, DEVICE, ENDED, OnAccess, Started, TinyGuest, guest_code, skipped};

#[test]
fn port_accesses_reach_the_bus_in_their_own_width() {
    let code = guest_code!("code16":
        "mov eax, 0x44332211"
        "out 0x10, al" "out 0x12, ax" "out 0x14, eax"
        "in al, 0x50" "in ax, 0x52" "in eax, 0x54"
        "out 0xf4, al"
    );
    let Some(mut guest) = TinyGuest::real_mode(code) else {
        return;
    };
    assert_eq!(guest.run(), ENDED);
    let expected = [
        Access::Write(0x10, vec![0x11]),
        Access::Write(0x12, vec![0x11, 0x22]),
        Access::Write(0x14, vec![0x11, 0x22, 0x33, 0x44]),
        Access::Read(0x50, 1),
        Access::Read(0x52, 2),
        Access::Read(0x54, 4),
    ];
    assert_eq!(guest.ports.take(), expected);
    // What the last read gave is in the register: the bytes after the three of the reads before it.
    assert_eq!(guest.fd().get_regs().unwrap().rax, 0x7766_5544);
}

#[test]
fn string_writes_arrive_element_by_element() {
    let code = guest_code!("code16":
        "cld" "mov si, 0x2000" "mov dx, 0x10"
        "mov cx, 3" "rep outsb"
        "mov cx, 2" "rep outsw"
        "out 0xf4, al"
    );
    let Some(mut guest) = TinyGuest::real_mode(code) else {
        return;
    };
    guest.put(0x2000, &[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(guest.run(), ENDED);
    let elements = [vec![1], vec![2], vec![3], vec![4, 5], vec![6, 7]];
    assert_eq!(
        guest.ports.take(),
        elements.map(|data| Access::Write(0x10, data))
    );
}

#[test]
fn string_reads_are_made_element_by_element() {
    let code = guest_code!("code16":
        "cld" "mov di, 0x2000" "mov dx, 0x12" "mov cx, 3" "rep insw"
        "out 0xf4, al"
    );
    let Some(mut guest) = TinyGuest::real_mode(code) else {
        return;
    };
    assert_eq!(guest.run(), ENDED);
    assert_eq!(guest.ports.take(), vec![Access::Read(0x12, 2); 3]);
    assert_eq!(guest.quadword(0x2000), 0x6655_4433_2211);
}

#[test]
fn memory_accesses_reach_the_bus_in_their_own_width() {
    let code = guest_code!("code64":
        "mov ebx, 0x80000" "mov rax, 0x8877665544332211"
        "mov [rbx], al" "mov [rbx + 2], ax" "mov [rbx + 4], eax" "mov [rbx + 8], rax"
        "mov al, [rbx + 16]" "mov ax, [rbx + 18]" "mov eax, [rbx + 20]" "mov rax, [rbx + 24]"
        "out 0xf4, al"
    );
    let Some(mut guest) = TinyGuest::long_mode(code) else {
        return;
    };
    assert_eq!(guest.run(), ENDED);
    let data = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
    let write = |offset, len: usize| Access::Write(offset, data[..len].to_vec());
    let expected = [
        write(0, 1),
        write(2, 2),
        write(4, 4),
        write(8, 8),
        Access::Read(16, 1),
        Access::Read(18, 2),
        Access::Read(20, 4),
        Access::Read(24, 8),
    ];
    assert_eq!(guest.device.take(), expected);
    assert_eq!(guest.fd().get_regs().unwrap().rax, 0xffee_ddcc_bbaa_9988);
}

#[test]
fn what_nobody_answers_reads_as_ones_and_writes_go_nowhere() {
    let code = guest_code!("code64":
        "mov ebx, 0x90000" "mov rax, 0" "mov [rbx], rax" "mov rax, [rbx]" "mov [0x2000], rax"
        "mov eax, 0" "out 0xf5, eax" "in eax, 0xf5" "mov [0x2008], rax"
        "out 0xf4, al"
    );
    let Some(mut guest) = TinyGuest::long_mode(code) else {
        return;
    };
    assert_eq!(guest.run(), ENDED);
    assert_eq!(guest.quadword(0x2000), u64::MAX);
    assert_eq!(guest.quadword(0x2008), 0xffff_ffff);
}

#[test]
fn each_action_of_a_device_stops_the_cpu_as_such() {
    for action in [Action::Reset, Action::PowerOff, Action::Panicked] {
        let code = guest_code!("code16":
            "out 0xf0, al" "mov ax, 0x8100" "mov ds, ax" "mov [0], al" "out 0xf4, al"
        );
        let Some(mut guest) = TinyGuest::real_mode(code) else {
            return;
        };
        let device = Arc::new(OnAccess(move || action));
        guest.shared.io.insert(0xf0, 1, device.clone()).unwrap();
        guest.shared.memory.insert(0x8_1000, 1, device).unwrap();
        assert_eq!(guest.run(), Stop::Guest(action), "by port");
        assert_eq!(guest.run(), Stop::Guest(action), "by memory");
        assert_eq!(guest.run(), ENDED);
    }
}

#[test]
fn a_string_write_stops_the_cpu_whichever_element_asked() {
    let code = guest_code!("code16": "cld" "mov dx, 0xf0" "mov cx, 5" "rep outsb" "out 0xf4, al");
    let Some(mut guest) = TinyGuest::real_mode(code) else {
        return;
    };
    let writes = AtomicUsize::new(0);
    let third = OnAccess(move || match writes.fetch_add(1, Ordering::SeqCst) {
        2 => Action::Reset,
        _ => Action::None,
    });
    guest.shared.io.insert(0xf0, 1, Arc::new(third)).unwrap();
    assert_eq!(guest.run(), Stop::Guest(Action::Reset));
}

#[test]
fn a_triple_fault_is_told_from_other_ends() {
    // An interrupt descriptor table without a single entry: the exception has no handler, nor has that, nor that.
    let code = guest_code!("code64": "ud2");
    let Some(mut guest) = TinyGuest::long_mode(code) else {
        return;
    };
    assert!(matches!(guest.run(), Stop::TripleFault(Some(_))));
}

#[test]
fn a_cpu_that_spins_stops_when_told() {
    let code = guest_code!("code16": "4: inc dword ptr [0x3000]" "jmp 4b");
    let Some(mut guest) = TinyGuest::real_mode(code) else {
        return;
    };
    let started = guest.start();
    started.wait_until_it_counts();
    stops_promptly(started);
}

#[test]
fn a_cpu_that_sleeps_in_hlt_stops_when_told() {
    let code = guest_code!("code16": "inc dword ptr [0x3000]" "4: sti" "hlt" "jmp 4b");
    let Some(mut guest) = TinyGuest::real_mode(code) else {
        return;
    };
    let started = guest.start();
    started.wait_until_it_counts();
    // Its HLT is the next instruction but one.
    thread::sleep(std::time::Duration::from_millis(20));
    stops_promptly(started);
}

fn stops_promptly(started: Started<'_>) {
    let told = Instant::now();
    assert_eq!(started.stop(), Stop::Asked);
    assert!(told.elapsed().as_secs() < 2, "{:?}", told.elapsed());
}

#[test]
fn a_thousand_starts_and_stops_never_hang() {
    let code = guest_code!("code16": "4: inc eax" "jmp 4b");
    let Some(mut guest) = TinyGuest::real_mode(code) else {
        return;
    };
    for round in 0..1000_u32 {
        let started = guest.start();
        // From before the thread looks at `stop` to well inside the guest.
        for _ in 0..(round * 7919) % 40_000 {
            hint::spin_loop();
        }
        assert_eq!(started.stop(), Stop::Asked, "round {round}");
    }
}

#[test]
fn a_kick_that_comes_outside_the_guest_still_takes_it_out() {
    let code = guest_code!("code16": "out 0xf0, al" "out 0xf4, al");
    let Some(mut guest) = TinyGuest::real_mode(code) else {
        return;
    };
    // On the CPU's own thread, between two KVM_RUN: what the signal itself interrupts is nothing.
    let kick = OnAccess(|| {
        // SAFETY: the signal has a handler.
        unsafe { libc::raise(kick_signal()) };
        Action::None
    });
    guest.shared.io.insert(0xf0, 1, Arc::new(kick)).unwrap();
    assert_eq!(guest.run(), ENDED);
    assert_eq!(guest.counters.report().kick, 1);
}

#[test]
fn a_cpu_told_to_stop_finishes_the_instruction_that_a_device_answered() {
    let code = guest_code!("code64":
        "mov ebx, 0x81000" "mov eax, [rbx]" "mov [0x2000], rax" "out 0xf4, al"
    );
    let Some(mut guest) = TinyGuest::long_mode(code) else {
        return;
    };
    let shared = guest.shared.clone();
    let stopping = OnAccess(move || {
        shared.stop.store(true, Ordering::SeqCst);
        Action::None
    });
    let memory = guest.shared.memory.clone();
    memory.insert(0x8_1000, 0x1000, Arc::new(stopping)).unwrap();
    assert_eq!(guest.run(), Stop::Asked);
    assert_eq!(guest.fd().get_regs().unwrap().rax, 0x5a5a_5a5a);
    assert_eq!(guest.quadword(0x2000), 0);
    assert_eq!(guest.run(), ENDED);
    assert_eq!(guest.quadword(0x2000), 0x5a5a_5a5a);
}

#[test]
fn exits_are_counted_by_their_kind() {
    let code = guest_code!("code16":
        "mov ax, 0x8000" "mov ds, ax"
        "in al, 0x10"
        "out 0x10, al" "out 0x10, al"
        "mov al, [0]" "mov al, [0]" "mov al, [0]"
        "mov [0], al" "mov [0], al" "mov [0], al" "mov [0], al"
        "4: inc dword ptr cs:[0x3000]" "jmp 4b"
    );
    let Some(mut guest) = TinyGuest::real_mode(code) else {
        return;
    };
    for runs in 1..3 {
        let started = guest.start();
        started.wait_until_it_counts();
        assert_eq!(started.stop(), Stop::Asked);
        let exits = guest.counters.report();
        assert_eq!((exits.io_in, exits.io_out), (1, 2));
        assert_eq!((exits.mmio_read, exits.mmio_write), (3, 4));
        assert_eq!((exits.kick, exits.total), (runs, 10 + runs));
    }
}

/// A page of a file, mapped. To touch it once the file is shorter is a SIGBUS, as with a BAR whose device sleeps.
struct FilePage {
    file: File,
    address: usize,
}

// SAFETY: the page is mapped by `new`, at an address of the kernel's choice, and unmapped by nobody; no reference points to it.
unsafe impl HostMapping for FilePage {
    fn address(&self) -> usize {
        self.address
    }

    fn len(&self) -> usize {
        4096
    }
}

impl FilePage {
    fn new() -> Arc<Self> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let (fd, access) = (file.as_raw_fd(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping where the kernel likes; replaces nothing.
        let page = unsafe { libc::mmap(ptr::null_mut(), 4096, access, libc::MAP_SHARED, fd, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        let address = page.addr();
        Arc::new(Self { file, address })
    }

    fn take_away(&self) {
        self.file.set_len(0).unwrap();
    }
}

/// A guest that reads a byte at `DEVICE` and ends.
fn reading() -> Option<TinyGuest> {
    TinyGuest::real_mode(guest_code!("code16":
        "mov ax, 0x8000" "mov ds, ax" "mov al, [0]" "out 0xf4, al"
    ))
}

#[test]
fn a_mapping_that_is_not_there_is_withdrawn_and_the_guest_goes_on() {
    let Some(mut guest) = reading() else { return };
    let page = FilePage::new();
    let slot = guest.slots.map(DEVICE, page.clone()).unwrap();
    page.take_away();
    let (slots, asked) = (guest.slots.clone(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    guest.shared = Arc::new(
        Shared::new(guest.shared.io.clone(), guest.shared.memory.clone()).withdrawing(move || {
            slots.unmap(slot);
            count.fetch_add(1, Ordering::SeqCst) == 0
        }),
    );
    assert_eq!(guest.run(), ENDED);
    if asked.load(Ordering::SeqCst) == 0 {
        return skipped("this KVM does not notice that a mapped page is gone");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(guest.device.take(), [Access::Read(0, 1)]);
}

#[test]
fn a_mapping_that_is_not_there_and_is_nobodys_ends_the_guest_with_a_reason() {
    let Some(mut guest) = reading() else { return };
    let page = FilePage::new();
    guest.slots.map(DEVICE, page.clone()).unwrap();
    page.take_away();
    let how = match guest.run() {
        Stop::Failed(how) => how,
        stop => {
            assert_eq!(stop, ENDED);
            return skipped("this KVM does not notice that a mapped page is gone");
        }
    };
    assert!(how.starts_with("memory that is mapped for it"), "{how}");
}
