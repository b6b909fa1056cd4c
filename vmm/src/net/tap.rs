//! A tap of the host's: an interface whose packets a process gives and takes, through one descriptor for each of its queues.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use devices::virtio::net::{Offloads, Wire};
use vm_memory::VolatileSlice;

use super::{
    holder::Holder,
    ioctl::{self, Interface},
};

const DEVICE: &str = "/dev/net/tun";
/// Length of the header before each packet: virtio's, since version 1 (virtio 1.2 §5.1.6).
const HEADER_LEN: i32 = 12;
/// Flags of an interface that can be a guest's: packets with their Ethernet header and virtio's, and nothing else before them.
const TAP: u16 = 0x0002;
const NO_PI: u16 = 0x1000;
const VNET_HDR: u16 = 0x4000;
const MULTI_QUEUE: u16 = 0x0100;
/// In an interface's flags: it is switched on (netdevice(7)).
const UP: u32 = 1;

/// A tap cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel's device for all taps cannot be opened.
    #[error("{DEVICE} cannot be opened\n  {advice}")]
    Device {
        /// What the kernel said.
        source: io::Error,
        /// What to do about it.
        advice: &'static str,
    },
    /// The interface is of another kind.
    #[error(
        "{0} is no tap, and packets of other interfaces are the host's own\n  make one, and a bridge of both:  ip tuntap add tap0 mode tap"
    )]
    Kind(String),
    /// Somebody has it.
    #[error(
        "{name} is in use by {holder}\n  end that first, or make one for each guest:  ip tuntap add tap1 mode tap"
    )]
    Busy {
        /// Which.
        name: String,
        /// Who has it.
        holder: Holder,
    },
    /// It is not ours.
    #[error(
        "{0} may not be used by this user\n  make it this user's:  sudo ip tuntap add {0} mode tap user $USER (after ip link del {0}, if it is there)"
    )]
    NotPermitted(String, #[source] io::Error),
    /// It has one queue.
    #[error(
        "{0} has one queue, and queues={1} are wanted\n  make it anew:  ip link del {0}; ip tuntap add {0} mode tap multi_queue"
    )]
    OneQueue(String, usize),
    /// A descriptor is none of a tap.
    #[error(
        "fd={0} is no open queue of a tap\n  have whoever starts viaduct open {DEVICE}, TUNSETIFF it and leave it open"
    )]
    Descriptor(RawFd, #[source] io::Error),
    /// A descriptor is of a tap of the wrong kind.
    #[error(
        "fd={0} is a queue of {1} without IFF_TAP, IFF_NO_PI and IFF_VNET_HDR\n  set these three when opening it"
    )]
    Flags(RawFd, String),
    /// Anything else.
    #[error("{0} does not become a guest's interface\n  see what it is:  ip -d link show {0}")]
    SetUp(String, #[source] io::Error),
}

/// A tap that is open.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<Arc<Queue>>,
}

/// One queue of a tap.
#[derive(Debug)]
pub struct Queue {
    file: File,
    /// Whether the tap has others, so that this one can leave.
    is_one_of_many: bool,
}

impl Tap {
    /// Opens a tap by its name, if it is there.
    pub fn find(name: &str, queues: usize) -> Result<Option<Self>, TapError> {
        let Some(flags) = existing(name)? else {
            return Ok(None);
        };
        let has_many = flags & MULTI_QUEUE != 0;
        if flags & TAP == 0 {
            return Err(TapError::Kind(name.to_owned()));
        }
        if queues > 1 && !has_many {
            return Err(TapError::OneQueue(name.to_owned(), queues));
        }
        // The kernel lets any number of processes share one with several queues. It has a carrier while any has.
        if has_many && attribute(name, "carrier").as_deref() == Some("1") {
            return Err(busy(name));
        }
        if !is_up(name) {
            log::warn!(
                "{name} is down: no packets go through it\n  switch it on:  ip link set {name} up"
            );
        }
        Self::open(name, queues, has_many).map(Some)
    }

    /// Whether this process may make one, which takes CAP_NET_ADMIN (tun_set_iff in drivers/net/tun.c).
    pub fn check_make(name: &str) -> Result<(), TapError> {
        tun()?;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        match may_administer(&status) {
            true => Ok(()),
            false => {
                let error = io::Error::from_raw_os_error(libc::EPERM);
                Err(TapError::NotPermitted(name.to_owned(), error))
            }
        }
    }

