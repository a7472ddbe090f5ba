//! Messages out of a byte stream, and into one: the receive state machine and the send queue.
//!
//! A message is read in two steps, header and body, never across its end. File descriptors arrive with the bytes they
//! were sent with, so a read that ran into the next message could not tell whose they are.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::{
    socket::{self, Chunk},
    spec::{Command, HEADER_LEN, Header, RegionAccess, flags},
    version::{MAX_DATA_XFER_SIZE, MAX_MSG_FDS},
};

/// Largest payload of any message: an access of the largest size and its fixed part.
pub const MAX_PAYLOAD: usize = MAX_DATA_XFER_SIZE as usize + size_of::<RegionAccess>();
/// The buffer grows by this as bytes arrive, so a peer that only claims a length costs us nothing.
const GROWTH: usize = 64 << 10;

/// A whole message, or why there is none yet.
#[derive(Debug)]
pub enum Received {
    /// A message; its payload is in [`Receiver::payload`] until the next call.
    Message {
        /// The header, its size already checked.
        header: Header,
        /// The file descriptors that came with it. Those a handler does not keep close here.
        fds: Vec<OwnedFd>,
    },
    /// A message longer than [`MAX_PAYLOAD`]. Its body is skipped; the stream stays in step.
    TooLong(Header),
    /// A piece of such a body: of gigabytes, which are not to be skipped in one go.
    Skipped,
    /// Nothing complete is there now.
    Pending,
    /// The peer closed its side.
    Closed,
}

/// Why a stream is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A size that cannot hold the header: where the next message starts cannot be known.
    #[error("message {id} says it is {size} bytes long, shorter than its header")]
    Short {
        /// The message's id, for the reply.
        id: u16,
        /// The command's number, for the reply.
        command: Command,
        /// What it said.
        size: u32,
    },
    /// More descriptors than negotiated.
    #[error("more than {MAX_MSG_FDS} file descriptors with one message")]
    TooManyFds,
    /// The peer closed its side inside a message.
    #[error("closed inside a message")]
    Torn,
    /// The socket failed.
    #[error("receiving failed: {0}")]
    Socket(Errno),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Body(Header),
    Skip { left: u64 },
}

/// The receive state machine of one connection.
#[derive(Debug)]
pub struct Receiver {
    state: State,
    have: usize,
    head: [u8; HEADER_LEN],
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self { state: State::Header, have: 0, head: [0; HEADER_LEN], body: Vec::new(), fds: Vec::new() }
    }
}

impl Receiver {
    /// Takes the next message from `socket`, as far as it has arrived.
    ///
    /// # Errors
    /// See [`FrameError`]; the connection must then be closed.
    pub fn receive(&mut self, socket: impl AsFd) -> Result<Received, FrameError> {
        loop {
            let step = match self.state {
                State::Header => self.receive_header(socket.as_fd())?,
                State::Body(header) => self.receive_body(socket.as_fd(), header)?,
                State::Skip { left } => self.skip(socket.as_fd(), left)?,
            };
            if let Some(received) = step {
                return Ok(received);
            }
        }
    }

    /// The payload of the message that [`Self::receive`] returned last.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.body
    }

    /// The same, to keep.
    #[must_use]
    pub fn take_payload(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.body)
    }

    fn receive_header(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Received>, FrameError> {
        if self.have == 0 {
            self.body.clear();
            self.body.shrink_to(GROWTH);
        }
        let chunk = socket::receive(socket, &mut self.head[self.have..], &mut self.fds);
        match chunk.map_err(FrameError::Socket)? {
            Chunk::Bytes(n) => self.have += n,
            Chunk::Empty => return Ok(Some(Received::Pending)),
            Chunk::Closed if self.have == 0 => return Ok(Some(Received::Closed)),
            Chunk::Closed => return Err(FrameError::Torn),
            Chunk::TooManyFds => return Err(FrameError::TooManyFds),
        }
        if self.have < HEADER_LEN {
            return Ok(None);
        }
        self.have = 0;
        let header = Header::read_from_bytes(&self.head).expect("the array has a header's length");
        let Some(payload) = (header.message_size as usize).checked_sub(HEADER_LEN) else {
            let Header { message_id: id, command, message_size: size, .. } = header;
            return Err(FrameError::Short { id, command, size });
        };
        if payload > MAX_PAYLOAD {
            self.fds.clear();
            self.state = State::Skip { left: payload as u64 };
            return Ok(Some(Received::TooLong(header)));
        }
        self.state = State::Body(header);
        Ok(None)
    }

    fn receive_body(
        &mut self,
        socket: BorrowedFd<'_>,
        header: Header,
    ) -> Result<Option<Received>, FrameError> {
        let whole = header.message_size as usize - HEADER_LEN;
        if self.have == whole {
            self.state = State::Header;
            self.have = 0;
            return Ok(Some(Received::Message { header, fds: std::mem::take(&mut self.fds) }));
        }
        self.body.resize(whole.min(self.have + GROWTH), 0);
        let chunk = socket::receive(socket, &mut self.body[self.have..], &mut self.fds);
        match chunk.map_err(FrameError::Socket)? {
            Chunk::Bytes(n) => self.have += n,
            Chunk::Empty => return Ok(Some(Received::Pending)),
            Chunk::Closed => return Err(FrameError::Torn),
            Chunk::TooManyFds => return Err(FrameError::TooManyFds),
        }
        Ok(None)
    }

    fn skip(&mut self, socket: BorrowedFd<'_>, left: u64) -> Result<Option<Received>, FrameError> {
        if left == 0 {
            self.state = State::Header;
            return Ok(None);
        }
        self.body.resize(GROWTH.min(usize::try_from(left).unwrap_or(GROWTH)), 0);
        let chunk = socket::receive(socket, &mut self.body, &mut self.fds);
        self.fds.clear();
        match chunk.map_err(FrameError::Socket)? {
            Chunk::Bytes(n) => self.state = State::Skip { left: left - n as u64 },
            Chunk::Empty => return Ok(Some(Received::Pending)),
            Chunk::Closed => return Err(FrameError::Torn),
            Chunk::TooManyFds => return Err(FrameError::TooManyFds),
        }
        Ok(Some(Received::Skipped))
    }
}

