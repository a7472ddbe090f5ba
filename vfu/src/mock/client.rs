//! A vfio-user client, as a VMM has one: each call is one message, and waits for its answer.
//!
//! Drivers and tests are the callers. A server that does not answer is an error after a while, never a hang. The
//! receive and send state machines are the server's own ([`crate::wire::frame`]); what travels is checked anew here.
//! Server-to-client DMA messages are refused here: a guest's memory is mappable, or its twin socket is for that
//! ([`Client::connect_private`]). Connection and framing are here, the commands in `commands`.

mod commands;

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

pub use commands::RegionDetail;

use super::{memory::Memory, private::Private};
use crate::wire::{
    frame::{FrameError, Received, Receiver, Sender},
    spec::{Command, HEADER_LEN, Header, flags},
    version::{self, Capabilities, VersionError},
};

/// How long an answer may take. Generous: a test machine may be loaded, and only a failing test waits this long.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a command has no answer, or not the one asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or the path is wrong.
    #[error("connecting to {path} failed: {source}")]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// Sending or waiting failed.
    #[error("the socket failed: {0}")]
    Socket(Errno),
    /// The stream of replies is of no more use.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The server does not answer.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The server answered with an error.
    #[error("the server refused command {command}: {errno}")]
    Refused {
        /// The command's number.
        command: u16,
        /// The server's word.
        errno: Errno,
    },
    /// An answer that the specification does not allow.
    #[error("the answer to command {command} {what}")]
    Malformed {
        /// The command's number.
        command: u16,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The VERSION answer cannot be agreed to.
    #[error("version negotiation failed: {0}")]
    Version(#[from] VersionError),
}

impl ClientError {
    /// The errno of a refusal.
    #[must_use]
    pub fn refusal(&self) -> Option<Errno> {
        if let Self::Refused { errno, .. } = self { Some(*errno) } else { None }
    }
}

/// A message from the server.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// What is behind the header.
    pub payload: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// A connection to a device.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    receiver: Receiver,
    sender: Sender,
    next_id: u16,
    timeout: Duration,
    capabilities: Capabilities,
    /// Its guest's memory is not shared.
    private: Option<Private>,
}

impl Client {
    /// Connects for a guest whose `memory` is not shared: windows are offered without a file, and a thread answers what
    /// the server asks on the twin socket.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect_private(path: &Path, memory: &Memory) -> Result<Self, ClientError> {
        let mut client = Self::connect_raw(path)?;
        let mut answer = client.hello(Some(0))?;
        let twin = answer
            .fds
            .pop()
            .ok_or(ClientError::Malformed { command: Command::VERSION.0, what: "has no twin socket" })?;
        client.private = Some(Private::serve(twin, memory).map_err(ClientError::Socket)?);
        Ok(client)
    }

    /// DMA messages of the server that were answered.
    #[must_use]
    pub fn dma_messages(&self) -> u64 {
        self.private.as_ref().map_or(0, Private::answered)
    }

    /// Has the answers to DMA messages wait, or go on: QEMU gives none while its processor waits for an answer of ours.
    pub fn hold_dma(&self, holds: bool) {
        if let Some(private) = &self.private {
            private.hold(holds);
        }
    }

    /// Connects, and agrees on the version.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let mut client = Self::connect_raw(path)?;
        client.negotiate()?;
        Ok(client)
    }

    /// Connects and says nothing.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect_raw(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path);
        let stream = stream.map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        Ok(Self {
            stream,
            receiver: Receiver::default(),
            sender: Sender::default(),
            next_id: 0,
            timeout: DEFAULT_TIMEOUT,
            capabilities: Capabilities::default(),
            private: None,
        })
    }

    /// Sends VERSION and takes the answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn negotiate(&mut self) -> Result<(), ClientError> {
        self.hello(None).map(drop)
    }

    fn hello(&mut self, twin_socket: Option<u32>) -> Result<Message, ClientError> {
        let hello = version::encode(version::MINOR, twin_socket);
        let answer = self.request(Command::VERSION, &[&hello], Vec::new())?;
        self.capabilities = version::decode(&answer.payload)?.capabilities;
        Ok(answer)
    }

    /// What the server can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Sets how long an answer may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// How long an answer may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    fn wait(&self, events: PollFlags, deadline: Instant) -> Result<(), ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ClientError::Timeout(self.timeout));
        }
        // A timespec that does not fit is longer than anybody waits.
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&self.stream, events)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(ClientError::Socket(errno)),
        }
    }

    fn flush(&mut self) -> Result<(), ClientError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.sender.flush(&self.stream) {
                Ok(true) => return Ok(()),
                Ok(false) => self.wait(PollFlags::OUT, deadline)?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ClientError::Closed),
                Err(errno) => return Err(ClientError::Socket(errno)),
            }
        }
    }

    /// The next message from the server, whatever it is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn receive(&mut self) -> Result<Message, ClientError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.receiver.receive(&self.stream)? {
                Received::Message { header, fds } => {
                    return Ok(Message { header, payload: self.receiver.payload().to_vec(), fds });
                }
                Received::TooLong(header) => {
                    return Err(ClientError::Malformed {
                        command: header.command.0,
                        what: "is longer than agreed",
                    });
                }
                Received::Closed => return Err(ClientError::Closed),
                Received::Skipped => {}
                Received::Pending => self.wait(PollFlags::IN, deadline)?,
            }
        }
    }

    /// Sends bytes as they are, with `fds` on the first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        use std::io::Write;
        let sent = self.stream.set_nonblocking(false).and_then(|()| self.stream.write_all(bytes));
        sent.map_err(|error| ClientError::Socket(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }

    /// Sends a command and waits for nothing. Its id.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn send(
        &mut self,
        command: Command,
        flags: u32,
        payload: &[&[u8]],
        fds: Vec<OwnedFd>,
    ) -> Result<u16, ClientError> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.sender.push(Header { message_id: id, command, flags, ..Header::default() }, payload, fds);
        self.flush()?;
        Ok(id)
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn request(
        &mut self,
        command: Command,
        payload: &[&[u8]],
        fds: Vec<OwnedFd>,
    ) -> Result<Message, ClientError> {
        let id = self.send(command, flags::COMMAND, payload, fds)?;
        self.answer(id, command)
    }

    /// Waits for the answer to the command with this id.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn answer(&mut self, id: u16, command: Command) -> Result<Message, ClientError> {
        let malformed = |what| Err(ClientError::Malformed { command: command.0, what });
        loop {
            let message = self.receive()?;
            let header = message.header;
            if header.flags & flags::TYPE_MASK == flags::COMMAND {
                self.sender.refuse(&header, Errno::OPNOTSUPP);
                self.flush()?;
                continue;
            }
            if header.message_id != id || header.command != command {
                return malformed("belongs to another command");
            }
            if header.flags & flags::ERROR != 0 {
                if header.message_size as usize != HEADER_LEN {
                    return malformed("is an error with something behind it");
                }
                let errno = Errno::from_raw_os_error(header.error.cast_signed());
                return Err(ClientError::Refused { command: command.0, errno });
            }
            return Ok(message);
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_server_is_a_timeout_and_a_gone_one_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut client = Client::connect_raw(&path).unwrap();
        client.set_timeout(Duration::from_millis(10));
        assert!(matches!(client.negotiate(), Err(ClientError::Timeout(_))));

        client.set_timeout(DEFAULT_TIMEOUT);
        drop(listener.accept().unwrap());
        assert!(matches!(client.receive(), Err(ClientError::Closed)));
    }
}