    /// What the host calls the one that a descriptor is a queue of.
    pub fn name_of(fd: RawFd) -> Option<String> {
        Some(ioctl::interface(fd).ok()?.name)
    }

    /// Makes a tap that is gone when it is dropped, and switches it on.
    pub fn make(name: &str, queues: usize) -> Result<Self, TapError> {
        let tap = Self::open(name, queues, queues > 1)?;
        let up = (|| {
            let path = attribute_path(name, "flags");
            let flags = attribute(name, "flags").and_then(|text| number(&text));
            let flags = flags.ok_or(io::ErrorKind::InvalidData)?;
            fs::write(path, format!("{:#x}", flags | UP))
        })();
        up.map_err(|error| TapError::SetUp(name.to_owned(), error))?;
        log::info!("{name}: made, and switched on; it is gone when this ends");
        Ok(tap)
    }

    fn open(name: &str, queues: usize, has_many: bool) -> Result<Self, TapError> {
        let many = if has_many { MULTI_QUEUE } else { 0 };
        let interface = Interface {
            name: name.to_owned(),
            flags: TAP | NO_PI | VNET_HDR | many,
        };
        let open = || {
            let file = tun()?;
            let set_up = |error: io::Error| match error.raw_os_error() {
                Some(libc::EBUSY) => busy(name),
                Some(libc::EPERM) => TapError::NotPermitted(name.to_owned(), error),
                _ => TapError::SetUp(name.to_owned(), error),
            };
            ioctl::set_interface(&file, &interface).map_err(set_up)?;
            ioctl::set_header_len(&file, HEADER_LEN).map_err(set_up)?;
            let is_one_of_many = queues > 1;
            Ok(Arc::new(Queue {
                file,
                is_one_of_many,
            }))
        };
        Ok(Self {
            name: name.to_owned(),
            queues: (0..queues).map(|_| open()).collect::<Result<_, _>>()?,
        })
    }

    /// Takes a queue that whoever started us has left open.
    pub fn inherit(fd: RawFd) -> Result<Self, TapError> {
        let none = |error| TapError::Descriptor(fd, error);
        // The three that every process has are somebody's already.
        if fd <= libc::STDERR_FILENO {
            return Err(none(io::ErrorKind::InvalidInput.into()));
        }
        let interface = ioctl::interface(fd).map_err(none)?;
        let needed = TAP | NO_PI | VNET_HDR;
        if interface.flags & needed != needed {
            return Err(TapError::Flags(fd, interface.name));
        }
        ioctl::set_nonblocking(fd).map_err(none)?;
        // SAFETY: it is open, and a tap's, as the kernel just said. Whoever started us left it to us, and it is named once; taps of our
        // own are opened after those.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let set_up = |error| TapError::SetUp(interface.name.clone(), error);
        ioctl::set_header_len(&file, HEADER_LEN).map_err(set_up)?;
        let is_one_of_many = false;
        Ok(Self {
            name: interface.name,
            queues: vec![Arc::new(Queue {
                file,
                is_one_of_many,
            })],
        })
    }

    /// What the host calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The longest packet that it takes, without Ethernet header, if that is known: one that came by a descriptor may be of another
    /// network namespace.
    pub fn mtu(&self) -> Option<u16> {
        let mtu = attribute(&self.name, "mtu")?;
        mtu.parse().ok().filter(|mtu| *mtu >= 68)
    }

    /// Its queues.
    pub fn into_queues(self) -> Vec<Arc<Queue>> {
        self.queues
    }
}

