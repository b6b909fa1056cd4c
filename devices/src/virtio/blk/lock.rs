//! One writer or many readers: no two guests may write one disk, and none may read what another writes.
//!
//! The lock is flock(2)'s: it belongs to the open file as one of `F_OFD_SETLK` does and goes with it, whatever way the process ends;
//! and /proc/locks names the process that took it, where one of the other kind has -1 (proc(5)).

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
};

/// Who has a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder(Option<(u32, String)>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some((pid, _)) if *pid == std::process::id() => write!(f, "this guest already"),
            Some((pid, name)) => write!(f, "process {pid} ({name})"),
            None => write!(f, "another process"),
        }
    }
}

/// Takes the lock for as long as `file` is open; or says who is in the way.
pub(super) fn take(file: &File, for_writing: bool) -> io::Result<Result<(), Holder>> {
    let taken = match for_writing {
        true => file.try_lock(),
        false => file.try_lock_shared(),
    };
    match taken {
        Ok(()) => Ok(Ok(())),
        Err(TryLockError::WouldBlock) => Ok(Err(holder(file))),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn holder(file: &File) -> Holder {
    let found = file.metadata().ok().and_then(|metadata| {
        let locks = fs::read_to_string("/proc/locks").ok()?;
        let pid = find(&locks, metadata.dev(), metadata.ino())?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some((pid, name.trim().to_owned()))
    });
    Holder(found)
}

/// The process that has a lock of flock's on a file, from the text of /proc/locks (proc(5)).
fn find(locks: &str, device: u64, inode: u64) -> Option<u32> {
    // As makedev(3) packs it.
    let major = device >> 8 & 0xfff | device >> 32 & !0xfff;
    let minor = device & 0xff | device >> 12 & !0xff & 0xffff_ffff;
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_flock = words.next()? == "FLOCK";
        let mut words = words.skip(2);
        let (pid, of) = (words.next()?, words.next()?);
        (is_flock && of == file).then(|| pid.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_named_and_this_process_is_this_guest() {
        let said = |holder| Holder(holder).to_string();
        let own = std::process::id();
        assert_eq!(said(Some((own, "viaduct".into()))), "this guest already");
        let other = own + 1;
        assert_eq!(
            said(Some((other, "cat".into()))),
            format!("process {other} (cat)")
        );
        assert_eq!(said(None), "another process");
    }

    #[test]
    fn device_numbers_are_taken_apart_as_makedev_puts_them_together() {
        let device = libc::makedev(0x12345, 0x6789a);
        let locks = "1: FLOCK  ADVISORY  WRITE 55 12345:6789a:7 0 EOF\n";
        assert_eq!(find(locks, device, 7), Some(55));
    }

    #[test]
    fn the_process_that_has_a_file_locked_is_found_by_device_and_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 08:01:99 0 EOF\n\
            2: FLOCK  ADVISORY  WRITE 22 08:01:98 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 44 08:01:99 0 EOF\n\
            3: FLOCK  ADVISORY  WRITE 33 08:01:99 0 EOF\n";
        assert_eq!(find(locks, 0x801, 99), Some(33));
        assert_eq!(find(locks, 0x801, 97), None);
        assert_eq!(find("", 0x801, 99), None);
    }
}
