//! One client's connection: messages in, replies out, in order.
//!
//! The session never blocks and never runs ahead of the device: while something that a command started is not done
//! ([`Progress::Pending`]), or while the client does not read its replies, it takes no further command. Answers to our
//! own DMA messages are taken all the while; commands that come with them are held until it is their turn.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use reactor::{Clock, Interest, PollerCx, Tick, Work};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{
    access::{self, Writes},
    features, info,
    iofds::Shortcuts,
    irqs, memory,
    messages::{DMA_MESSAGE_MAX, Messages},
    throttle::Throttle,
    ties::Ties,
};
use crate::{
    device::{HomeWaker, Progress},
    function::Function,
    points::{COMMAND, ENDPOINT, REPLY},
    wire::{
        frame::{FrameError, Received, Receiver, Sender},
        spec::{Command, Header, flags},
        version::{self, Capabilities, VersionError},
    },
};

/// Messages taken in one pass from each socket, so that a client that floods one does not keep the reactor.
pub(super) const MESSAGES_PER_PASS: usize = 32;
/// Commands that are held while answers to DMA messages are awaited. A client that sends more without answering has
/// its DMA given up, which nothing else would end, and one more is held; until that one's turn, what queues ask for fails
/// and nothing is read.
pub const HELD_COMMANDS_MAX: usize = 64;
/// How long the answer to a write waits for what the write started, a reset for instance. QEMU takes a device for dead
/// that does not answer within five seconds; a driver that resets asks for the status until it reads zero, and waits
/// for a disk that hangs much longer than that (virtio 1.2, 2.1.2).
pub const WRITE_ANSWER_MAX: Duration = Duration::from_secs(2);

/// How long any other answer waits for the client's answers to our DMA messages. QEMU gives none while it waits itself, with
/// the lock that its DMA needs, and takes a device for dead after five seconds; then the messages are given up.
pub const DMA_ANSWER_MAX: Duration = Duration::from_secs(3);

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

/// What a command still has to do.
enum Rest {
    /// Nothing of its own: the device has.
    Outcome(Result<Reply, Errno>),
    /// More writes.
    Writes(Writes),
}

/// A command that waits for the device.
struct Waiting {
    header: Header,
    rest: Rest,
    since: Tick,
}

/// A command: the one at hand, or one that came while another one waits.
struct Held {
    header: Header,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

pub(super) struct Session {
    name: String,
    socket: OwnedFd,
    clock: Clock,
    home: HomeWaker,
    receiver: Receiver,
    sender: Sender,
    /// What the client can do, once it has said so.
    peer: Option<Capabilities>,
    waiting: Option<Waiting>,
    held: VecDeque<Held>,
    messages: Messages,
    shortcuts: Shortcuts,
}

impl Session {
    pub(super) fn new(name: &str, socket: OwnedFd, clock: &Clock, home: &HomeWaker) -> Self {
        Self {
            name: name.to_owned(),
            socket,
            clock: clock.clone(),
            home: home.clone(),
            receiver: Receiver::default(),
            sender: Sender::default(),
            peer: None,
            waiting: None,
            held: VecDeque::new(),
            messages: Messages::new(),
            shortcuts: Shortcuts::default(),
        }
    }

    /// Ties it to the reactor of this poller.
    pub(super) fn tie(&self, cx: &PollerCx) -> std::io::Result<Ties> {
        let mut ties = Ties::new(self.socket.as_fd(), cx)?;
        self.messages.twin().map_or(Ok(()), |twin| ties.add_twin(twin))?;
        self.shortcuts.eventfds().try_for_each(|eventfd| ties.add_eventfd(eventfd))?;
        Ok(ties)
    }

    /// When it wants to be polled even if nothing happens.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let waiting = self.waiting.as_ref()?;
        let limit = if may_be_answered_early(waiting) {
            WRITE_ANSWER_MAX
        } else if self.messages.are_awaited() {
            DMA_ANSWER_MAX
        } else {
            return None;
        };
        Some(waiting.since.after(self.clock.ticks(limit)))
    }

    /// Takes and answers what is there, as far as it goes now.
    pub(super) fn serve(
        &mut self,
        ties: &mut Ties,
        function: &mut Function,
        log: &mut Throttle,
        now: Tick,
    ) -> Result<Work, End> {
        let remote = &function.bus().remote;
        let mut busy = if self.is_overrun() {
            self.messages.refuse(remote)
        } else {
            self.messages.relay(remote, &mut self.sender, ties)?
        };
        for _ in 0..MESSAGES_PER_PASS {
            if let Some(waiting) = self.waiting.take() {
                self.settle(waiting, function, log, now);
            }
            let blocked = !self.sender.is_empty() && !self.sender.flush(&self.socket).map_err(End::Send)?;
            if !self.messages.expects_replies_here() && (blocked || self.waiting.is_some()) {
                // The reader, or the device, wakes us; what the socket brings would do so for nothing.
                ties.await_client(if blocked { Interest::Write } else { Interest::None })?;
                return Ok(if busy { Work::Busy } else { Work::Idle });
            }
            // With answers to come it is read on in any case: the client may be writing one, and read nothing before
            // it is through.
            let holds = blocked || self.waiting.is_some();
            if !holds {
                if let Some(held) = self.held.pop_front() {
                    self.take(ties, function, log, now, held)?;
                    busy = true;
                    continue;
                }
                busy |= self.shortcuts.ring(function);
            }
            if !self.next(ties, function, log, now, holds)? {
                ties.await_client(if blocked { Interest::ReadWrite } else { Interest::Read })?;
                return Ok(if busy { Work::Busy } else { Work::Idle });
            }
            busy = true;
        }
        Ok(Work::Busy)
    }

