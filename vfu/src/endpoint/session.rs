//! One client's connection: messages in, replies out, in order.
//!
//! The session never blocks and never runs ahead of the device: while something that a command started is not done
//! ([`Progress::Pending`]), or while the client does not read its replies, it takes no further command.

use std::os::fd::{AsFd, OwnedFd};

use reactor::{Interest, PollerCx, Watch, Work};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{access, info, irqs, memory};
use crate::{
    device::Progress,
    function::Function,
    wire::{
        frame::{FrameError, Received, Receiver, Sender},
        spec::{Command, Header, flags},
        version::{self, VersionError},
    },
};

/// Commands taken in one pass, so that a client that floods its socket does not keep the reactor.
const MESSAGES_PER_PASS: usize = 32;
/// Refused commands that are logged one by one; the rest are only counted. A client could fill the disk otherwise.
const LOGGED_REFUSALS: u64 = 8;

/// How a session ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// The client closed its socket.
    #[error("the client closed the connection")]
    Closed,
    /// The stream is of no more use.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Sending failed.
    #[error("sending failed: {0}")]
    Send(Errno),
    /// The first message was not VERSION.
    #[error("the first message is command {0}, not VERSION")]
    NotNegotiated(u16),
    /// The two do not speak the same protocol.
    #[error("version negotiation failed: {0}")]
    Version(#[from] VersionError),
    /// The reactor cannot watch the socket any more.
    #[error("the socket cannot be watched: {0}")]
    Watch(#[from] std::io::Error),
}

/// What a command is answered with.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// The fixed part.
    pub(super) head: Vec<u8>,
    /// Descriptors to pass.
    pub(super) fds: Vec<OwnedFd>,
}

impl Reply {
    /// Only a header.
    pub(super) fn empty() -> Self {
        Self::default()
    }

    /// One struct.
    pub(super) fn of(payload: &(impl IntoBytes + zerocopy::Immutable)) -> Self {
        Self { head: payload.as_bytes().to_vec(), fds: Vec::new() }
    }
}

/// A command that is done but for what the device still has to do.
struct Waiting {
    header: Header,
    outcome: Result<Reply, Errno>,
}

pub(super) struct Session {
    socket: OwnedFd,
    watch: Watch,
    receiver: Receiver,
    sender: Sender,
    negotiated: bool,
    waiting: Option<Waiting>,
    refusals: u64,
}

impl Session {
    pub(super) fn new(socket: OwnedFd, cx: &PollerCx) -> std::io::Result<Self> {
        let watch = cx.watch(socket.as_fd(), Interest::Read)?;
        Ok(Self {
            socket,
            watch,
            receiver: Receiver::default(),
            sender: Sender::default(),
            negotiated: false,
            waiting: None,
            refusals: 0,
        })
    }

    /// Takes and answers what is there, as far as it goes now.
    pub(super) fn serve(&mut self, function: &mut Function) -> Result<Work, End> {
        for _ in 0..MESSAGES_PER_PASS {
            if let Some(waiting) = self.waiting.take() {
                if function.progress() == Progress::Pending {
                    self.waiting = Some(waiting);
                    // The device wakes us; the socket would do so for nothing.
                    self.watch.set_interest(Interest::None)?;
                    return Ok(Work::Idle);
                }
                self.answer(&waiting.header, waiting.outcome);
            }
            if !self.sender.is_empty() && !self.sender.flush(&self.socket).map_err(End::Send)? {
                self.watch.set_interest(Interest::Write)?;
                return Ok(Work::Idle);
            }
            match self.receiver.receive(&self.socket) {
                Ok(Received::Message { header, fds }) => self.take(function, header, fds)?,
                Ok(Received::TooLong(header)) => self.answer(&header, Err(Errno::INVAL)),
                Ok(Received::Pending) => {
                    self.watch.set_interest(Interest::Read)?;
                    return Ok(Work::Idle);
                }
                Ok(Received::Closed) => return Err(End::Closed),
                Err(error) => return Err(self.end(error)),
            }
        }
        Ok(Work::Busy)
    }

    /// Whether a command waits for the device.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// A last word to a peer whose stream broke, as far as the socket takes it.
    fn end(&mut self, error: FrameError) -> End {
        if let FrameError::Short { id, command, .. } = error {
            self.sender.refuse(&Header { message_id: id, command, ..Header::default() }, Errno::INVAL);
            let _ = self.sender.flush(&self.socket);
        }
        End::Frame(error)
    }

    fn take(&mut self, function: &mut Function, header: Header, fds: Vec<OwnedFd>) -> Result<(), End> {
        if header.flags & flags::TYPE_MASK != flags::COMMAND {
            self.answer(&header, Err(Errno::INVAL));
            return Ok(());
        }
        if !self.negotiated {
            return self.negotiate(header);
        }
        let payload = self.receiver.payload();
        let outcome = match header.command {
            Command::DMA_MAP => memory::map(function, payload, fds),
            Command::DMA_UNMAP => memory::unmap(function, payload),
            Command::DEVICE_GET_INFO => info::device(payload),
            Command::DEVICE_GET_REGION_INFO => info::region(function, payload),
            Command::DEVICE_GET_IRQ_INFO => info::irq(function, payload),
            Command::DEVICE_SET_IRQS => irqs::set(function, payload, fds),
            Command::REGION_READ => access::read(function, payload),
            Command::REGION_WRITE => access::write(function, payload),
            Command::REGION_WRITE_MULTI => access::write_multi(function, payload),
            Command::DEVICE_RESET if payload.is_empty() => {
                function.reset();
                Ok(Reply::empty())
            }
            // A second VERSION, DEVICE_RESET with a payload: malformed.
            Command::VERSION | Command::DEVICE_RESET => Err(Errno::INVAL),
            // Known to the protocol, not to this server.
            Command::DEVICE_GET_REGION_IO_FDS
            | Command::DEVICE_FEATURE
            | Command::MIG_DATA_READ
            | Command::MIG_DATA_WRITE => Err(Errno::OPNOTSUPP),
            _ => Err(Errno::INVAL),
        };
        if function.progress() == Progress::Pending {
            self.waiting = Some(Waiting { header, outcome });
        } else {
            self.answer(&header, outcome);
        }
        Ok(())
    }

    fn negotiate(&mut self, header: Header) -> Result<(), End> {
        if header.command != Command::VERSION {
            self.answer(&header, Err(Errno::INVAL));
            let _ = self.sender.flush(&self.socket);
            return Err(End::NotNegotiated(header.command.0));
        }
        let offer = match version::decode(self.receiver.payload()) {
            Ok(offer) => offer,
            Err(error) => {
                self.answer(&header, Err(Errno::INVAL));
                let _ = self.sender.flush(&self.socket);
                return Err(error.into());
            }
        };
        tracing::debug!(minor = offer.minor, capabilities = ?offer.capabilities, "client's offer");
        self.negotiated = true;
        self.sender.reply(&header, &[&version::encode(offer.minor, None)], Vec::new());
        Ok(())
    }

    fn answer(&mut self, header: &Header, outcome: Result<Reply, Errno>) {
        if let Err(errno) = outcome {
            self.refusals += 1;
            if self.refusals <= LOGGED_REFUSALS {
                tracing::warn!(command = header.command.0, %errno, "a client's command is refused");
            }
        }
        if header.flags & flags::NO_REPLY != 0 {
            return;
        }
        match outcome {
            Ok(Reply { head, fds }) => self.sender.reply(header, &[&head], fds),
            Err(errno) => self.sender.refuse(header, errno),
        }
    }
}
