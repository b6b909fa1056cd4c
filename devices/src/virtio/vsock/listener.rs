//! The host's side as Unix sockets, named as Firecracker has it: programs of the host's connect to `PATH` and say `CONNECT PORT`; what the
//! guest wants from the host's port `N` is at `PATH_N`.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd, RawFd},
        unix::{
            fs::FileTypeExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// The most bytes that a Unix socket's name can have, its end not counted: `sun_path` in unix(7).
const LONGEST_NAME: usize = 107;
/// What the longest port adds to a name.
const LONGEST_PORT: &str = "_4294967295";

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Its name is too long.
    #[error("{} and a port make a name that is too long for a socket\n  name it with {most} bytes at most", path.display())]
    Long {
        /// What was asked for.
        path: PathBuf,
        /// The most bytes that there can be.
        most: usize,
    },
    /// Something is there, and somebody's.
    #[error("{} is there already, and no socket that was left behind\n  name another socket for this guest", .0.display())]
    InUse(PathBuf),
    /// It cannot be made there.
    #[error("{}\n  name a socket in a folder that can be written, which is not there yet", path.display())]
    Bind {
        /// What was asked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The socket that programs of the host's connect to. It goes when this is dropped.
pub(super) struct Listener {
    path: PathBuf,
    socket: UnixListener,
}

impl Listener {
    pub(super) fn bind(path: &Path) -> Result<Self, SocketError> {
        let path = path.to_owned();
        let most = LONGEST_NAME - LONGEST_PORT.len();
        if path.as_os_str().len() > most {
            return Err(SocketError::Long { path, most });
        }
        let bound = UnixListener::bind(&path).or_else(|error| match error.kind() {
            ErrorKind::AddrInUse => Self::replace(&path),
            _ => Err(error),
        });
        let set_up = bound.and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        match set_up {
            Ok(socket) => Ok(Self { path, socket }),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Err(SocketError::InUse(path)),
            Err(source) => Err(SocketError::Bind { path, source }),
        }
    }

    /// A socket that nobody listens to is what a killed process left. Anything else is not ours to remove.
    fn replace(path: &Path) -> io::Result<UnixListener> {
        // A file of another type refuses connections as well.
        let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
        match UnixStream::connect(path) {
            Err(error) if is_socket && error.kind() == ErrorKind::ConnectionRefused => {
                fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            _ => Err(ErrorKind::AddrInUse.into()),
        }
    }

    /// The next program that has connected, if one has.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(stream))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Connects to whoever serves the host's port; an error when nobody does, or not at once: the guest must not have us wait.
    pub(super) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(&*path)?)?;
        Ok(socket.into())
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("{} stays: {error}", self.path.display());
        }
    }
}