    /// Whether a command waits for the device.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether more commands are held than may be. No DMA message goes out then: its answer would be behind further commands,
    /// and they would be read for it.
    fn is_overrun(&self) -> bool {
        self.held.len() > HELD_COMMANDS_MAX
    }

    /// Whether one more DMA message may go out; without room the next answer wakes us.
    pub(super) fn has_room(&self) -> bool {
        self.messages.has_room()
    }

    /// Receives one message, if there is one. `holds`: it is not the time for commands.
    fn next(
        &mut self,
        ties: &mut Ties,
        function: &mut Function,
        log: &mut Throttle,
        now: Tick,
        holds: bool,
    ) -> Result<bool, End> {
        match self.receiver.receive(&self.socket) {
            Ok(Received::Message { header, fds }) => {
                let payload = self.receiver.take_payload();
                if header.flags & flags::TYPE_MASK == flags::REPLY && self.messages.takes_replies_here() {
                    self.messages.reply(&header, &payload);
                } else if holds {
                    self.held.push_back(Held { header, payload, fds });
                    if self.is_overrun() {
                        self.messages.fail_all();
                        log.log(&self.name, || {
                            tracing::warn!(
                                "a client sends commands and does not answer ours: DMA is given up"
                            );
                        });
                    }
                } else {
                    self.take(ties, function, log, now, Held { header, payload, fds })?;
                }
                Ok(true)
            }
            Ok(Received::TooLong(header)) => {
                self.answer(log, &header, Err(Errno::INVAL));
                Ok(true)
            }
            Ok(Received::Skipped) => Ok(true),
            Ok(Received::Pending) => Ok(false),
            Ok(Received::Closed) => Err(End::Closed),
            Err(error) => Err(self.end(error)),
        }
    }

    /// Goes on with a command that waits.
    fn settle(&mut self, mut waiting: Waiting, function: &mut Function, log: &mut Throttle, now: Tick) {
        let is_late = function.progress() == Progress::Pending;
        if is_late {
            let is_past = |limit| now >= waiting.since.after(self.clock.ticks(limit));
            if !may_be_answered_early(&waiting) && self.messages.are_awaited() && is_past(DMA_ANSWER_MAX) {
                self.messages.fail_all();
                log.log(&self.name, || {
                    tracing::warn!("a client waits for an answer and does not answer ours: DMA is given up");
                });
            }
            if !is_past(WRITE_ANSWER_MAX) || !may_be_answered_early(&waiting) {
                self.waiting = Some(waiting);
                return;
            }
            log.log(&self.name, || {
                tracing::warn!("the device does not settle; its client is answered all the same");
            });
        }
        if let Rest::Writes(writes) = &mut waiting.rest {
            // All of them share one limit: those that are left when it has passed wait for nothing.
            let outcome = loop {
                match writes.go_on(function) {
                    Some(outcome) => break outcome,
                    None if is_late => {}
                    None => {
                        self.waiting = Some(waiting);
                        return;
                    }
                }
            };
            waiting.rest = Rest::Outcome(outcome);
            if !is_late && function.progress() == Progress::Pending {
                self.waiting = Some(waiting);
                return;
            }
        }
        if let Rest::Outcome(outcome) = waiting.rest {
            self.answer(log, &waiting.header, outcome);
        }
    }

    /// A last word to a peer whose stream broke, as far as the socket takes it.
    fn end(&mut self, error: FrameError) -> End {
        if let FrameError::Short { id, command, .. } = error {
            self.sender.refuse(&Header { message_id: id, command, ..Header::default() }, Errno::INVAL);
            let _ = self.sender.flush(&self.socket);
        }
        End::Frame(error)
    }

