//! The socket of an endpoint in the file system: bound by its owner, removed with the endpoint.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::Mode,
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with},
};

/// Clients that may wait for the one that is served.
pub const BACKLOG: i32 = 16;

/// To whom a socket belongs; nobody named means the process's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOwner {
    /// User id.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
}

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path does not fit into a socket address (108 bytes with its end).
    #[error("socket path {0} is too long")]
    TooLong(PathBuf),
    /// Somebody listens there.
    #[error("socket {0} is in use by a running process")]
    InUse(PathBuf),
    /// There is a file that is no socket.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The directory is missing, not writable, and so on.
    #[error("socket {path} cannot be created: {source}")]
    Create {
        /// The path.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
}

/// A bound, listening socket.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    removed: bool,
}

impl Listener {
    /// Binds and listens, with file mode `mode`. A socket that a dead process left behind is taken over.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(path: &Path, mode: u32) -> Result<Self, BindError> {
        Self::bind_for(path, mode, SocketOwner::default())
    }

    /// As [`Self::bind`], for somebody else. Nobody can connect before mode and owner are set.
    ///
    /// # Errors
    /// See [`BindError`]; giving a socket away takes privileges.
    pub fn bind_for(path: &Path, mode: u32, owner: SocketOwner) -> Result<Self, BindError> {
        let create = |errno: Errno| BindError::Create { path: path.to_owned(), source: errno.into() };
        let address = SocketAddrUnix::new(path).map_err(|_too_long| BindError::TooLong(path.to_owned()))?;
        remove_stale(path, &address)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(create)?;
        bind(&fd, &address).map_err(create)?;
        let listener = Self { fd, path: path.to_owned(), removed: false };
        rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(create)?;
        if owner != SocketOwner::default() {
            let uid = owner.uid.map(rustix::fs::Uid::from_raw);
            let gid = owner.gid.map(rustix::fs::Gid::from_raw);
            rustix::fs::chown(path, uid, gid).map_err(create)?;
        }
        listen(&listener.fd, BACKLOG).map_err(create)?;
        Ok(listener)
    }

    /// The path it is bound to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor to accept on.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Removes the socket from the file system; nobody new can connect.
    pub fn remove(&mut self) {
        if !std::mem::replace(&mut self.removed, true)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an endpoint's socket cannot be removed");
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes a socket that nobody listens on any more.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), BindError> {
    use std::os::unix::fs::FileTypeExt;
    let create = |source: io::Error| BindError::Create { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(create(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|errno| create(errno.into()))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %path.display(), "removing the socket of a process that is gone");
            std::fs::remove_file(path).map_err(create)
        }
        Err(Errno::NOENT) => Ok(()),
        // Connected, or its backlog is full: somebody is there.
        Ok(()) | Err(Errno::AGAIN) => Err(BindError::InUse(path.to_owned())),
        Err(errno) => Err(create(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_socket_is_taken_over_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vfu.0");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

        let live = Listener::bind(&path, 0o600).unwrap();

        assert!(matches!(Listener::bind(&path, 0o600), Err(BindError::InUse(_))));
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(matches!(Listener::bind(&path, 0o600), Err(BindError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn path_that_is_too_long_is_told() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        assert!(matches!(Listener::bind(&path, 0o600), Err(BindError::TooLong(_))));
    }

    #[test]
    fn mode_is_the_one_asked_for() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vfu.0");
        let _live = Listener::bind(&path, 0o660).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    }
}
