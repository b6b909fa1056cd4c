//! Accidents of emulation: what the emulator does to L1 or to a guest, and the evidence that it did. A scenario that fails beside
//! such evidence runs once more; one that fails without it has failed.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::sys;

/// What the emulator did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accident {
    /// It dropped an interrupt of the timer of one of L1's processors, which does nothing from then on.
    LostTimer,
    /// It has a processor of the guest stand still.
    GuestStall,
    /// It has all processors of the guest stand still, which then cannot report anything. The weakest evidence: the guest prints
    /// nothing any more, while its VMM still ends in good order.
    Silence,
}

impl Accident {
    /// Reads L1's kernel log. The kernel finds a timer long overdue some 20 s later (kernel/rcu/tree_stall.h).
    pub(crate) fn in_kernel_log(text: &str) -> Option<Self> {
        text.contains("kthread timer wakeup didn't happen for")
            .then_some(Self::LostTimer)
    }

    /// Reads a guest's console for its kernel's own report: RCU's (kernel/rcu/tree_stall.h), or the watchdog's (kernel/watchdog.c).
    pub(crate) fn in_console(text: &str) -> Option<Self> {
        let is_report = |line: &str| {
            line.contains("rcu: INFO: ") && line.contains("stall")
                || line.contains("watchdog: BUG: soft lockup")
        };
        text.lines().any(is_report).then_some(Self::GuestStall)
    }
}

impl fmt::Display for Accident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LostTimer => "the emulator lost a timer interrupt of L1",
            Self::GuestStall => "the guest's kernel reports a processor that stands still",
            Self::Silence => "the guest prints nothing any more",
        })
    }
}

/// Looks for a lost timer in what L1's kernel says on its serial port.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) serial_log: PathBuf,
    pub(crate) qemu: i32,
}

impl Watch {
    /// What the log has by now.
    pub(crate) fn seen(&self) -> Option<Accident> {
        let said = fs::read(&self.serial_log).unwrap_or_default();
        Accident::in_kernel_log(&String::from_utf8_lossy(&said))
    }

    /// Ends L1 when its timer is lost, so that a scenario does not wait for what cannot come; until `ended` is closed.
    pub(crate) fn watch(&self, ended: &Receiver<()>) {
        // QEMU writes the file, and a second more does not count beside the 20.
        while ended.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
            if self.seen().is_some() {
                sys::signal(self.qemu, libc::SIGTERM);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_what_the_guests_kernel_reports_and_nothing_else() {
        for report in [
            "[   84.2] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "[   84.2] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[   84.2] rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 0-... }",
            "[   84.2] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [modprobe:81]",
        ] {
            let console = format!("LAB-L2 init\n{report}\n");
            assert_eq!(Accident::in_console(&console), Some(Accident::GuestStall));
        }
        let quiet = "rcu: Hierarchical RCU implementation.\nrcu: INFO: nothing\neth0: no lease\n";
        assert_eq!(Accident::in_console(quiet), None);
    }

    #[test]
    fn a_lost_timer_is_what_the_hosts_kernel_reports() {
        let log = "rcu: rcu_preempt kthread timer wakeup didn't happen for 5252 jiffies! g9 f0x0 RCU_GP_WAIT_FQS(5)\n";
        assert_eq!(Accident::in_kernel_log(log), Some(Accident::LostTimer));
        assert_eq!(
            Accident::in_kernel_log("rcu: INFO: rcu_preempt detected stalls"),
            None
        );
    }
}
