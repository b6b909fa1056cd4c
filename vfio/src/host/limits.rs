//! The limits of this process that assigned devices run into: locked memory and open files (getrlimit(2)).
#![expect(unsafe_code, reason = "getrlimit and setrlimit are foreign calls")]

use std::{fs, io};

/// A limit is too low and this process may not raise it.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// Memory that devices reach is locked.
    #[error(
        "{need_kib} KiB of memory must be locked for the devices, and the limit of this process is {have_kib} KiB\n  \
         in this shell:            sudo prlimit --pid $$ --memlock={}\n  \
         for good:                 echo '{user} - memlock {need_kib}' >> /etc/security/limits.d/viaduct.conf, then log in again\n  \
         in a systemd unit:        LimitMEMLOCK={need_kib}K", need_kib * 1024
    )]
    Memlock {
        /// What is needed, in KiB, rounded up.
        need_kib: u64,
        /// What there is, in KiB.
        have_kib: u64,
        /// Whose limit it is.
        user: String,
    },
    /// Each interrupt of a device is an open file.
    #[error(
        "{need} files must be open for the devices' interrupts, and the limit of this process is {have}\n  \
         in this shell:            sudo prlimit --pid $$ --nofile={need}\n  \
         for good:                 echo '{user} - nofile {need}' >> /etc/security/limits.d/viaduct.conf, then log in again\n  \
         in a systemd unit:        LimitNOFILE={need}"
    )]
    Nofile {
        /// What is needed.
        need: u64,
        /// What there is.
        have: u64,
        /// Whose limit it is.
        user: String,
    },
    /// The kernel does not tell.
    #[error("cannot read the limits of this process: {0}")]
    Unknown(io::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    soft: u64,
    hard: u64,
}

/// Makes sure that `need_bytes` may be locked: guest RAM once, for each container that it is mapped in.
pub fn allow_locked(need_bytes: u64) -> Result<(), LimitError> {
    let have = get(libc::RLIMIT_MEMLOCK)?;
    if raise(libc::RLIMIT_MEMLOCK, have, need_bytes) || locks_without_limit() {
        return Ok(());
    }
    Err(LimitError::Memlock {
        need_kib: need_bytes.div_ceil(1024),
        have_kib: have.hard / 1024,
        user: user(),
    })
}

/// What this process may lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locked {
    /// What it has locked already, in KiB.
    pub now_kib: u64,
    /// How much it may; none where nothing limits it.
    pub limit_kib: Option<u64>,
}

/// What this process may lock, and has locked (`VmLck`, which counts what is mapped through VFIO's container, too).
pub fn locked() -> Locked {
    let limit = get(libc::RLIMIT_MEMLOCK).ok().map(|limit| limit.soft);
    let limit = limit.filter(|&limit| limit != libc::RLIM_INFINITY && !locks_without_limit());
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Locked {
        now_kib: locked_kib(&status).unwrap_or(0),
        limit_kib: limit.map(|bytes| bytes / 1024),
    }
}

fn locked_kib(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmLck:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Makes sure that `need` files may be open, and raises the limit to the highest allowed.
pub fn allow_open_files(need: u64) -> Result<(), LimitError> {
    let have = get(libc::RLIMIT_NOFILE)?;
    if raise(libc::RLIMIT_NOFILE, have, need.max(have.hard)) {
        return Ok(());
    }
    Err(LimitError::Nofile {
        need,
        have: have.hard,
        user: user(),
    })
}

/// The limit to set so that `need` is allowed; none where it is already. Never lowers either of the two.
fn raised(have: Limit, need: u64) -> Option<Limit> {
    (have.soft < need).then(|| Limit {
        soft: need,
        hard: have.hard.max(need),
    })
}

fn raise(resource: libc::__rlimit_resource_t, have: Limit, need: u64) -> bool {
    raised(have, need).is_none_or(|limit| set(resource, limit))
}

fn get(resource: libc::__rlimit_resource_t) -> Result<Limit, LimitError> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a live rlimit that the call fills.
    let result = unsafe { libc::getrlimit(resource, &raw mut limit) };
    if result != 0 {
        return Err(LimitError::Unknown(io::Error::last_os_error()));
    }
    Ok(Limit {
        soft: limit.rlim_cur,
        hard: limit.rlim_max,
    })
}

fn set(resource: libc::__rlimit_resource_t, limit: Limit) -> bool {
    let limit = libc::rlimit {
        rlim_cur: limit.soft,
        rlim_max: limit.hard,
    };
    // SAFETY: `limit` is a live rlimit that the call only reads.
    unsafe { libc::setrlimit(resource, &raw const limit) == 0 }
}

/// CAP_IPC_LOCK, bit 14 of linux/capability.h: the limit does not count (capabilities(7)).
fn locks_without_limit() -> bool {
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_capabilities(&status).is_some_and(|capabilities| capabilities & CAP_IPC_LOCK != 0)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn user() -> String {
    std::env::var("USER").unwrap_or_else(|_| "*".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_raised_as_far_as_needed_and_never_lowered() {
        let have = Limit { soft: 10, hard: 20 };
        assert_eq!(raised(have, 10), None);
        assert_eq!(raised(have, 15), Some(Limit { soft: 15, hard: 20 }));
        assert_eq!(raised(have, 30), Some(Limit { soft: 30, hard: 30 }));
        let endless = Limit {
            soft: libc::RLIM_INFINITY,
            hard: libc::RLIM_INFINITY,
        };
        assert_eq!(raised(endless, 1 << 40), None);
    }

    #[test]
    fn the_soft_limit_of_open_files_goes_up_to_the_hard_one() {
        let have = get(libc::RLIMIT_NOFILE).unwrap();
        allow_open_files(16).unwrap();
        let now = get(libc::RLIMIT_NOFILE).unwrap();
        assert_eq!((now.soft, now.hard), (have.hard, have.hard));
    }

    #[test]
    fn the_error_names_the_amount_in_the_units_of_each_fix() {
        let error = LimitError::Memlock {
            need_kib: 524_288,
            have_kib: 64,
            user: "ada".into(),
        };
        let text = error.to_string();
        assert!(text.starts_with("524288 KiB of memory must be locked"));
        assert!(text.contains(
            "is 64 KiB\n  in this shell:            sudo prlimit --pid $$ --memlock=536870912\n"
        ));
        assert!(text.contains("'ada - memlock 524288'"));
        assert!(text.ends_with("LimitMEMLOCK=524288K"));
    }

    #[test]
    fn what_is_locked_is_read_in_kib() {
        let status = "VmPeak:\t  5 kB\nVmLck:\t  2048 kB\nVmPin:\t 7 kB\n";
        assert_eq!(locked_kib(status), Some(2048));
        assert_eq!(locked_kib("Name:\tx\n"), None);
    }

    #[test]
    fn capabilities_are_read_from_the_line_of_the_effective_ones() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000004000\n";
        assert_eq!(effective_capabilities(status), Some(1 << 14));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }
}