    fn take(
        &mut self,
        ties: &mut Ties,
        function: &mut Function,
        log: &mut Throttle,
        now: Tick,
        command: Held,
    ) -> Result<(), End> {
        let Held { header, payload, fds } = command;
        let payload = &payload[..];
        let (message, number) = (header.message_id.into(), header.command.0.into());
        ENDPOINT.record(COMMAND, message, [number, payload.len() as u64, fds.len() as u64, 0]);
        if header.flags & flags::TYPE_MASK != flags::COMMAND {
            self.answer(log, &header, Err(Errno::INVAL));
            return Ok(());
        }
        let Some(peer) = &self.peer else { return self.negotiate(ties, function, log, header, payload) };
        let outcome = match header.command {
            Command::DMA_MAP => memory::map(function, payload, fds),
            Command::DMA_UNMAP => memory::unmap(function, payload),
            Command::DEVICE_GET_INFO => info::device(payload),
            Command::DEVICE_GET_REGION_INFO => info::region(function, payload),
            Command::DEVICE_GET_REGION_IO_FDS => {
                self.shortcuts.hand_out(function, payload, ties, peer.max_msg_fds as usize)
            }
            Command::DEVICE_GET_IRQ_INFO => info::irq(function, payload),
            Command::DEVICE_SET_IRQS => irqs::set(function, payload, fds),
            Command::REGION_READ => {
                // A read starts nothing that would have to be waited for.
                let outcome = access::read(function, payload);
                self.answer(log, &header, outcome);
                return Ok(());
            }
            Command::REGION_WRITE if access::is_doorbell(function, payload) => {
                // Whatever the device is at was started by something else, and may take as long as a disk hangs: the driver's
                // processor stands still meanwhile (QEMU 10.1 waits for the answer).
                let outcome = access::write(function, payload);
                self.answer(log, &header, outcome);
                return Ok(());
            }
            Command::REGION_WRITE => access::write(function, payload),
            Command::REGION_WRITE_MULTI => match Writes::decode(payload) {
                Ok(mut writes) => {
                    if let Some(outcome) = writes.ring(function) {
                        self.answer(log, &header, outcome);
                        return Ok(());
                    }
                    let waiting = Waiting { header, rest: Rest::Writes(writes), since: now };
                    self.settle(waiting, function, log, now);
                    return Ok(());
                }
                Err(errno) => Err(errno),
            },
            Command::DEVICE_RESET if payload.is_empty() => {
                function.reset();
                Ok(Reply::empty())
            }
            Command::DEVICE_FEATURE => features::feature(payload),
            Command::MIG_DATA_READ | Command::MIG_DATA_WRITE => features::migration_data(payload),
            // A second VERSION, DEVICE_RESET with a payload, DMA messages from the wrong side, unknown numbers.
            _ => Err(Errno::INVAL),
        };
        if function.progress() == Progress::Pending {
            self.waiting = Some(Waiting { header, rest: Rest::Outcome(outcome), since: now });
        } else {
            self.answer(log, &header, outcome);
        }
        Ok(())
    }

    fn negotiate(
        &mut self,
        ties: &mut Ties,
        function: &Function,
        log: &mut Throttle,
        header: Header,
        payload: &[u8],
    ) -> Result<(), End> {
        if header.command != Command::VERSION {
            self.answer(log, &header, Err(Errno::INVAL));
            let _ = self.sender.flush(&self.socket);
            return Err(End::NotNegotiated(header.command.0));
        }
        let offer = match version::decode(payload) {
            Ok(offer) => offer,
            Err(error) => {
                self.answer(log, &header, Err(Errno::INVAL));
                let _ = self.sender.flush(&self.socket);
                return Err(error.into());
            }
        };
        tracing::debug!(minor = offer.minor, capabilities = ?offer.capabilities, "client's offer");
        let wants_twin = offer.capabilities.twin_socket.supported && offer.capabilities.max_msg_fds > 0;
        let theirs = if wants_twin { Some(self.messages.make_twin(ties)?) } else { None };
        let index = theirs.as_ref().map(|_| 0);
        let transfer_max = offer.capabilities.max_data_xfer_size.min(DMA_MESSAGE_MAX);
        function.bus().remote.open(self.home.clone(), transfer_max);
        self.sender.reply(&header, &[&version::encode(offer.minor, index)], theirs.into_iter().collect());
        self.peer = Some(offer.capabilities);
        Ok(())
    }

    fn answer(&mut self, log: &mut Throttle, header: &Header, outcome: Result<Reply, Errno>) {
        let errno = outcome.as_ref().err().map_or(0, |errno| errno.raw_os_error().unsigned_abs());
        ENDPOINT.record(REPLY, header.message_id.into(), [header.command.0.into(), errno.into(), 0, 0]);
        if let Err(errno) = outcome {
            log.log(&self.name, || {
                tracing::warn!(
                    endpoint = self.name,
                    command = header.command.0,
                    %errno,
                    "a client's command is refused"
                );
            });
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

/// Whether the answer does not promise that the device is done: writes that a driver looks after itself, and
/// interrupts, which are set up before queues follow.
fn may_be_answered_early(waiting: &Waiting) -> bool {
    matches!(
        waiting.header.command,
        Command::REGION_WRITE | Command::REGION_WRITE_MULTI | Command::DEVICE_SET_IRQS
    )
}
