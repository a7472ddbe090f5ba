//! The socket of a server in the file system: who may bind it, and its removal. Called by `server`.
//!
//! As with SPDK, an advisory lock on `<socket>.lock` says that the socket is in use. The lock dies with its process,
//! so the socket of a dead one is taken over without asking whether somebody still listens.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, chmod, flock, open};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use crate::error::strerror;
use crate::limits::LISTEN_BACKLOG;
use crate::server::ServerError;

/// A lock on the path of a socket, and the socket once it is bound. Dropping it removes both files.
#[derive(Debug)]
pub(crate) struct SocketLock {
    socket: PathBuf,
    lock: PathBuf,
    /// Holds the lock.
    _file: OwnedFd,
}

impl SocketLock {
    pub(crate) fn acquire(socket: &Path) -> Result<SocketLock, ServerError> {
        // Before the first file is made.
        address(socket)?;
        let mut lock = OsString::from(socket);
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        let failed = |errno: rustix::io::Errno| ServerError::Lock {
            path: lock.clone(),
            reason: strerror(errno.raw_os_error()),
        };
        loop {
            let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = open(&lock, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(ServerError::InUse { path: socket.to_owned() });
                }
                Err(errno) => return Err(failed(errno)),
            }
            // Its last holder may have removed the file between our open and our lock; a lock on a file that no path
            // leads to protects nothing.
            let opened = rustix::fs::fstat(&file).map_err(failed)?;
            let found = fs::symlink_metadata(&lock);
            if found.is_ok_and(|found| (found.dev(), found.ino()) == (opened.st_dev, opened.st_ino)) {
                return Ok(SocketLock { socket: socket.to_owned(), lock, _file: file });
            }
        }
    }

    /// Binds and listens. No client can connect before the socket has its mode: that takes `listen`.
    pub(crate) fn listen(&self, mode: u32) -> Result<UnixListener, ServerError> {
        let path = &self.socket;
        let failed = |errno: rustix::io::Errno| ServerError::Listen {
            path: path.clone(),
            reason: strerror(errno.raw_os_error()),
        };
        self.remove_stale()?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
        bind(&socket, &address(path)?).map_err(failed)?;
        chmod(path, Mode::from_raw_mode(mode)).map_err(failed)?;
        listen(&socket, LISTEN_BACKLOG).map_err(failed)?;
        Ok(UnixListener::from(socket))
    }

    /// Removes what a dead process left behind, if it is a socket. SPDK removes whatever the path names.
    fn remove_stale(&self) -> Result<(), ServerError> {
        let path = &self.socket;
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                tracing::info!(path = %path.display(), "removing the RPC socket of a dead process");
                fs::remove_file(path)
                    .map_err(|error| ServerError::Listen { path: path.clone(), reason: text(&error) })
            }
            Ok(_) => Err(ServerError::NotASocket { path: path.clone() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(ServerError::Listen { path: path.clone(), reason: text(&error) }),
        }
    }
}

impl Drop for SocketLock {
    fn drop(&mut self) {
        // Socket before lock, and both before the lock is released: nobody can have made them anew.
        if fs::symlink_metadata(&self.socket).is_ok_and(|found| found.file_type().is_socket()) {
            remove(&self.socket);
        }
        remove(&self.lock);
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove");
    }
}

fn text(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), strerror)
}

/// Bytes of a path in a socket address (unix(7)). The kernel takes one more, without the closing NUL, which some
/// clients cannot then connect to.
const PATH_BYTES_MAX: usize = 107;

/// The address of a path, if it is one that every client can use.
fn address(path: &Path) -> Result<SocketAddrUnix, ServerError> {
    if path.as_os_str().is_empty() {
        return Err(ServerError::EmptyPath);
    }
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(ServerError::PathTooLong { path: path.to_owned() });
    }
    let failed = |errno: rustix::io::Errno| ServerError::Listen {
        path: path.to_owned(),
        reason: strerror(errno.raw_os_error()),
    };
    SocketAddrUnix::new(path).map_err(failed)
}