/// A message on its way out.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    sent: usize,
}

/// The send queue of one connection. A reader that is slow makes it wait; it never blocks.
#[derive(Debug, Default)]
pub struct Sender {
    queue: VecDeque<Outgoing>,
    spare: Vec<u8>,
}

impl Sender {
    /// Whether everything was handed to the socket.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Queues a message with `fds` on its first byte.
    pub fn push(&mut self, header: Header, payload: &[&[u8]], fds: Vec<OwnedFd>) {
        debug_assert!(fds.len() <= MAX_MSG_FDS);
        let len = HEADER_LEN + payload.iter().map(|part| part.len()).sum::<usize>();
        let mut bytes = std::mem::take(&mut self.spare);
        bytes.clear();
        bytes.reserve(len);
        let message_size = u32::try_from(len).expect("a payload is at most MAX_PAYLOAD long");
        bytes.extend_from_slice(Header { message_size, ..header }.as_bytes());
        for part in payload {
            bytes.extend_from_slice(part);
        }
        self.queue.push_back(Outgoing { bytes, fds, sent: 0 });
    }

    /// Queues the reply to `command`.
    pub fn reply(&mut self, command: &Header, payload: &[&[u8]], fds: Vec<OwnedFd>) {
        self.push(Header { flags: flags::REPLY, error: 0, ..*command }, payload, fds);
    }

    /// Queues the refusal of `command`: a header with an errno and nothing behind it.
    pub fn refuse(&mut self, command: &Header, errno: Errno) {
        let error = errno.raw_os_error().unsigned_abs();
        self.push(Header { flags: flags::REPLY | flags::ERROR, error, ..*command }, &[], Vec::new());
    }

    /// Sends what the socket takes now. True when nothing is left.
    ///
    /// # Errors
    /// The socket's; the connection must then be closed.
    pub fn flush(&mut self, socket: impl AsFd) -> Result<bool, Errno> {
        while let Some(out) = self.queue.front_mut() {
            let fds: Vec<BorrowedFd<'_>> =
                if out.sent == 0 { out.fds.iter().map(AsFd::as_fd).collect() } else { vec![] };
            match socket::send(&socket, &out.bytes[out.sent..], &fds) {
                Ok(n) => out.sent += n,
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(errno),
            }
            if out.sent == out.bytes.len() {
                let mut done = self.queue.pop_front().expect("it was at the front").bytes;
                done.clear();
                done.shrink_to(GROWTH);
                self.spare = done;
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use proptest::prelude::*;

    use super::*;

    fn message(id: u16, payload: &[u8]) -> Vec<u8> {
        let message_size = u32::try_from(HEADER_LEN + payload.len()).unwrap();
        let header =
            Header { message_id: id, command: Command::REGION_READ, message_size, ..Header::default() };
        [header.as_bytes(), payload].concat()
    }

    fn next(receiver: &mut Receiver, socket: &UnixStream) -> Option<(u16, Vec<u8>, usize)> {
        match receiver.receive(socket).unwrap() {
            Received::Message { header, fds } => {
                Some((header.message_id, receiver.payload().to_vec(), fds.len()))
            }
            _ => None,
        }
    }

    #[test]
    fn messages_in_one_write_come_out_one_by_one() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(&[message(1, b"abc"), message(2, b""), message(3, &[7; 5000])].concat()).unwrap();
        let mut receiver = Receiver::default();

        assert_eq!(next(&mut receiver, &server), Some((1, b"abc".to_vec(), 0)));
        assert_eq!(next(&mut receiver, &server), Some((2, vec![], 0)));
        assert_eq!(next(&mut receiver, &server), Some((3, vec![7; 5000], 0)));
        assert_eq!(next(&mut receiver, &server), None);
    }

    #[test]
    fn descriptors_belong_to_the_message_they_were_sent_with() {
        let (client, server) = UnixStream::pair().unwrap();
        let fd = || rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).unwrap();
        let mut sender = Sender::default();
        let header = |message_id| Header { message_id, ..Header::default() };
        sender.push(header(1), &[], vec![]);
        sender.push(header(2), &[b"xy"], vec![fd(), fd()]);
        sender.push(header(3), &[], vec![fd()]);
        assert!(sender.flush(&client).unwrap());
        let mut receiver = Receiver::default();

        assert_eq!(next(&mut receiver, &server), Some((1, vec![], 0)));
        assert_eq!(next(&mut receiver, &server), Some((2, b"xy".to_vec(), 2)));
        assert_eq!(next(&mut receiver, &server), Some((3, vec![], 1)));
    }

    #[test]
    fn too_long_message_is_skipped_and_the_stream_stays_in_step() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut receiver = Receiver::default();
        let long = message(1, &vec![0; MAX_PAYLOAD + 1]);
        let writer = std::thread::spawn(move || {
            client.write_all(&long).unwrap();
            client.write_all(&message(2, b"next")).unwrap();
            client
        });
        let mut seen = vec![];
        while seen.len() < 2 {
            match receiver.receive(&server).unwrap() {
                Received::TooLong(header) => seen.push((header.message_id, vec![])),
                Received::Message { header, .. } => {
                    seen.push((header.message_id, receiver.payload().to_vec()));
                }
                Received::Pending | Received::Skipped => std::thread::yield_now(),
                Received::Closed => panic!("closed"),
            }
        }
        assert_eq!(seen, vec![(1, vec![]), (2, b"next".to_vec())]);
        drop(writer.join().unwrap());
    }