impl Queue {
    /// What the kernel knows it by.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Wire for Queue {
    fn send(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<()> {
        ioctl::write(&self.file, pieces)
    }

    fn receive(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<usize> {
        ioctl::read(&self.file, pieces)
    }

    fn offload(&self, offloads: Offloads) -> io::Result<()> {
        let flags = [
            (offloads.checksum, libc::TUN_F_CSUM),
            (offloads.tso4, libc::TUN_F_TSO4),
            (offloads.tso6, libc::TUN_F_TSO6),
            (offloads.ecn, libc::TUN_F_TSO_ECN),
            (offloads.ufo, libc::TUN_F_UFO),
        ];
        let taken = flags.iter().filter(|(is_taken, _)| *is_taken);
        ioctl::set_offload(&self.file, taken.fold(0, |all, (_, flag)| all | flag))
    }

    fn attach(&self, is_attached: bool) -> io::Result<()> {
        if !self.is_one_of_many {
            return Ok(());
        }
        match ioctl::set_queue(&self.file, is_attached) {
            // It is so already (tun_set_queue in drivers/net/tun.c).
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }
}

fn busy(name: &str) -> TapError {
    TapError::Busy {
        name: name.to_owned(),
        holder: Holder::of(name),
    }
}

/// The flags of a tap that exists.
fn existing(name: &str) -> Result<Option<u16>, TapError> {
    if !Path::new("/sys/class/net").join(name).exists() {
        return Ok(None);
    }
    let flags = attribute(name, "tun_flags").and_then(|text| number(&text));
    let flags = flags.and_then(|flags| u16::try_from(flags).ok());
    flags.map_or_else(
        || Err(TapError::Kind(name.to_owned())),
        |flags| Ok(Some(flags)),
    )
}

fn is_up(name: &str) -> bool {
    let flags = attribute(name, "flags").and_then(|text| number(&text));
    flags.is_some_and(|flags| flags & UP != 0)
}

fn attribute_path(name: &str, attribute: &str) -> PathBuf {
    Path::new("/sys/class/net").join(name).join(attribute)
}

fn attribute(name: &str, attribute: &str) -> Option<String> {
    let text = fs::read_to_string(attribute_path(name, attribute)).ok()?;
    Some(text.trim().to_owned())
}

/// As sysfs writes flags: 0x1002.
fn number(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

/// The kernel's device for all taps.
fn tun() -> Result<File, TapError> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK);
    options.open(DEVICE).map_err(device_error)
}

/// Whether proc_pid_status(5) has CAP_NET_ADMIN, which is 12 in linux/capability.h. Where it says nothing the kernel will.
fn may_administer(status: &str) -> bool {
    let mut lines = status.lines();
    let set = lines.find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    set.is_none_or(|set| set >> 12 & 1 != 0)
}

fn device_error(source: io::Error) -> TapError {
    let advice = match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => "let users have it:  chmod 666 /dev/net/tun",
        _ => "load it:  modprobe tun",
    };
    TapError::Device { source, advice }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny_guest::skipped;

    #[test]
    fn who_may_make_one_is_in_the_effective_capabilities() {
        assert!(may_administer("CapInh:\t0\nCapEff:\t0000000000001000\n"));
        assert!(!may_administer(
            "CapPrm:\t1000\nCapEff:\t0000000000000fff\n"
        ));
        assert!(may_administer(""));
    }

    #[test]
    fn what_is_no_tap_is_told_apart_from_what_is_not_there() {
        assert!(matches!(Tap::find("lo", 1), Err(TapError::Kind(name)) if name == "lo"));
        assert!(matches!(Tap::find("no-such-tap", 1), Ok(None)));
    }

    #[test]
    fn a_descriptor_of_something_else_is_refused_and_stays_open() {
        let file = File::open("/dev/null").unwrap();
        for fd in [0, 1, 2, file.as_raw_fd(), 1 << 20] {
            let refused = Tap::inherit(fd);
            assert!(matches!(refused, Err(TapError::Descriptor(which, _)) if which == fd));
        }
        assert!(file.metadata().is_ok());
    }

    /// Packets go both ways between a tap of this process's and the kernel's own side of it.
    #[test]
    fn a_tap_that_is_made_is_up_busy_for_others_and_gone_afterwards() {
        let name = format!("vt{}", std::process::id());
        let tap = match Tap::make(&name, 1) {
            Ok(tap) => tap,
            Err(error @ (TapError::Device { .. } | TapError::NotPermitted(..))) => {
                return skipped(&error.to_string());
            }
            Err(error) => panic!("{error}"),
        };
        assert!(is_up(&name));
        assert_eq!(tap.mtu(), Some(1500));
        let own = format!("process {}", std::process::id());
        let busy = Tap::find(&name, 1).unwrap_err().to_string();
        assert!(busy.contains(&own), "{busy}");
        assert!(matches!(Tap::find(&name, 2), Err(TapError::OneQueue(_, 2))));
        drop(tap);
        assert!(matches!(Tap::find(&name, 1), Ok(None)));
    }
}
