//! The driver that every displaced device had: `/run/viaduct/bindings.json`, written before the first change.
//!
//! One lock serialises every viaduct that changes bindings on the host; readers need none, the file is replaced as a whole.
//! It is in /run because bindings do not outlive the boot either.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use devices::pci::Bdf;
use serde::{Deserialize, Serialize};

use super::{Host, sriov::ChangedMac, sysfs};

/// The journal cannot be kept, so nothing is changed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be read or written.
    #[error("cannot write down the previous drivers in {}: {cause}{}", file.display(), privilege(cause))]
    Io {
        /// Which file.
        file: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// Somebody else wrote it.
    #[error("{} is not a journal of this version of viaduct: {why}\n  put the drivers back by hand, then:  rm {0}", file.display())]
    Foreign {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another viaduct has had the lock for too long.
    #[error(
        "process {pid} has been binding devices for {seconds} s and does not end\n  see what it waits for:  cat /proc/{pid}/stack"
    )]
    Locked {
        /// Which process.
        pid: String,
        /// How long we waited.
        seconds: u64,
    },
}

impl JournalError {
    /// This process may not keep one, nor, then, bind anything.
    pub(super) fn is_no_right(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied)
    }
}

fn privilege(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => {
            "\n  binding devices needs root, once:  sudo viaduct bind DEV"
        }
        _ => {
            "\n  nothing is changed until it can be written: look at  df /run  and  mount | grep /run"
        }
    }
}

/// What a device was before it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The driver that had it.
    pub(super) driver: Option<String>,
    /// The driver it was reserved for.
    pub(super) driver_override: Option<String>,
    /// The module that driver is in.
    #[serde(default)]
    pub(super) module: Option<String>,
    /// The driver that it is on the way to by somebody's wish, where it stays once it is there.
    #[serde(default)]
    pub(super) to: Option<String>,
    /// The address that it had, a virtual function, before its guest got another.
    #[serde(default)]
    pub(super) mac: Option<ChangedMac>,
    /// The process that gives it back when it ends; none after `viaduct bind`.
    pub(super) owner: Option<Owner>,
}

/// A process, told apart from a later one of the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) pid: u32,
    /// When it started, in clock ticks since boot.
    started: u64,
    /// What it calls its guest.
    pub(super) guest: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Contents {
    version: u32,
    devices: BTreeMap<String, Entry>,
}

const VERSION: u32 = 1;

/// The journal, locked. Every change is in the file when the call returns.
pub(super) struct Journal<'a> {
    host: &'a Host,
    entries: BTreeMap<Bdf, Entry>,
    lock: File,
}

impl<'a> Journal<'a> {
    /// Waits until no other viaduct changes bindings.
    pub(super) fn lock(host: &'a Host) -> Result<Self, JournalError> {
        let lock = host.lock_bindings()?;
        let entries = host.journal_entries()?;
        let shared = lock.try_clone().map_err(|cause| JournalError::Io {
            file: host.journal_file(),
            cause,
        })?;
        host.begin_session(shared);
        Ok(Self {
            host,
            entries,
            lock,
        })
    }

    pub(super) fn get(&self, device: Bdf) -> Option<&Entry> {
        self.entries.get(&device)
    }

    pub(super) fn entries(&self) -> Vec<(Bdf, Entry)> {
        self.entries.clone().into_iter().collect()
    }

    pub(super) fn record(&mut self, device: Bdf, entry: Entry) -> Result<(), JournalError> {
        self.entries.insert(device, entry);
        self.store()
    }

    pub(super) fn forget(&mut self, device: Bdf) -> Result<(), JournalError> {
        match self.entries.remove(&device) {
            Some(_) => self.store(),
            None => Ok(()),
        }
    }

    fn store(&self) -> Result<(), JournalError> {
        let contents = Contents {
            version: VERSION,
            devices: self
                .entries
                .iter()
                .map(|(device, entry)| (device.to_string(), entry.clone()))
                .collect(),
        };
        let file = self.host.journal_file();
        let write = || {
            let text = serde_json::to_vec_pretty(&contents)?;
            self.host.changes.replace(&file, &text)
        };
        write().map_err(|cause| JournalError::Io {
            file: file.clone(),
            cause,
        })
    }
}

impl Drop for Journal<'_> {
    fn drop(&mut self) {
        self.host.end_session();
        // Closing it would not do, where a process was left behind that holds it as well.
        let _closing_it_does_then = self.lock.unlock();
    }
}

impl Host {
    fn journal_file(&self) -> PathBuf {
        self.roots.run.join("viaduct/bindings.json")
    }

    pub(super) fn journal_entries(&self) -> Result<BTreeMap<Bdf, Entry>, JournalError> {
        let file = self.journal_file();
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(cause) => return Err(JournalError::Io { file, cause }),
        };
        let foreign = |why: String| JournalError::Foreign {
            file: file.clone(),
            why,
        };
        let contents: Contents =
            serde_json::from_slice(&text).map_err(|error| foreign(error.to_string()))?;
        if contents.version != VERSION {
            return Err(foreign(format!("its version is {}", contents.version)));
        }
        let parse = |(name, entry): (String, Entry)| {
            let device = name
                .parse()
                .map_err(|_| foreign(format!("'{name}' in it is no device")))?;
            Ok((device, entry))
        };
        contents.devices.into_iter().map(parse).collect()
    }

    /// The lock's file says who has it, for whoever waits.
    fn lock_bindings(&self) -> Result<File, JournalError> {
        let path = self.roots.run.join("viaduct/lock");
        let io = |cause| JournalError::Io {
            file: path.clone(),
            cause,
        };
        fs::create_dir_all(self.roots.run.join("viaduct")).map_err(io)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(cause)) => return Err(io(cause)),
                Err(TryLockError::WouldBlock) if start.elapsed() < self.patience => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    let mut pid = String::new();
                    let _unknown_is_empty = file.read_to_string(&mut pid);
                    let (pid, seconds) = (pid.trim().to_owned(), self.patience.as_secs());
                    return Err(JournalError::Locked { pid, seconds });
                }
            }
        }
        // Ten columns, so that a shorter number overwrites a longer one.
        let pid = format!("{:<10}", std::process::id());
        file.write_all(pid.as_bytes()).map_err(io)?;
        Ok(file)
    }

    /// This process, as an owner.
    pub(super) fn this_process(&self, guest: Option<String>) -> Owner {
        let pid = std::process::id();
        // Without procfs nobody can tell whether an owner lives; 0 is a time at which no process starts.
        let started = self.started(pid).unwrap_or(0);
        Owner {
            pid,
            started,
            guest,
        }
    }

    pub(super) fn is_alive(&self, owner: &Owner) -> bool {
        self.started(owner.pid) == Some(owner.started)
    }

    /// Field 22 of /proc/PID/stat; the second, the command in parentheses, may have anything in it.
    fn started(&self, pid: u32) -> Option<u64> {
        let stat = sysfs::text(&self.roots.proc.join(pid.to_string()).join("stat"))?;
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        // A zombie has ended as far as its devices go.
        let state = fields.next()?;
        (state != "Z" && state != "X")
            .then(|| fields.nth(18)?.parse().ok())
            .flatten()
    }

    /// What the process calls its guest, if it is a viaduct that took devices.
    pub(super) fn guest_of(&self, pid: u32) -> Option<String> {
        let owners = self.journal_entries().ok()?;
        let mut owners = owners.into_values().filter_map(|entry| entry.owner);
        owners
            .find(|owner| owner.pid == pid && self.is_alive(owner))?
            .guest
    }
}