    #[test]
    fn endless_message_is_skipped_a_piece_at_a_time() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let header = Header { message_size: u32::MAX, ..Header::default() };
        client.write_all(header.as_bytes()).unwrap();
        client.write_all(&[0; GROWTH + 1]).unwrap();
        let mut receiver = Receiver::default();

        let seen: Vec<Received> = (0..4).map(|_| receiver.receive(&server).unwrap()).collect();

        use Received::{Pending, Skipped, TooLong};
        assert!(matches!(seen[..], [TooLong(_), Skipped, Skipped, Pending]), "{seen:?}");
    }

    #[test]
    fn size_below_the_header_ends_the_stream() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let header = Header { message_id: 9, message_size: 15, ..Header::default() };
        client.write_all(header.as_bytes()).unwrap();

        let error = Receiver::default().receive(&server).unwrap_err();

        assert_eq!(error, FrameError::Short { id: 9, command: Command(0), size: 15 });
    }

    #[test]
    fn close_between_messages_is_closed_and_inside_one_is_torn() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(&message(1, b"abc")[..17]).unwrap();
        drop(client);
        assert_eq!(Receiver::default().receive(&server).unwrap_err(), FrameError::Torn);
        assert!(matches!(Receiver::default().receive(&server), Ok(Received::Closed)));
    }

    #[test]
    fn more_descriptors_than_negotiated_are_refused_and_closed() {
        let (client, server) = UnixStream::pair().unwrap();
        let fds: Vec<_> = (0..=MAX_MSG_FDS).map(|_| client.try_clone().unwrap()).collect();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MSG_FDS + 1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        control.push(rustix::net::SendAncillaryMessage::ScmRights(&borrowed));
        let bytes = message(1, b"");
        let slices = [std::io::IoSlice::new(&bytes)];
        rustix::net::sendmsg(&client, &slices, &mut control, rustix::net::SendFlags::empty()).unwrap();

        assert_eq!(Receiver::default().receive(&server).unwrap_err(), FrameError::TooManyFds);
    }

    #[test]
    fn slow_reader_makes_the_queue_wait_and_loses_nothing() {
        let (server, mut client) = UnixStream::pair().unwrap();
        let mut sender = Sender::default();
        sender.push(Header::default(), &[&vec![5; MAX_PAYLOAD]], vec![]);
        assert!(!sender.flush(&server).unwrap());

        let mut got = vec![0; HEADER_LEN + MAX_PAYLOAD];
        let mut have = 0;
        while have < got.len() {
            sender.flush(&server).unwrap();
            have += client.read(&mut got[have..]).unwrap();
        }

        assert!(sender.flush(&server).unwrap());
        assert!(got[HEADER_LEN..].iter().all(|&byte| byte == 5));
    }

    proptest! {
        #[test]
        fn split_points_do_not_matter(
            sizes in prop::collection::vec(0_usize..300, 1..8),
            cuts in prop::collection::vec(1_usize..40, 1..40),
        ) {
            let (mut client, server) = UnixStream::pair().unwrap();
            let messages: Vec<_> = (0..).zip(&sizes).map(|(id, &size)| (id, vec![u8::try_from(id).unwrap(); size], 0)).collect();
            let stream: Vec<u8> = messages.iter().flat_map(|(id, payload, _)| message(*id, payload)).collect();
            let mut receiver = Receiver::default();
            let mut got = vec![];
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                client.write_all(now).unwrap();
                got.extend(std::iter::from_fn(|| next(&mut receiver, &server)));
                rest = later;
                if rest.is_empty() { break; }
            }
            prop_assert_eq!(got, messages);
        }
    }
}
